//! Five real nodes under load: a thousand connections with requests, and plain packets of the same connections.
//!
//! Nothing that an operator does in an orderly way breaks a connection, and no packet is lost where a program is replaced.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use gateway_tests::demo::Table;
use gateway_tests::eventually::{eventually, throughout};
use gateway_tests::fixture::{HOST, ReplicaState};
use gateway_tests::leftovers::Ledger;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::sustained::{Packets, Seen, Shape, Sustained};
use gateway_tests::topology::{CLIENT, UPLINK};
use gateway_tests::wire;
use gateway_user::datapath::{Agent, AgentSettings, AttachMode, ForwardMode, object, pins};

/// Connections that are open all the time.
const CONNECTIONS: usize = 1_000;

/// Requests a second of all of them: what two cores carry in an unoptimised build, beside the packets.
const REQUESTS: u32 = 500;

/// Plain packets a second.
pub(crate) const PACKETS: u32 = 20_000;

/// Times that the programs of a node are replaced.
const REPLACEMENTS: u32 = 100;

pub(crate) struct Loaded {
    pub(crate) rig: Rig,
    pub(crate) load: Sustained,
    pub(crate) packets: Packets,
    table: Table,
}

impl Loaded {
    pub(crate) fn start() -> Result<Self> {
        let options = Options {
            nodes: 5,
            drain_timeout: Duration::from_secs(20),
            workers: Some(1),
            ..Options::default()
        };
        let rig = Rig::start(Ledger::open()?, &options)?;
        without_limits(&rig)?;
        rig.ask_the_link()?;
        let shape = Shape {
            target: VIP,
            host: HOST,
            connections: CONNECTIONS,
            rate: REQUESTS,
        };
        let client = &rig.topology.client;
        let load = Sustained::start(client, CLIENT, shape)?;
        eventually("open connections", Duration::from_secs(15), || {
            ensure!(load.open() == CONNECTIONS, "{}", load.open());
            Ok(())
        })
        .with_context(|| format!("{:?}", load.take()))?;
        let packets = load.packets(client, PACKETS)?;
        let table = Table::new([
            "while",
            "seconds",
            "opened",
            "ended in order",
            "answered",
            "refused",
            "reset",
            "timed out",
            "cut off",
            "slowest answer",
            "packets/s",
        ]);
        let mut loaded = Self {
            rig,
            load,
            packets,
            table,
        };
        loaded.act("nothing happens", |_| {
            throughout("nothing", Duration::from_secs(3), || Ok(()))
        })?;
        Ok(loaded)
    }

    /// Does something under the load; what the load saw of it is a row of the table.
    fn act(&mut self, what: &str, work: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
        self.rig.backends.forget_all();
        drop(self.load.take());
        let (begun, sent) = (Instant::now(), self.packets.sent());
        work(&mut self.rig).with_context(|| what.to_owned())?;
        let seconds = begun.elapsed().as_secs_f64();
        let rate = (self.packets.sent() - sent) as f64 / seconds;
        let seen = self.load.take();
        self.row(what, seconds, rate, &seen);
        for (port, how) in &seen.broken {
            tell(&self.rig, *port, how);
        }
        judge(what, &seen)?;
        eventually("all connections again", Duration::from_secs(10), || {
            ensure!(self.load.open() > CONNECTIONS - 20, "{}", self.load.open());
            Ok(())
        })
    }

    fn row(&mut self, what: &str, seconds: f64, rate: f64, seen: &Seen) {
        let tally = &seen.tally;
        self.table.row([
            what.to_owned(),
            format!("{seconds:.1}"),
            seen.opened.to_string(),
            seen.ended.to_string(),
            tally.status(200).to_string(),
            tally.refused.to_string(),
            tally.reset.to_string(),
            tally.timed_out.to_string(),
            tally.cut_off.to_string(),
            format!("{:.0?}", seen.slowest),
            format!("{rate:.0}"),
        ]);
    }
}

