//! What is done to a machine and its cards, and how a daemon and a client go on meanwhile.

use std::io::{Error, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gateway_tests::soak::course::SetAtEnd;
use gateway_tests::stalls::Stalls;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

/// A virtual machine's drivers of cards.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
/// Where memory is filled.
const FILL: &str = "/fill";
/// Longest time of one try of a client.
const TRY: Duration = Duration::from_millis(250);

/// A node whose driver is ticked all the time, as the daemon does.
pub(super) struct Live {
    node: Mutex<Node>,
    /// What ticks said that failed; the daemon logs that and goes on.
    said: Mutex<BTreeSet<String>>,
}

impl Live {
    pub(super) fn new(node: Node) -> Self {
        Self {
            node: Mutex::new(node),
            said: Mutex::default(),
        }
    }

    /// Ticks while `work` is done.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = SetAtEnd(&stop);
            scope.spawn(|| self.tick(&stop));
            work()
        })
    }

    fn tick(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut node = self.node();
            let ticked = node.driver.is_some().then(|| {
                node.with(|driver| {
                    let now = Instant::now();
                    let due = driver.next_tick() <= now;
                    due.then(|| driver.tick(now).map_err(|error| error.to_string()))
                })
            });
            drop(node);
            let ticked = ticked.flatten();
            if let Some(Err(sentence)) = ticked {
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                said.insert(sentence);
            }
            rest(Duration::from_millis(20));
        }
    }

    /// The node, between two ticks.
    pub(super) fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the status says of the uplink.
    pub(super) fn uplink(&self) -> Attachment {
        machine::attachment(&mut self.node())
    }

    /// Waits until the status says of the uplink what is looked for.
    pub(super) fn until(&self, what: &str, is_it: impl Fn(&Attachment) -> bool) -> Attachment {
        let begun = Instant::now();
        loop {
            let uplink = self.uplink();
            if is_it(&uplink) {
                return uplink;
            }
            let said = self.said();
            assert!(
                begun.elapsed() < PATIENCE,
                "not {what}: {uplink:?}, {said:?}"
            );
            rest(Duration::from_millis(50));
        }
    }

    /// What failed so far in ticks, a sentence each.
    pub(super) fn said(&self) -> BTreeSet<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }
}

/// A connection that is kept open.
pub(super) struct Talk {
    stream: TcpStream,
    said: u32,
}

impl Talk {
    pub(super) fn open(client: &Namespace, vip: &str) -> Self {
        let mut stream = client.connect(vip).unwrap();
        assert_eq!(line(&mut stream), "hello from one");
        Self { stream, said: 0 }
    }

    /// Says something new, which may be on its way for long.
    pub(super) fn say(&mut self) {
        self.said += 1;
        writeln!(self.stream, "word {}", self.said).unwrap();
    }

    /// Waits for the last thing said to come back.
    pub(super) fn hear(&mut self) {
        let heard = line(&mut self.stream);
        assert_eq!(heard, format!("word {}", self.said), "what comes back");
    }
}

/// One request of a client, with little patience: who answered.
pub(super) fn ask(client: &Namespace, vip: &str) -> Result<String> {
    let to: SocketAddr = vip.parse().map_err(Error::other)?;
    let stream = client.enter(|| TcpStream::connect_timeout(&to, TRY))?;
    stream.set_read_timeout(Some(TRY))?;
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line)?;
    if read == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// How long it takes until a new connection is served, less what this machine had no time for, and how many tries failed.
pub(super) fn served_again(client: &Namespace, vip: &str) -> (Duration, u32) {
    let stalls = Stalls::watch().unwrap();
    let begun = Instant::now();
    let mut failed = 0;
    loop {
        match ask(client, vip) {
            Ok(answer) => {
                assert_eq!(answer, "hello from one");
                let took = begun.elapsed();
                return (took.saturating_sub(stalls.allowance(begun)), failed);
            }
            Err(error) => {
                let elapsed = begun.elapsed();
                assert!(
                    elapsed < 4 * PATIENCE,
                    "not served after {elapsed:?}: {error}"
                );
                failed += 1;
            }
        }
    }
}

/// What a card is to the bus; asked while it is in the first namespace.
pub(super) fn device_of(card: &str) -> String {
    let path = std::fs::canonicalize(format!("/sys/class/net/{card}/device")).unwrap();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Takes the driver off a card: its interface goes.
pub(super) fn unbind(device: &str) {
    std::fs::write(format!("{DRIVER}/unbind"), device).unwrap();
}

/// Gives the card its driver again: an interface comes to the first namespace.
pub(super) fn bind(device: &str) {
    std::fs::write(format!("{DRIVER}/bind"), device).unwrap();
}

/// Runs a command inside that may be refused: what it says then.
pub(super) fn attempt(namespace: &Namespace, command: &str) -> std::result::Result<(), String> {
    let place = format!("--net=/run/netns/{}", namespace.0);
    let mut nsenter = Command::new("nsenter");
    let output = nsenter.args([&*place, "sh", "-c", command]).output();
    let output = output.unwrap();
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Megabytes that the kernel says could still be had.
pub(super) fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse::<u64>().unwrap() >> 10
}

/// Memory that is taken from everybody while this lives: files in memory, without swap.
pub(super) struct Filled;

impl Filled {
    /// Takes all but so many megabytes.
    pub(super) fn all_but(megabytes: u64) -> Self {
        std::fs::create_dir_all(FILL).unwrap();
        let size = c"size=100%";
        mount("tmpfs", FILL, "tmpfs", MountFlags::empty(), Some(size)).unwrap();
        let filled = Self;
        let mut file = File::create(format!("{FILL}/it")).unwrap();
        let chunk = vec![1; 1 << 20];
        while available() > megabytes {
            if let Err(error) = file.write_all(&chunk) {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                break;
            }
        }
        filled
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // What cannot be given back goes with the machine.
        drop(std::fs::remove_file(format!("{FILL}/it")));
        let _gone = unmount(FILL, UnmountFlags::DETACH);
    }
}
