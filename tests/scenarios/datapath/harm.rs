//! What is done to a machine and its cards, and how a daemon and a client go on meanwhile.

use std::io::{Error, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gateway_tests::soak::course::SetAtEnd;
use gateway_tests::stalls::Stalls;

use super::*;

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