/// What the nodes and the client know of a connection that is broken.
pub(crate) fn tell(rig: &Rig, port: u16, how: &str) {
    println!("port {port}: {how}");
    let topology = &rig.topology;
    let nodes = topology.nodes.iter().map(|site| &site.netns);
    for netns in nodes.chain([&topology.client]) {
        let mut command = Command::new("ss");
        command.args(["-Htano"]);
        let Ok(done) = netns.output(&mut command) else {
            continue;
        };
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let its = format!(":{port} ");
        for line in text.lines().filter(|line| line.contains(&its)) {
            println!("  {}: {line}", netns.name());
        }
    }
}

/// Every answer is 200 and nothing is broken.
fn judge(what: &str, seen: &Seen) -> Result<()> {
    let tally = &seen.tally;
    let answers: usize = tally.answers.values().sum();
    ensure!(
        tally.broken() == 0 && tally.status(200) == answers && answers > 0,
        "{what}: {tally}"
    );
    Ok(())
}

/// The quick start's limits are for its own lesson.
fn without_limits(rig: &Rig) -> Result<()> {
    for (limit, value) in [
        ("maxConnections", 100),
        ("http1MaxPendingRequests", 50),
        ("http2MaxRequests", 100),
        ("maxRequestsPerConnection", 2),
    ] {
        let line = format!("{limit}: {value}");
        rig.fixture
            .replace("destination-rules.yaml", &line, &format!("{limit}: 5000"))?;
    }
    Ok(())
}

/// As Kubernetes restarts a pod: its endpoint terminates while it gets its signal, and the next one comes.
fn restart(rig: &mut Rig, index: usize) -> Result<()> {
    rig.mark(index, ReplicaState::Draining)?;
    rig.leave(index)?;
    rig.come_back(index)?;
    rig.wait_agreed()
}

#[test]
fn no_connection_breaks_under_load_while_five_nodes_come_and_go() {
    let mut loaded = Loaded::start().unwrap();
    let done = come_and_go(&mut loaded);
    print!("{}", loaded.table);
    done.unwrap();
    let Loaded { load, packets, .. } = loaded;
    let (sent, rate) = packets.stop().unwrap();
    println!("{sent} plain packets, {rate:.0} a second, over {CONNECTIONS} connections");
    judge("the end", &load.stop().unwrap()).unwrap();
}

fn come_and_go(loaded: &mut Loaded) -> Result<()> {
    let announcer = loaded.rig.announcer()?;
    let other = (announcer + 2) % loaded.rig.daemons.len();
    loaded.act("a node drains and leaves", |rig| {
        rig.mark(other, ReplicaState::Draining)?;
        rig.wait_drained(other)?;
        rig.leave(other)
    })?;
    loaded.act("a node joins", |rig| {
        rig.come_back(other)?;
        rig.wait_agreed()
    })?;
    loaded.act("the announcer leaves and comes back", |rig| {
        restart(rig, announcer)
    })?;
    for index in 0..loaded.rig.daemons.len() {
        let name = loaded.rig.topology.nodes[index].name.clone();
        loaded.act(&format!("{name} restarts"), |rig| restart(rig, index))?;
    }
    loaded.act("programs are replaced", |rig| {
        let announcer = rig.announcer()?;
        replace(rig, announcer, REPLACEMENTS).map(drop)
    })
}

