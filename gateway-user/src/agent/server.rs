//! The agent's socket: who may connect, one `run` at a time, one request after the other.
//!
//! A thread of its own waits for the socket, the peer, the end and the clock at once; it never waits for a peer alone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;

use super::limit::Bucket;
use super::message::{Hello, Refusal, RefusalKind, Reply, Request};
use super::session::{Answer, Session};
use super::wire::{self, Progress, Reader};
use crate::datapath::{PeerCredentials, peer_credentials};

/// Longest time until a peer has said hello, and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest pause without a look at the clock.
const TICK: Duration = Duration::from_secs(1);

/// Who may connect. The agent's own user and root always may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// `--allow-uid`.
    pub uids: Vec<u32>,
    /// `--allow-gid`: the peer's first group.
    pub gids: Vec<u32>,
}

impl Peers {
    /// Whether a process with these identities may connect.
    #[must_use]
    pub fn allow(&self, own_uid: u32, uid: u32, gid: u32) -> bool {
        uid == 0 || uid == own_uid || self.uids.contains(&uid) || self.gids.contains(&gid)
    }

    /// Whether others than the agent's own user have to reach the socket.
    fn open_to_others(&self) -> bool {
        !self.uids.is_empty() || !self.gids.is_empty()
    }
}

/// A connected process.
#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    reader: Reader,
    /// None in another PID namespace.
    pid: Option<i32>,
    uid: u32,
    since: Instant,
    greeted: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    socket: PathBuf,
    peers: Peers,
    session: Session,
    stop: UnixStream,
    peer: Option<Peer>,
    keep: Duration,
    /// When the listening sockets that are left are given up.
    abandon_at: Option<Instant>,
    warnings: Bucket,
}

