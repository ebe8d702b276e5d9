//! A node whose descriptors or memory are used up by its clients: it goes on, refuses nothing that it can serve later, and is as before
//! afterwards.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use gateway_tests::client::{Load, Tally};
use gateway_tests::eventually::{eventually, rest};
use gateway_tests::fixture::HOST;
use gateway_tests::kept::{Asked, Kept};
use gateway_tests::leftovers::Ledger;
use gateway_tests::machine::patience;
use gateway_tests::rig::{Options, Rig, VIP};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Longest time of one step; it takes a second or two.
const STEP: Duration = Duration::from_secs(20);

/// A counter of `/metrics` that has this name with its labels.
fn count(rig: &Rig, name: &str) -> f64 {
    let site = rig.daemons[0].site();
    let text = site.netns.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:15020")?;
        stream.set_read_timeout(Some(STEP))?;
        write!(stream, "GET /metrics HTTP/1.0\r\nhost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let text = text.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    value.trim().parse().unwrap()
}

fn event(rig: &Rig, name: &str) -> f64 {
    count(
        rig,
        &format!("forebay_proxy_events_total{{event=\"{name}\"}}"),
    )
}

/// Descriptors of the process.
const FEW: &[&str] = &["prlimit", "--nofile=512:512"];
/// Connections that are kept, which is less than half of them.
const KEPT: usize = 200;
/// Those that come besides and ask nothing: together it is more.
const SILENT: usize = 100;
/// Requests, and how many of them at the same time: fewer than what the DestinationRules let wait.
const REQUESTS: usize = 1_000;
const OVERLAP: usize = 40;

fn with_few_descriptors(workers: usize) {
    let options = Options {
        nodes: 1,
        workers: Some(workers),
        under: FEW,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.deliver_to(0).unwrap();
    let client = rig.topology.client.clone();
    let mut kept = client.run(|| Ok(Kept::many(KEPT)?)).unwrap();
    assert_eq!(event(&rig, "accept_pauses") + event(&rig, "shed"), 0.0);

    // More come than there is room for: they wait until those have gone that nobody used.
    let load = Load {
        overlap: OVERLAP,
        timeout: patience(STEP),
        ..Load::new(VIP, HOST, REQUESTS)
    };
    let silent = client.run(|| Ok((0..SILENT).map(|_| Kept::open()).collect::<Vec<_>>()));
    let silent: std::io::Result<Vec<Kept>> = silent.unwrap().into_iter().collect();
    let silent = silent.unwrap();
    let begun = Instant::now();
    let tally = Tally::of(&rig.client.send(load).unwrap());
    println!("{} requests after {:?}: {tally}", REQUESTS, begun.elapsed());
    assert_eq!(
        (tally.status(200), tally.broken()),
        (REQUESTS, 0),
        "{tally}"
    );
    // They are closed in order: by now, or after the answer that they get.
    let idle = kept.iter_mut().map(|one| one.ask().unwrap());
    let idle: Vec<Asked> = idle.collect();
    let of = |asked: Asked| idle.iter().filter(|is| **is == asked).count();
    let (gone, last) = (of(Asked::Closed), of(Asked::Answered(200, false)));
    println!("of {KEPT} idle connections {gone} were closed, {last} with their next answer");
    assert!(gone + last > 0, "{:?}", idle.first());
    assert_eq!(gone + last + of(Asked::Answered(200, true)), KEPT);
    assert!(event(&rig, "shed") >= gone.max(1) as f64);
    assert!(event(&rig, "accept_pauses") > 0.0);
    assert_eq!(event(&rig, "accept_errors"), 0.0);
    assert_eq!(event(&rig, "upstream_connect_failures"), 0.0);

    // Afterwards all is as before.
    drop((kept, silent));
    eventually("room", patience(STEP), || {
        let mut kept = client.run(|| Ok(Kept::open()?))?;
        anyhow::ensure!(kept.ask()? == Asked::Answered(200, true), "not kept");
        Ok(())
    })
    .unwrap();
    let shed = event(&rig, "shed");
    drop(client.run(|| Ok(Kept::many(KEPT)?)).unwrap());
    assert_eq!(event(&rig, "shed"), shed);
}

#[test]
fn descriptors_with_one_worker() {
    with_few_descriptors(1);
}

#[test]
fn descriptors_with_two_workers() {
    with_few_descriptors(2);
}

#[test]
fn descriptors_with_four_workers() {
    with_few_descriptors(4);
}

/// Where the memory of the daemon is counted.
const GROUP: &str = "/sys/fs/cgroup/scarce";
/// Starts it in there.
const INSIDE: &[&str] = &[
    "sh",
    "-c",
    "echo $$ > /sys/fs/cgroup/scarce/cgroup.procs && exec \"$0\" \"$@\"",
];
/// Clients that begin requests and never end them.
const SLOW: usize = 600;
/// What each of them sends.
const BEGUN: usize = 12 << 10;

fn read(name: &str) -> String {
    fs::read_to_string(format!("{GROUP}/{name}")).unwrap()
}

/// A number of the group's, by its name in a file of many.
fn number(file: &str, name: &str) -> u64 {
    let text = read(file);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "limits a control group's memory: cargo xtask vm test"]
fn memory() {
    let enough = Rlimit {
        current: Some(4 * SLOW as u64),
        maximum: Some(4 * SLOW as u64),
    };
    setrlimit(Resource::Nofile, enough).unwrap();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").unwrap();
    fs::create_dir_all(GROUP).unwrap();
    let options = Options {
        nodes: 1,
        workers: Some(1),
        under: INSIDE,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.deliver_to(0).unwrap();
    let pid = rig.daemons[0].pid();
    let load = |count| Load {
        overlap: 10,
        timeout: 2 * STEP,
        ..Load::new(VIP, HOST, count)
    };
    let tally = Tally::of(&rig.client.send(load(500)).unwrap());
    assert_eq!((tally.status(200), tally.broken()), (500, 0), "{tally}");
    // A fifth more than it takes under this load, without what the kernel can take back.
    let files = number("memory.stat", "file ") - number("memory.stat", "shmem ");
    let held = read("memory.current").trim().parse::<u64>().unwrap() - files;
    let limit = held * 6 / 5;
    fs::write(format!("{GROUP}/memory.max"), limit.to_string()).unwrap();
    println!(
        "fact: KB that it takes, and may take = {}, {}",
        held >> 10,
        limit >> 10
    );

    let client = rig.topology.client.clone();
    let attack = || -> anyhow::Result<Vec<TcpStream>> {
        let begun = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx: {}", "x".repeat(BEGUN));
        let one = |_| {
            let mut stream = TcpStream::connect_timeout(&VIP.into(), STEP)?;
            stream.set_write_timeout(Some(STEP))?;
            stream.write_all(begun.as_bytes())?;
            Ok(stream)
        };
        (0..SLOW).map(one).collect()
    };
    let attackers = thread::scope(|scope| {
        let attackers = scope.spawn(|| client.run(attack).unwrap());
        attackers.join().unwrap()
    });
    println!(
        "fact: clients that begin and do not end = {}",
        attackers.len()
    );
    assert!(event(&rig, "accept_pauses") > 0.0);
    // What comes meanwhile waits, or is told to come later; nothing is reset.
    let begun = Instant::now();
    let tally = Tally::of(&rig.client.send(load(10)).unwrap());
    println!(
        "fact: requests meanwhile = {tally}, after {:.1?}",
        begun.elapsed()
    );
    let told = rig.daemons[0].log_tail();
    let events = ["downstream_connections", "header_timeouts", "accept_pauses"];
    let events = events.map(|name| (name, event(&rig, name)));
    let answered = tally.status(200) + tally.status(503);
    assert_eq!(answered, 10, "{tally}, {events:?}\n{told}");
    assert_eq!(
        number("memory.events", "oom_kill "),
        0,
        "{}",
        read("memory.events")
    );
    assert_eq!(rig.daemons[0].pid(), pid);
    assert_eq!(rig.daemons[0].readiness().unwrap().0, 200);

    drop(attackers);
    rest(Duration::from_secs(1));
    let tally = Tally::of(&rig.client.send(load(500)).unwrap());
    assert_eq!((tally.status(200), tally.broken()), (500, 0), "{tally}");
    println!(
        "fact: shed, pauses = {}, {}",
        event(&rig, "shed"),
        event(&rig, "accept_pauses")
    );
}