/// Replaces the program of a node's uplink: by opening its datapath, as a new version of the daemon would, and in place
/// between two programs that are loaded already, as often as the rest of `times` says.
fn replace(rig: &Rig, index: usize, times: u32) -> Result<Duration> {
    const OPENED: u32 = 3;
    let daemon = &rig.daemons[index];
    let settings = AgentSettings {
        interfaces: vec![UPLINK.to_owned()],
        mode: AttachMode::Native,
        bpffs: daemon.bpffs().to_owned(),
        forward: ForwardMode::Auto,
        probe_port: 17_411,
    };
    let pins = pins::directory(daemon.bpffs());
    let link = pins.join(format!("link-xdp-{UPLINK}-native"));
    let begun = Instant::now();
    daemon.site().netns.run(|| {
        for _ in 0..OPENED {
            drop(Agent::with_object(&settings, object::embedded()?)?);
        }
        let mut objects = [load_object(&pins)?, load_object(&pins)?];
        for turn in OPENED..times {
            let object = &mut objects[turn as usize % 2];
            let program = object.program_mut("forebay_xdp").context("no program")?;
            let program: &mut Xdp = program.try_into()?;
            let attached = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(&link)?))?;
            program.attach_to_link(attached)?;
            // A few hundred packets meet each of them.
            throughout("a program", Duration::from_millis(20), || Ok(()))?;
        }
        drop(Agent::with_object(&settings, object::embedded()?)?);
        Ok(())
    })?;
    Ok(begun.elapsed())
}

/// Counts marked packets on every node.
pub(crate) fn count(rig: &Rig) -> Result<()> {
    let mut nodes = rig.topology.nodes.iter();
    nodes.try_for_each(|site| wire::count_marked(&site.netns))
}

/// Marked packets that came to the stacks of all nodes.
pub(crate) fn counted(rig: &Rig) -> Result<u64> {
    let nodes = rig.topology.nodes.iter();
    nodes.map(|site| wire::marked(&site.netns)).sum()
}

/// Every marked packet came, but for those that the links had no room for. Requests run beside them, so that some of what
/// found no room may have been theirs: with room for all, this is exact.
pub(crate) fn accounted(sent: u64, arrived: u64, no_room: u64, what: &str) {
    assert!(arrived <= sent, "{what}: {arrived} arrived of {sent}");
    let lost = sent - arrived;
    assert!(
        lost <= no_room,
        "{what}: {lost} of {sent} lost, and the links had no room for {no_room}"
    );
    assert!(no_room * 1_000 <= sent, "the test loses packets itself");
}

/// Packets that the links of the test had no room for.
pub(crate) fn no_room(rig: &Rig) -> Result<u64> {
    let nodes = rig.topology.nodes.iter().map(|site| &site.netns);
    let all = nodes.chain([&rig.topology.client, &rig.topology.switch]);
    all.map(wire::dropped).sum()
}

/// The object over a node's own maps, its XDP program loaded.
fn load_object(pins: &Path) -> Result<Ebpf> {
    let mut object = object::load(pins, object::embedded()?)?;
    let program = object.program_mut("forebay_xdp").context("no program")?;
    let program: &mut Xdp = program.try_into()?;
    program.load()?;
    Ok(object)
}

#[test]
fn no_packet_is_lost_while_programs_are_replaced() {
    let loaded = Loaded::start().unwrap();
    let Loaded {
        mut rig,
        load,
        packets,
        ..
    } = loaded;
    packets.stop().unwrap();
    count(&rig).unwrap();
    drop(load.take());
    let announcer = rig.announcer().unwrap();
    let before = no_room(&rig).unwrap();
    // Packets of the stream before may still have come after the counters were made.
    let earlier = counted(&rig).unwrap();
    let packets = load.packets(&rig.topology.client, PACKETS).unwrap();
    let took = replace(&rig, announcer, REPLACEMENTS).unwrap();
    let (sent, rate) = packets.stop().unwrap();
    eventually("the last packets", Duration::from_secs(2), || {
        let arrived = counted(&rig)? - earlier;
        ensure!(arrived >= sent, "{arrived} of {sent}");
        Ok(())
    })
    .ok();
    let (arrived, no_room) = (
        counted(&rig).unwrap() - earlier,
        no_room(&rig).unwrap() - before,
    );
    println!(
        "{REPLACEMENTS} replacements in {took:?}: {sent} packets, {rate:.0} a second, {arrived} arrived, the links had no room for {no_room}"
    );
    accounted(sent, arrived, no_room, "replacements");
    judge("replacements", &load.stop().unwrap()).unwrap();
    rig.daemons.clear();
}
