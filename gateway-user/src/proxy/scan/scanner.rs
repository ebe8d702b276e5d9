//! The state machine over the bytes of one connection: head, body, next head.
//!
//! It owns no bytes. The caller keeps what is not yet passed and shows it again, with more behind it; the scanner
//! remembers how far it has looked, so that no byte of a head is searched twice.

use super::chunked::{Chunked, ChunkedStep};
use super::head::{Framing, Head, HeadStep};
use super::reason::{Reason, Refusal};

/// What a request may measure. The defaults are those of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest target, in bytes: 414 beyond.
    pub target: usize,
    /// Longest section of header fields with its line ends, in bytes: 431 beyond.
    pub header_bytes: usize,
    /// Most header fields: 431 beyond. hyper itself takes 100 at most unless told otherwise.
    pub header_fields: usize,
    /// Longest extension of one chunk, in bytes.
    pub chunk_extension: usize,
    /// All chunk extensions of one body, in bytes.
    pub chunk_extensions: usize,
    /// Longest trailer section, in bytes.
    pub trailer_bytes: usize,
    /// Most trailer fields.
    pub trailer_fields: usize,
    /// Whether bytes after a request with `Upgrade` are held until [`Scanner::resume`] or [`Scanner::tunnel`]. Without
    /// it they are scanned as the next request, which is right where nothing is ever upgraded.
    pub hold_upgrades: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            target: 8 * 1024,
            header_bytes: 32 * 1024,
            header_fields: 100,
            chunk_extension: 256,
            chunk_extensions: 16 * 1024,
            trailer_bytes: 8 * 1024,
            trailer_fields: 64,
            hold_upgrades: false,
        }
    }
}

/// Counts that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Admitted heads.
    pub heads: u64,
    /// Bytes of bodies with their chunk framing, over all requests.
    pub body_bytes: u64,
    /// Header fields dropped because of `_` in the name.
    pub dropped_fields: u64,
}

/// What is to be done after the bytes that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on: show the rest again with more bytes.
    More,
    /// The next head is refused; nothing passes any more. Nothing of it has passed.
    Refused(Refusal),
    /// The framing of the current body is broken; nothing passes any more. The body must not end as if it were complete.
    Broken(Refusal),
    /// A request asked for an upgrade; the rest waits for [`Scanner::resume`] or [`Scanner::tunnel`].
    Hold,
}

/// The outcome of one look at the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sifted {
    /// `bytes[..passed]` may go on.
    pub passed: usize,
    /// `bytes[rest..]` is to be kept and shown again; what lies between has been dropped.
    pub rest: usize,
    /// What comes next.
    pub verdict: Verdict,
}

#[derive(Debug)]
enum State {
    Head,
    /// This many bytes of the body are to come.
    Length(u64),
    Chunked(Chunked),
    Hold,
    Tunnel,
    Ended(Verdict),
}

/// What the front of the bytes is.
enum Step {
    /// Drop so many bytes, then pass so many.
    Take { drop: usize, pass: usize },
    /// Nothing can be said without more bytes.
    More,
    /// End of the connection as far as requests go, or a pause.
    Stop(Verdict),
}

/// Scans the requests of one HTTP/1 connection.
#[derive(Debug)]
pub struct Scanner {
    limits: Limits,
    state: State,
    head: Head,
    progress: Progress,
}

impl Scanner {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Head,
            head: Head::default(),
            progress: Progress::default(),
        }
    }

    /// Looks at all bytes that have not passed yet (those it was shown before first), moves the ones that may go on to the
    /// front and says how many they are.
    pub fn sift(&mut self, bytes: &mut [u8]) -> Sifted {
        let mut passed = 0;
        let mut rest = 0;
        let verdict = loop {
            match self.step(&mut bytes[rest..]) {
                Step::Take { drop, pass } => {
                    let from = rest + drop;
                    if from != passed {
                        bytes.copy_within(from..from + pass, passed);
                    }
                    passed += pass;
                    rest = from + pass;
                }
                Step::More => break Verdict::More,
                Step::Stop(verdict) => break verdict,
            }
        };
        Sifted {
            passed,
            rest,
            verdict,
        }
    }

    /// What has been seen so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether the next byte would be the first of a head.
    #[must_use]
    pub fn at_head(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Takes what was held after an upgrade request as the next request.
    pub fn resume(&mut self) {
        if matches!(self.state, State::Hold) {
            self.state = State::Head;
        }
    }

    /// Lets everything pass unseen from here on, after a 101.
    pub fn tunnel(&mut self) {
        if matches!(self.state, State::Hold) {
            self.state = State::Tunnel;
        }
    }

    fn step(&mut self, bytes: &mut [u8]) -> Step {
        match &mut self.state {
            State::Head => self.step_head(bytes),
            State::Length(_) | State::Chunked(_) | State::Tunnel if bytes.is_empty() => Step::More,
            State::Length(left) => {
                let pass = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= pass as u64;
                self.progress.body_bytes += pass as u64;
                if *left == 0 {
                    self.end_of_message();
                }
                Step::Take { drop: 0, pass }
            }
            State::Chunked(chunked) => match chunked.step(&self.limits, bytes) {
                ChunkedStep::Pass(pass) => {
                    self.progress.body_bytes += pass as u64;
                    if chunked.is_end() {
                        self.end_of_message();
                    }
                    Step::Take { drop: 0, pass }
                }
                ChunkedStep::More => Step::More,
                ChunkedStep::Broken(reason) => self.end(Verdict::Broken(Refusal { reason })),
            },
            State::Hold => Step::Stop(Verdict::Hold),
            State::Tunnel => Step::Take {
                drop: 0,
                pass: bytes.len(),
            },
            State::Ended(verdict) => Step::Stop(*verdict),
        }
    }

    fn step_head(&mut self, bytes: &mut [u8]) -> Step {
        match self.head.scan(&self.limits, bytes) {
            HeadStep::More => Step::More,
            HeadStep::Refused(reason) => self.refuse(reason),
            HeadStep::Whole {
                drop,
                pass,
                framing,
            } => {
                self.progress.heads += 1;
                self.progress.dropped_fields += self.head.dropped_fields;
                match framing {
                    Framing::None => self.end_of_message(),
                    Framing::Length(length) => self.state = State::Length(length),
                    Framing::Chunked => self.state = State::Chunked(Chunked::default()),
                }
                Step::Take { drop, pass }
            }
        }
    }

    fn end_of_message(&mut self) {
        let hold = self.limits.hold_upgrades && self.head.upgrade;
        self.state = if hold { State::Hold } else { State::Head };
        self.head = Head::default();
    }

    fn refuse(&mut self, reason: Reason) -> Step {
        self.end(Verdict::Refused(Refusal { reason }))
    }

    fn end(&mut self, verdict: Verdict) -> Step {
        self.state = State::Ended(verdict);
        Step::Stop(verdict)
    }
}
