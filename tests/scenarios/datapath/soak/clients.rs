//! Clients that ask all the time, and some that keep their connections.

use std::io::Result;

use gateway_tests::soak::history::{Outcome, Request};

use super::*;

/// What a client gives a connection: a SYN may be lost and sent again, a second later.
const TRY: Duration = Duration::from_secs(2);
/// Longest time for a word on a connection that is kept: it is sent again ever more seldom while a fault lasts.
const WORD: Duration = Duration::from_secs(20);
/// Connections that are kept open to each VIP.
const KEPT: usize = 4;
/// How often somebody looks whether there is time, and what is none: a proxy that does not beat for 300 ms is held for dead.
const LOOK: Duration = Duration::from_millis(50);
const STALL: Duration = Duration::from_millis(150);
const VIPS: [&str; 2] = [VIP_A, VIP_B];

/// See the module.
pub(super) struct Clients<'a> {
    namespace: &'a Namespace,
    begun: Instant,
    stop: AtomicBool,
    requests: Mutex<Vec<Request>>,
    words: Mutex<u64>,
    broken: Mutex<Vec<String>>,
    stalls: Mutex<Vec<Window>>,
}

impl<'a> Clients<'a> {
    pub(super) fn new(namespace: &'a Namespace) -> Self {
        Self {
            namespace,
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            requests: Mutex::default(),
            words: Mutex::default(),
            broken: Mutex::default(),
            stalls: Mutex::default(),
        }
    }

    /// Time since the begin of the run.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Lets time pass.
    pub(super) fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
    }

    /// Asks while `work` is done.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let _end = SetAtEnd(&self.stop);
            for vip in VIPS {
                for _ in 0..2 {
                    scope.spawn(|| self.inside(|| self.ask(vip)));
                }
                scope.spawn(|| self.inside(|| self.keep(vip)));
            }
            scope.spawn(|| self.look());
            work()
        })
    }

    /// In the clients' network namespace.
    fn inside(&self, work: impl FnOnce()) {
        let file = File::open(format!("/run/netns/{}", self.namespace.0)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sees when nobody has time.
    fn look(&self) {
        let mut last = self.now();
        while !self.stopped() {
            thread::park_timeout(LOOK);
            let now = self.now();
            if now - last > LOOK + STALL {
                held(&self.stalls).push(Window {
                    fault: Fault::Stall,
                    begin: last,
                    heal: now,
                });
            }
            last = now;
        }
    }

    /// The times in which nobody had any.
    pub(super) fn stalls(&self) -> Vec<Window> {
        std::mem::take(&mut *held(&self.stalls))
    }

    fn ask(&self, vip: &'static str) {
        let mut number = 0_u32;
        while !self.stopped() {
            number += 1;
            let nonce = format!("{:?} {number}", thread::current().id());
            let begin = self.now();
            let mut doing = "connecting";
            let outcome = match exchange(vip, &nonce, &mut doing) {
                Ok((greeting, echo)) => judged(vip, &greeting, echo == nonce),
                Err(error) => Outcome::of(&error),
            };
            let end = self.now();
            let request = Request {
                vip,
                begin,
                end,
                outcome,
                doing,
            };
            held(&self.requests).push(request);
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Keeps some connections: no fault may break them.
    fn keep(&self, vip: &'static str) {
        let opened = (0..KEPT)
            .map(|_| Talk::new(vip))
            .collect::<Result<Vec<_>>>();
        let mut talks = match opened {
            Ok(talks) => talks,
            Err(error) => {
                held(&self.broken).push(format!("no connection to {vip} at the start: {error}"));
                return;
            }
        };
        while !self.stopped() {
            let begin = self.now().as_secs_f64();
            for talk in &mut talks {
                match talk.word() {
                    Ok(()) => *held(&self.words) += 1,
                    Err(error) => {
                        let end = self.now().as_secs_f64();
                        held(&self.broken).push(format!(
                            "an open connection to {vip} ({}) broke between {begin:.3} s and {end:.3} s: {error}",
                            talk.greeting
                        ));
                        return;
                    }
                }
            }
            thread::park_timeout(Duration::from_millis(200));
        }
    }

    /// What the history takes of the memory, in KB.
    pub(super) fn kilobytes(&self) -> u64 {
        ((held(&self.requests).len() * size_of::<Request>()) >> 10) as u64
    }

    /// All that they saw: requests, words on kept connections, and what broke.
    pub(super) fn end(&self) -> (Vec<Request>, u64, Vec<String>) {
        (
            std::mem::take(&mut *held(&self.requests)),
            *held(&self.words),
            std::mem::take(&mut *held(&self.broken)),
        )
    }
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who may answer at a VIP says so in its greeting.
fn judged(vip: &str, greeting: &str, echoed: bool) -> Outcome {
    let name = match (vip == VIP_B, greeting.strip_suffix(" for b")) {
        (true, Some(start)) => Some(start),
        (false, None) => Some(greeting),
        _ => None,
    };
    let name = name.and_then(|start| start.strip_prefix("hello from "));
    match name {
        Some("one") if echoed => Outcome::Answered("one"),
        Some("two") if echoed => Outcome::Answered("two"),
        Some(_) if !echoed => Outcome::Wrong(format!("{greeting}, and not what was said")),
        _ => Outcome::Wrong(greeting.to_owned()),
    }
}

fn reader(vip: &str, patience: Duration) -> Result<BufReader<TcpStream>> {
    let to: SocketAddr = vip.parse().unwrap();
    let stream = TcpStream::connect_timeout(&to, TRY)?;
    stream.set_read_timeout(Some(patience))?;
    Ok(BufReader::new(stream))
}

fn read(reader: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// One connection: the greeting and what comes back of `nonce`; and how far it came.
fn exchange(vip: &str, nonce: &str, doing: &mut &'static str) -> Result<(String, String)> {
    let mut reader = reader(vip, TRY)?;
    *doing = "waiting for the greeting";
    let greeting = read(&mut reader)?;
    writeln!(reader.get_mut(), "{nonce}")?;
    *doing = "waiting for its words";
    let echo = read(&mut reader)?;
    Ok((greeting, echo))
}

struct Talk {
    reader: BufReader<TcpStream>,
    greeting: String,
    said: u64,
}

impl Talk {
    fn new(vip: &str) -> Result<Self> {
        let mut reader = reader(vip, WORD)?;
        let greeting = read(&mut reader)?;
        Ok(Self {
            reader,
            greeting,
            said: 0,
        })
    }

    /// Says a word and hears it.
    fn word(&mut self) -> Result<()> {
        self.said += 1;
        let word = format!("word {}", self.said);
        writeln!(self.reader.get_mut(), "{word}")?;
        let heard = read(&mut self.reader)?;
        if heard == word {
            return Ok(());
        }
        let text = format!("{heard} came back for {word}");
        Err(std::io::Error::other(text))
    }
}
