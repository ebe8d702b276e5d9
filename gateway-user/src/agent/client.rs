//! The other end: [`NodePrivileges`] by way of an agent in another process.
//!
//! Whatever only touches rows, alive words and the heartbeat goes through shared memory and asks nobody. An agent that ends
//! is found again when it is back; until then everything else fails, and the kernel goes on with the last tables.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;

use super::message::{
    self, Claim, Hello, Refusal, RefusalKind, Reply, Request, SOURCES_AT_ONCE, Welcome,
};
use super::wire::{self, Frame, Progress, Reader, WireError};
use crate::datapath::{
    Attachment, Error, ForwardMode, LocalAddresses, NodePrivileges, PathQuestion, SharedTables,
    ShieldStatus, Unset,
};
use crate::l4::diff::{Image, MapOp};
use crate::l4::sources::SourceTable;
use crate::l4::tables::Reach;
use crate::snapshot::BindKey;

/// Longest wait for one answer: an agent needs 100 ms for a table and 2 s for a netlink socket that is stuck.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a start waits for an agent that starts at the same time.
const STARTING: Duration = Duration::from_secs(10);
/// How long it waits for the end of another one that uses the agent.
const ENDING: Duration = Duration::from_secs(1);
/// Pause between two tries of that.
const PAUSE: Duration = Duration::from_millis(100);

/// What one connection has brought.
#[derive(Debug)]
struct State {
    welcome: Welcome,
    shared: SharedTables,
}

/// The agent behind a socket.
#[derive(Debug)]
pub struct Remote {
    socket: PathBuf,
    stream: Option<UnixStream>,
    state: State,
    /// As the greeting had it; taken by the first who asks.
    image: RefCell<Option<Image>>,
    renewed: Cell<bool>,
    /// Counters as they were last told.
    sums: RefCell<Vec<u64>>,
}

impl Remote {
    /// Connects; waits a while for an agent that is not there yet.
    ///
    /// # Errors
    /// There is none, or it does not want this process.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        let started = Instant::now();
        let (stream, state, image) = loop {
            match open(socket) {
                Err(Error::AgentGone { .. }) if started.elapsed() < STARTING => {}
                // The one before this one is ending.
                Err(Error::Refused(refusal))
                    if refusal.kind == RefusalKind::Busy && started.elapsed() < ENDING => {}
                other => break other?,
            }
            std::thread::sleep(PAUSE);
        };
        Ok(Self {
            socket: socket.to_owned(),
            stream: Some(stream),
            state,
            image: RefCell::new(Some(image)),
            renewed: Cell::new(false),
            sums: RefCell::default(),
        })
    }

    /// The agent's `--forward`.
    #[must_use]
    pub fn forward(&self) -> ForwardMode {
        self.state.welcome.forward
    }

    /// One request and its answer. A connection that fails is given up.
    fn ask(
        &mut self,
        request: &Request,
        tail: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Frame), Error> {
        let stream = self
            .stream
            .as_ref()
            .ok_or_else(|| gone(&self.socket, "the connection is lost"))?;
        let answer = exchange(&self.socket, stream, request, tail, descriptors);
        if matches!(answer, Err(Error::AgentGone { .. })) {
            self.stream = None;
        }
        answer
    }

    fn ask_done(&mut self, request: &Request, tail: &[u8]) -> Result<(), Error> {
        match self.ask(request, tail, &[])? {
            (Reply::Done, _) => Ok(()),
            _ => Err(self.confused()),
        }
    }

    fn ask_routes(&mut self, request: &Request) -> Result<Unset, Error> {
        match self.ask(request, &[], &[])? {
            (Reply::Routes(unset), _) => Ok(unset),
            _ => Err(self.confused()),
        }
    }

    /// An answer that does not fit its question.
    fn confused(&mut self) -> Error {
        self.stream = None;
        gone(&self.socket, "its answer does not fit the question")
    }
}

fn gone(socket: &Path, reason: &(impl ToString + ?Sized)) -> Error {
    Error::AgentGone {
        socket: socket.to_owned(),
        reason: reason.to_string(),
    }
}