impl Server {
    /// Opens the socket. A left-over one of an agent that is gone is replaced, a live one is not. The server ends
    /// when the other end of `stop` is closed.
    ///
    /// # Errors
    /// What the system says of the path.
    pub fn bind(
        socket: &Path,
        peers: Peers,
        keep: Duration,
        stop: UnixStream,
        session: Session,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let listener = match UnixListener::bind(socket) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(socket).is_ok() {
                    return Err(error);
                }
                std::fs::remove_file(socket)?;
                UnixListener::bind(socket)?
            }
            other => other?,
        };
        // Others may knock; who they are decides.
        let mode = if peers.open_to_others() { 0o666 } else { 0o600 };
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            socket: socket.to_owned(),
            peers,
            session,
            stop,
            peer: None,
            keep,
            abandon_at: Some(now + keep),
            warnings: Bucket::new(20, Duration::from_secs(1), now),
        })
    }

    /// Serves until told to stop. Whatever is in the kernel stays as it is.
    ///
    /// # Errors
    /// The system cannot wait any more.
    pub fn serve(mut self) -> io::Result<()> {
        loop {
            let (stop, knocks, speaks) = self.wait()?;
            if stop {
                // Fails only if somebody has removed it already.
                drop(std::fs::remove_file(&self.socket));
                return Ok(());
            }
            let now = Instant::now();
            if speaks {
                self.listen_to_peer(now);
            }
            if knocks {
                self.accept(now);
            }
            self.look_at_the_clock(Instant::now());
        }
    }

    fn wait(&self) -> io::Result<(bool, bool, bool)> {
        let now = Instant::now();
        let hello = self.peer.as_ref().filter(|peer| !peer.greeted);
        let deadlines = [
            hello.map(|peer| peer.since + PATIENCE),
            self.abandon_at,
            self.session.next_look(now),
        ];
        let timeout = deadlines
            .into_iter()
            .flatten()
            .map(|at| at.saturating_duration_since(now))
            .fold(TICK, Duration::min);
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let mut waiting = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        waiting.extend(
            self.peer
                .iter()
                .map(|peer| PollFd::new(&peer.stream, PollFlags::IN)),
        );
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let has = |at: usize| waiting.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok((has(0), has(1), has(2)))
    }

    fn accept(&mut self, now: Instant) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock && self.warnings.take(1, now) {
                    tracing::warn!(%error, "a connection to the agent cannot be accepted");
                }
                return;
            }
        };
        if let Err(refusal) = self.admit(&stream, now) {
            if self.warnings.take(1, now) {
                tracing::warn!("a connection is refused: {refusal}");
            }
            // It may be gone already.
            drop(stream.set_nonblocking(true));
            drop(say(&stream, &Reply::Refused(refusal).into()));
        }
    }

    fn admit(&mut self, stream: &UnixStream, now: Instant) -> Result<(), Refusal> {
        let failed = |error: io::Error| Refusal::new(RefusalKind::Failed, error.to_string());
        let PeerCredentials { pid, uid, gid } = peer_credentials(stream).map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        if !self.peers.allow(own, uid, gid) {
            return Err(Refusal::new(
                RefusalKind::Stranger,
                format!(
                    "user {uid} (group {gid}) may not use this agent: start it with --allow-uid {uid} or --allow-gid {gid}"
                ),
            ));
        }
        if let Some(other) = &self.peer {
            let process = match other.pid {
                Some(pid) => format!("process {pid}"),
                None => "a process of another container".to_owned(),
            };
            return Err(Refusal::new(
                RefusalKind::Busy,
                format!(
                    "{process} uses this agent already: stop it, there is one `forebay run` for an agent"
                ),
            ));
        }
        let stream = stream.try_clone().map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        self.peer = Some(Peer {
            stream,
            reader: Reader::default(),
            pid,
            uid,
            since: now,
            greeted: false,
        });
        Ok(())
    }

    /// Takes one request, if one is whole.
    fn listen_to_peer(&mut self, now: Instant) {
        let Some(peer) = &mut self.peer else { return };
        let frame = match peer.reader.read(&peer.stream, RecvFlags::DONTWAIT) {
            Ok(Progress::Frame(frame)) => frame,
            Ok(Progress::Waiting) => return,
            Ok(Progress::Closed) => return self.part("it has ended", now),
            Err(error) => {
                let refusal = Refusal::malformed(error.to_string());
                drop(say(&peer.stream, &Reply::Refused(refusal).into()));
                return self.part(&error.to_string(), now);
            }
        };
        let answer = if peer.greeted {
            self.session.handle(frame, now)
        } else {
            greet(&mut self.session, frame, now)
        };
        let (answer, fatal) = match answer {
            Ok(answer) => {
                if !std::mem::replace(&mut peer.greeted, true) {
                    self.abandon_at = None;
                    tracing::info!(pid = peer.pid, uid = peer.uid, "`forebay run` is connected");
                }
                (answer, None)
            }
            Err(refusal) => {
                if self.warnings.take(1, now) {
                    tracing::warn!(pid = peer.pid, "a request is refused: {refusal}");
                }
                let fatal = matches!(refusal.kind, RefusalKind::Malformed | RefusalKind::Version)
                    .then(|| refusal.sentence.clone());
                (Reply::Refused(refusal).into(), fatal)
            }
        };
        let said = say(&peer.stream, &answer);
        if let Some(why) = fatal.or_else(|| said.err().map(|error| error.to_string())) {
            self.part(&why, now);
        }
    }

    /// The peer is gone, or has to go.
    fn part(&mut self, why: &str, now: Instant) {
        let Some(peer) = self.peer.take() else { return };
        if peer.greeted {
            tracing::info!(
                pid = peer.pid,
                listeners_kept = self.session.kept(),
                "`forebay run` is disconnected: {why}"
            );
            self.abandon_at = Some(now + self.keep);
            self.session.ended();
        }
    }

    fn look_at_the_clock(&mut self, now: Instant) {
        let silent = self
            .peer
            .as_ref()
            .is_some_and(|peer| !peer.greeted && now >= peer.since + PATIENCE);
        if silent {
            self.part("it did not say hello", now);
        }
        if let Err(error) = self.session.hold_shield()
            && self.warnings.take(1, now)
        {
            tracing::error!("VIPs may not be kept from NAT: {error}");
        }
        if let Err(error) = self.session.tell_routers(now)
            && self.warnings.take(1, now)
        {
            tracing::error!("routers may be told what is not so: {error}");
        }
        if self.abandon_at.is_some_and(|at| at <= now) {
            self.abandon_at = None;
            tracing::warn!(
                listeners = self.session.kept(),
                "no `forebay run` came for {:?}: its listening sockets are closed and this node has no VIP routes",
                self.keep
            );
            if let Err(error) = self.session.abandon() {
                tracing::error!("{error}");
                self.abandon_at = Some(now + TICK);
            }
        }
    }
}

/// The first request has to be the greeting.
fn greet(session: &mut Session, frame: wire::Frame, now: Instant) -> Result<Answer, Refusal> {
    match super::message::request(&frame)? {
        Request::Hello(Hello { .. }) => session.handle(frame, now),
        _ => Err(Refusal::malformed("the first request must be the greeting")),
    }
}

fn say(stream: &UnixStream, answer: &Answer) -> Result<(), wire::WireError> {
    let head = serde_json::to_vec(&answer.reply).expect("answers have only string keys");
    let descriptors: Vec<BorrowedFd<'_>> = answer.descriptors.iter().map(AsFd::as_fd).collect();
    wire::send(stream, &head, &answer.tail, &descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_known_by_its_process_user_and_group() {
        let (one, _other) = UnixStream::pair().unwrap();
        let said = peer_credentials(&one).unwrap();
        let own = PeerCredentials {
            pid: i32::try_from(std::process::id()).ok(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        assert_eq!(said, own);
        // The kernel says 0 where it has none to tell.
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(peer_credentials(nobody).unwrap().pid, None);
    }
}
