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
const VIPS: [&str; 2] = [VIP_A, VIP_B];

/// See the module.
pub(super) struct Clients<'a> {
    namespace: &'a Namespace,
    course: &'a Course,
    words: Mutex<u64>,
    broken: Mutex<Vec<Broken>>,
}

/// A connection that was kept open and broke.
pub(super) struct Broken {
    /// When it was well last.
    begin: Duration,
    end: Duration,
    why: String,
}

impl Broken {
    /// Whether it broke while this lasted, or in the `grace` after.
    pub(super) fn is_of(&self, window: &Window, grace: Duration) -> bool {
        self.end >= window.begin && self.begin <= window.heal + grace
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (begin, end) = (self.begin.as_secs_f64(), self.end.as_secs_f64());
        write!(out, "{} between {begin:.3} s and {end:.3} s", self.why)
    }
}

impl<'a> Clients<'a> {
    pub(super) fn new(namespace: &'a Namespace, course: &'a Course) -> Self {
        Self {
            namespace,
            course,
            words: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    /// Asks while `work` is done.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            for vip in VIPS {
                for _ in 0..2 {
                    scope.spawn(move || self.inside(|| self.ask(vip)));
                }
                scope.spawn(move || self.inside(|| self.keep(vip)));
            }
            self.course.run(work)
        })
    }

    /// In the clients' network namespace.
    fn inside(&self, work: impl FnOnce()) {
        let file = File::open(format!("/run/netns/{}", self.namespace.0)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work();
    }

    fn ask(&self, vip: &'static str) {
        let mut number = 0_u32;
        while !self.course.stopped() {
            number += 1;
            let nonce = format!("{:?} {number}", thread::current().id());
            let begin = self.course.now();
            let mut doing = "connecting";
            let outcome = match exchange(vip, &nonce, &mut doing) {
                Ok((greeting, echo)) => judged(vip, &greeting, echo == nonce),
                Err(error) => Outcome::of(&error),
            };
            let end = self.course.now();
            let request = Request {
                vip,
                begin,
                end,
                outcome,
                doing,
            };
            self.course.note(request);
            rest(Duration::from_millis(20));
        }
    }

    /// Keeps some connections; one that breaks is opened anew.
    fn keep(&self, vip: &'static str) {
        let mut talks: Vec<Option<Talk>> = (0..KEPT).map(|_| None).collect();
        while !self.course.stopped() {
            for talk in &mut talks {
                let begin = self.course.now();
                let Some(open) = talk else {
                    // That there is none is told by those who ask.
                    *talk = Talk::new(vip).ok();
                    continue;
                };
                match open.word() {
                    Ok(()) => *held(&self.words) += 1,
                    Err(error) => {
                        let why = format!(
                            "an open connection to {vip} ({}) broke: {error}",
                            open.greeting
                        );
                        let end = self.course.now();
                        held(&self.broken).push(Broken { begin, end, why });
                        *talk = None;
                    }
                }
            }
            rest(Duration::from_millis(200));
        }
    }

    /// Words on kept connections, and those that broke.
    pub(super) fn end(&self) -> (u64, Vec<Broken>) {
        (*held(&self.words), std::mem::take(&mut *held(&self.broken)))
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