fn open(socket: &Path) -> Result<(UnixStream, State, Image), Error> {
    let failed = |error: io::Error| gone(socket, &crate::file::read::phrase(&error));
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::Refused(Refusal::new(
            RefusalKind::Stranger,
            format!(
                "the agent's socket {} may not be opened by this user: start the agent with --allow-uid or --allow-gid for it, and let it into the directory",
                socket.display()
            ),
        )),
        _ => failed(error),
    })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let (reply, frame) = exchange(socket, &stream, &Request::Hello(Hello::own()), &[], &[])?;
    let Reply::Welcome(welcome) = reply else {
        return Err(gone(socket, "its answer does not fit the question"));
    };
    let (Some(image), [rows, alive, heartbeat, tags]) =
        (message::image(&frame.tail), frame.descriptors.as_slice())
    else {
        return Err(gone(socket, "its greeting is not whole"));
    };
    let state = State {
        welcome: *welcome,
        shared: SharedTables::of(rows, alive, heartbeat, tags)?,
    };
    Ok((stream, state, image))
}

fn exchange(
    socket: &Path,
    stream: &UnixStream,
    request: &Request,
    tail: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(Reply, Frame), Error> {
    let head = serde_json::to_vec(request).expect("requests have only string keys");
    // An agent that refuses a connection says why and closes it: its sentence is worth more than EPIPE.
    let sent = wire::send(stream, &head, tail, descriptors);
    let read = Reader::default().read(stream, RecvFlags::empty());
    let frame = match (sent, read) {
        (_, Ok(Progress::Frame(frame))) => frame,
        (Err(error @ WireError::Length { .. }), _) | (Err(error), Ok(Progress::Closed)) => {
            return Err(gone(socket, &error));
        }
        (_, Err(error)) => return Err(gone(socket, &error)),
        (_, Ok(Progress::Closed)) => return Err(gone(socket, "it closed the connection")),
        // A blocking socket says so when its time is over.
        (_, Ok(Progress::Waiting)) => return Err(gone(socket, "it does not answer")),
    };
    match serde_json::from_slice(&frame.head) {
        Ok(Reply::Refused(refusal)) => Err(Error::Refused(refusal)),
        Ok(reply) => Ok((reply, frame)),
        Err(error) => Err(gone(socket, &format!("its answer cannot be read: {error}"))),
    }
}

impl Remote {
    /// The prefixes of lists of sources as the agent has written them; what cannot be asked for is written again.
    fn written_sources(&self) -> SourceTable {
        let mut all = SourceTable::new();
        while let Some(stream) = self.stream.as_ref() {
            let from = Request::SourcesFrom(all.len() as u32);
            let Ok((Reply::Sources(some), _)) = exchange(&self.socket, stream, &from, &[], &[])
            else {
                break;
            };
            let last = some.len() < SOURCES_AT_ONCE;
            let before = all.len();
            let some = some.into_iter();
            all.extend(some.map(|(bits, key, says)| ((bits, bytemuck::cast(key)), says)));
            if last || all.len() == before {
                break;
            }
        }
        all
    }
}

impl NodePrivileges for Remote {
    fn attachments(&self) -> &[Attachment] {
        &self.state.welcome.attachments
    }

    fn image(&self) -> Image {
        let mut image = self.image.take().unwrap_or_default();
        image.rows = self.state.shared.rows();
        image.sources = self.written_sources();
        image
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        match op {
            MapOp::Config(config) => self.ask_done(&Request::Config, bytemuck::bytes_of(config)),
            MapOp::Nodes(nodes) => self.ask_done(&Request::Nodes, bytemuck::cast_slice(nodes)),
            MapOp::UnlistNodes(nodes) => self.ask_done(&Request::Unlist(nodes.clone()), &[]),
            MapOp::Vips(half) => {
                self.ask_done(&Request::Vips(half.seed), &message::vips_tail(half))
            }
            MapOp::Sources(prefixes) => {
                let prefixes = prefixes.iter();
                let prefixes =
                    prefixes.map(|(bits, key, says)| (*bits, bytemuck::cast(*key), *says));
                self.ask_done(&Request::Sources(prefixes.collect()), &[])
            }
            MapOp::Rows(rows) => {
                self.state.shared.store_rows(rows);
                Ok(())
            }
        }
    }

    fn set_listeners(&mut self, group: u16, sockets: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.ask(&Request::Listeners(group), &[], sockets)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(self.confused()),
        }
    }

    fn open_udp(&mut self, vip: SocketAddr) -> Result<OwnedFd, Error> {
        match self.ask(&Request::OpenUdp(vip), &[], &[])? {
            (Reply::Opened, mut frame) if frame.descriptors.len() == 1 => {
                Ok(frame.descriptors.remove(0))
            }
            _ => Err(self.confused()),
        }
    }

    fn shared(&self) -> SharedTables {
        self.state.shared.clone()
    }

    fn counters(&self) -> Vec<u64> {
        // Until the agent is back they stand still.
        if let Some(stream) = self.stream.as_ref()
            && let Ok((Reply::Counters, frame)) =
                exchange(&self.socket, stream, &Request::Counters, &[], &[])
        {
            let words = frame.tail.chunks_exact(size_of::<u64>());
            self.sums
                .replace(words.map(bytemuck::pod_read_unaligned).collect());
        }
        self.sums.borrow().clone()
    }

    fn reach(&mut self, nodes: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, Reach>, Error> {
        match self.ask(&Request::Reach(nodes.clone()), &[], &[])? {
            (Reply::Reach(reach), _) => Ok(reach),
            _ => Err(self.confused()),
        }
    }

    fn tables_written(&mut self) -> Result<(), Error> {
        self.ask_done(&Request::Written, &[])
    }

    fn local_addresses(&mut self) -> Result<LocalAddresses, Error> {
        // The agent follows the interfaces when it is asked for addresses: what it says next is how they are now.
        let (Reply::LocalAddresses(local), _) = self.ask(&Request::LocalAddresses, &[], &[])?
        else {
            return Err(self.confused());
        };
        match self.ask(&Request::Attachments, &[], &[])? {
            (Reply::Attachments(attachments), _) => self.state.welcome.attachments = attachments,
            _ => return Err(self.confused()),
        }
        Ok(local)
    }

    fn set_local_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error> {
        self.ask_routes(&Request::Routes(addresses.clone()))
    }

    fn shield(&mut self) -> Result<ShieldStatus, Error> {
        match self.ask(&Request::Shield, &[], &[])? {
            (Reply::Shield(status), _) => Ok(status),
            _ => Err(self.confused()),
        }
    }

    fn set_exported_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error> {
        self.ask_routes(&Request::Exported(addresses.clone()))
    }

    fn announce(&mut self, address: IpAddr) -> Result<(), Error> {
        self.ask_done(&Request::Announce(address), &[])
    }

    fn ask_paths(&mut self, questions: &[PathQuestion]) -> Result<(), Error> {
        let heads = questions.iter();
        let heads = heads.map(|question| (question.node, question.vip, question.reply_port));
        let tail: Vec<u8> = questions
            .iter()
            .flat_map(|question| question.message)
            .collect();
        self.ask_done(&Request::Paths(heads.collect()), &tail)
    }

    fn renewed(&mut self) -> Result<bool, Error> {
        if self.stream.is_none() {
            let (stream, state, image) = open(&self.socket)?;
            self.stream = Some(stream);
            self.state = state;
            self.image.replace(Some(image));
            self.renewed.set(true);
        }
        Ok(self.renewed.replace(false))
    }

    fn inherit(&mut self) -> Result<BTreeMap<u16, Vec<OwnedFd>>, Error> {
        let mut groups = BTreeMap::new();
        for group in self.state.welcome.kept.clone() {
            match self.ask(&Request::Inherit(group), &[], &[])? {
                (Reply::Inherited, frame) => groups.insert(group, frame.descriptors),
                _ => return Err(self.confused()),
            };
        }
        Ok(groups)
    }

    fn refused(&mut self, vips: &[BindKey]) -> Result<BTreeMap<BindKey, String>, Error> {
        let claims: Vec<Claim> = vips
            .iter()
            .map(|vip| match vip.port {
                0 => (vip.address, 0, 0),
                port => (vip.address, port, vip.transport.number()),
            })
            .collect();
        match self.ask(&Request::Claims(claims), &[], &[])? {
            (Reply::Claims(refused), _) => Ok(refused
                .into_iter()
                .filter_map(|(place, why)| Some((*vips.get(place as usize)?, why)))
                .collect()),
            _ => Err(self.confused()),
        }
    }
}
