//! What can go wrong at the border to the kernel: each error is one sentence that names the thing and the remedy.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Errors of the datapath.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Built without `cargo xtask build-ebpf`.
    #[error(
        "this forebay was built without its BPF object; run `cargo xtask build-ebpf` and build again"
    )]
    NoObject,
    /// The embedded object is not what this build expects.
    #[error(
        "the BPF object of this forebay cannot be used: {0}; run `cargo xtask build-ebpf` and build again"
    )]
    BadObject(String),
    /// EPERM from the kernel.
    #[error(
        "{what} is not permitted: run as root or with CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and, for the start, CAP_PERFMON (before Linux 5.8 CAP_SYS_ADMIN)"
    )]
    NotPermitted {
        /// What was tried.
        what: String,
    },
    /// EACCES from the verifier, for want of a capability.
    #[error(
        "the kernel refused to load {program} without CAP_PERFMON: add it to the capabilities that Forebay starts with (`forebay agent` gives it up once the programs are loaded)"
    )]
    NoPerfmon {
        /// Program.
        program: String,
    },
    /// A kernel that lacks something.
    #[error(
        "the kernel refused to load {program}: {reason}; Forebay needs Linux 5.15 or newer with CONFIG_BPF_SYSCALL"
    )]
    Load {
        /// Map or program.
        program: String,
        /// What the kernel said.
        reason: String,
    },
    /// No such interface.
    #[error(
        "interface {0} does not exist: name an existing one with --interface (`ip link` lists them)"
    )]
    NoInterface(String),
    /// No `--interface`, and nothing to take instead.
    #[error(
        "there is no default route to take the interface from: name the uplink with --interface (`ip link` lists them)"
    )]
    NoDefaultInterface,
    /// Another program has the interface.
    #[error(
        "interface {interface} already runs an XDP program that is not Forebay's ({owner}): remove it, or give Forebay another interface with --interface"
    )]
    ForeignXdp {
        /// Interface name.
        interface: String,
        /// What runs there.
        owner: String,
    },
    /// Another program has the interface, and shares it, but not with ours.
    #[error(
        "a libxdp dispatcher has the XDP of {interface} ({owner}) and cannot be joined, which takes Linux 5.10 and CAP_SYS_ADMIN: {source}"
    )]
    NotJoined {
        /// Interface name.
        interface: String,
        /// What runs there.
        owner: String,
        /// Why.
        source: io::Error,
    },
    /// The driver refused native XDP and the user insists.
    #[error(
        "interface {interface} refuses native XDP ({source}): lower the MTU if it is above about 3500 bytes, turn LRO and GRO in hardware off, or use --datapath auto or generic"
    )]
    NativeRefused {
        /// Interface name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Traffic control was refused and the user insists.
    #[error(
        "interface {interface} refuses a program in traffic control by {mode} ({source}): tcx needs Linux 6.6; use --datapath auto or generic"
    )]
    TcRefused {
        /// Interface name.
        interface: String,
        /// How it was tried.
        mode: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Attaching failed otherwise.
    #[error("attaching {program} to {to} failed: {source}")]
    Attach {
        /// Program name.
        program: &'static str,
        /// Interface or namespace.
        to: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pinned map of another layout.
    #[error(
        "the pinned map {path} has another layout than this forebay's ({difference}): stop every forebay on this node and run `forebay detach`"
    )]
    PinnedMapDiffers {
        /// Pin.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// The BPF file system.
    #[error("{path} cannot be used for pinned maps: {reason}")]
    Bpffs {
        /// Directory.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The pins belong to another daemon.
    #[error("another forebay{holder} uses the pins in {bpffs}: stop it, or give this one another directory with --bpffs", bpffs = .bpffs.display())]
    InUse {
        /// `--bpffs`.
        bpffs: PathBuf,
        /// Which process, if that is known, with a blank before it.
        holder: String,
    },
    /// A pin.
    #[error("pinning {path} failed: {source}")]
    Pin {
        /// Pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pin that stays.
    #[error("removing {path} failed: {source}")]
    Unpin {
        /// Pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing to look at.
    #[error(
        "no kernel tables of this forebay are pinned below {}: start one with `forebay run`, or name its directory with --bpffs", .0.display()
    )]
    NoTables(PathBuf),
    /// Tables of other versions only.
    #[error(
        "the kernel tables below {} are of another version of forebay ({versions}, not {own}): look at them with that version", .path.display()
    )]
    OtherTables {
        /// `--bpffs`.
        path: PathBuf,
        /// Their directories.
        versions: String,
        /// The directory that this version looks for.
        own: String,
    },
    /// Pins that this user may not open.
    #[error("{} may not be opened by this user: run as root", .0.display())]
    NotReadable(PathBuf),
    /// Two tracers would tell each other's packets.
    #[error("another `forebay bpf trace` (process {process}) traces this node: end it first")]
    TracerBusy {
        /// The other one.
        process: u32,
    },
    /// mmap of a map.
    #[error("mapping the BPF map {map} failed: {source}")]
    Map {
        /// Map name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The listening sockets of a group.
    #[error("the listening sockets of group {group} cannot be used: {reason}")]
    Listeners {
        /// Group.
        group: u16,
        /// Why.
        reason: String,
    },
    /// A UDP socket on a VIP.
    #[error(
        "cannot listen on {vip}/udp: {source}; {}, or change the listener's port",
        udp_remedy(source)
    )]
    Udp {
        /// The VIP.
        vip: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The index of peers has no room.
    #[error(
        "the node table cannot index node {index}: Forebay is made for at most 256 nodes; list fewer"
    )]
    TooManyNodes {
        /// Index of the node.
        index: u16,
    },
    /// The agent says no, in its own words.
    #[error("{0}")]
    Refused(crate::agent::message::Refusal),
    /// The agent is not there.
    #[error(
        "the agent at {socket} cannot be reached ({reason}): start `forebay agent` there, or name its socket with --agent", socket = .socket.display()
    )]
    AgentGone {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The trie of source prefixes.
    #[error("the source prefix {prefix} cannot be written: {reason}")]
    Sources {
        /// Address and bits that count.
        prefix: String,
        /// What the kernel said.
        reason: String,
    },
    /// Netlink.
    #[error("{what} failed: {source}")]
    Netlink {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What helps a UDP socket that is not to be had.
fn udp_remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "ports below 1024 need CAP_NET_BIND_SERVICE: give it to `forebay agent`, or to `forebay run` if there is none"
    } else {
        "stop what uses the port"
    }
}

impl Error {
    /// A netlink error, with EPERM told apart.
    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| {
            if source.raw_os_error() == Some(libc::EPERM) {
                Self::NotPermitted { what }
            } else {
                Self::Netlink { what, source }
            }
        }
    }
}
