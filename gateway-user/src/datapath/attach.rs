//! Programs to interfaces and to the network namespace, by links that are pinned.
//!
//! Where XDP can be had the program is an XDP program, else a classifier of traffic control: `plan` says which ways are
//! tried in which order. A pinned link of an earlier process is adopted and its program replaced in one step: packets meet
//! the old program or the new one. A program of somebody else is never touched; where libxdp's dispatcher is, ours becomes one of
//! its programs.

mod clsact;
mod dispatcher;
mod plan;
mod programs;
mod release;
mod uplinks;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::dispatcher::LIBXDP_BPFFS;
pub(super) use self::programs::pass_program;
pub use self::programs::{PassGuard, Programs, attach_pass};
pub(super) use self::release::release_where_pinned;
pub use self::uplinks::Uplinks;

use self::plan::Facts;
use self::programs::XDP_PROGRAM;
use self::release::{next_pin, qdisc_pin, release_link, release_modes};
use super::Error;
use super::netlink::{Body, Netlink, attributes, word};
use super::pins::{self, FILTER_PREFIX, JOINED_PREFIX, LINK_PREFIX};
use super::routes::Interface;
use super::sys::{self, LinkTarget};

/// `--datapath`, as far as programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// The best that can be had, see `plan`.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// Traffic control by a link, before all other programs there (Linux 6.6).
    Tcx,
    /// Traffic control by a filter: what older kernels have instead.
    Clsact,
    /// XDP in the stack.
    Generic,
    /// XDP in the driver as one of several programs of libxdp's dispatcher.
    Joined,
}

impl AttachMode {
    const LINKED: [Self; 3] = [Self::Native, Self::Tcx, Self::Generic];

    /// Whether the driver asks the program, and what is said of the driver's limits holds.
    pub(super) const fn is_in_driver(self) -> bool {
        matches!(self, Self::Native | Self::Joined)
    }

    const fn xdp_flags(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
            _ => 0,
        }
    }

    /// Name in flags, pins and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Generic => "generic",
            Self::Joined => "joined",
        }
    }

    /// What forwarding a packet costs this machine, in percent of native XDP: measured over veth by
    /// `cargo xtask bench l4`, see docs/decisions. In a dispatcher the programs of others come on top.
    #[must_use]
    pub const fn cost_percent(self) -> u32 {
        match self {
            Self::Auto | Self::Native | Self::Joined => 100,
            Self::Tcx | Self::Clsact => 190,
            Self::Generic => 210,
        }
    }
}

/// What an uplink's program does right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachState {
    /// It sees the interface's packets.
    Attached,
    /// The interface is gone; the program comes to the next one of that name.
    Waiting,
    /// It could not be attached to the interface that is there now; tried again all the time.
    Failed,
}

/// An uplink with the program on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Interface name, as it was asked for.
    pub interface: String,
    /// Its index; 0 while it is gone.
    pub ifindex: u32,
    /// Its MAC.
    #[serde(
        serialize_with = "super::status::mac",
        deserialize_with = "super::status::read_mac"
    )]
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u32,
    /// The way that was taken.
    pub mode: AttachMode,
    /// Cost of that way, see [`AttachMode::cost_percent`].
    pub cost_percent: u32,
    /// Why it is not native, if it was `auto` that chose; or what the interface waits for.
    pub note: Option<String>,
    /// Whether the program sees packets.
    pub state: AttachState,
    /// Whether a link of an earlier process was adopted.
    pub adopted: bool,
}

/// Attaches the program to `interface` and pins what holds it there, or takes over what an earlier process pinned.
fn uplink(
    programs: &Programs,
    directory: &Path,
    mut attachment: Attachment,
    wanted: AttachMode,
) -> Result<Attachment, Error> {
    let facts = facts(&attachment, &pins::own_programs(directory))?;
    let mut reasons: Vec<String> = match wanted {
        AttachMode::Auto => plan::why_not_native(&attachment.interface, &facts)
            .into_iter()
            .collect(),
        _ => Vec::new(),
    };
    let mut failed = None;
    for mode in plan::candidates(wanted, &facts) {
        attachment.mode = *mode;
        attachment.cost_percent = mode.cost_percent();
        match attach_as(programs, directory, &attachment, &facts) {
            Ok(adopted) => {
                attachment.adopted = adopted;
                attachment.state = AttachState::Attached;
                attachment.note = note(&attachment, &reasons);
                release_modes(directory, &attachment)?;
                return Ok(attachment);
            }
            Err(error) if wanted != AttachMode::Auto => return Err(error),
            Err(error @ (Error::NotPermitted { .. } | Error::Pin { .. })) => return Err(error),
            Err(error) => {
                reasons.push(refusal(*mode, &attachment, &error));
                failed = Some(error);
            }
        }
    }
    Err(failed.unwrap_or(Error::NoInterface(attachment.interface)))
}

/// The ways that `auto` would try for an interface, in order, and what speaks against native XDP. Nothing is tried.
pub(super) fn prospects(
    interface: &str,
    mtu: u32,
    directory: &Path,
) -> (Vec<AttachMode>, Option<String>) {
    let Some(port) = super::trial::port(interface) else {
        return (Vec::new(), None);
    };
    let link = Interface {
        name: interface.to_owned(),
        mac: port.mac,
        mtu,
        ..Interface::default()
    };
    let attachment = describe(interface, port.ifindex, &link);
    let facts = facts(&attachment, &pins::own_programs(directory)).unwrap_or_default();
    let ways = plan::candidates(AttachMode::Auto, &facts).to_vec();
    let why = plan::why_not_native(interface, &facts);
    (ways, why.or_else(|| plan::too_long_for_native(mtu)))
}

/// The way in by which a program of ours is pinned to an interface.
pub(super) fn pinned_mode(interface: &str, directory: &Path) -> Option<AttachMode> {
    let others = [AttachMode::Clsact, AttachMode::Joined];
    let all = AttachMode::LINKED.into_iter().chain(others);
    let mut pinned = all.filter(|mode| uplink_pin(directory, interface, *mode).exists());
    pinned.next()
}

/// What is to be said of a way that was taken.
fn note(attachment: &Attachment, reasons: &[String]) -> Option<String> {
    if attachment.mode == AttachMode::Joined {
        let names = dispatcher::names(attachment.ifindex).join(", ");
        return Some(format!(
            "one of the programs of the libxdp dispatcher on {}: {names}",
            attachment.interface
        ));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Why a way could not be taken, as a part of a sentence.
fn refusal(mode: AttachMode, attachment: &Attachment, error: &Error) -> String {
    if let Error::NotJoined { .. } = error {
        return error.to_string();
    }
    let (said, number) = match error {
        Error::NativeRefused { source, .. }
        | Error::TcRefused { source, .. }
        | Error::Attach { source, .. } => (source.to_string(), source.raw_os_error()),
        other => (other.to_string(), None),
    };
    match mode {
        AttachMode::Native => {}
        AttachMode::Tcx => return format!("tcx was refused, which takes Linux 6.6: {said}"),
        _ => return format!("{} was refused: {said}", mode.name()),
    }
    let why = plan::too_long_for_native(attachment.mtu).or_else(|| {
        (number == Some(libc::EOPNOTSUPP)).then(|| plan::merges(&attachment.interface))
    });
    let why = why.unwrap_or_else(|| "the driver refused native XDP".to_owned());
    format!("{why}: {said}")
}

/// One way; says whether something of an earlier process was adopted.
fn attach_as(
    programs: &Programs,
    directory: &Path,
    attachment: &Attachment,
    facts: &Facts,
) -> Result<bool, Error> {
    let (interface, mode) = (attachment.interface.as_str(), attachment.mode);
    let failed = |source| attach_error(source, attachment, facts);
    if mode == AttachMode::Joined {
        return join(programs, directory, attachment).map_err(failed);
    }
    let program = programs.of(mode).map_err(failed)?;
    let pin = uplink_pin(directory, interface, mode);
    if mode == AttachMode::Clsact {
        return filter(program, directory, attachment).map_err(failed);
    }
    if let Some(link) = pinned_link(&pin, LinkTarget::Interface(attachment.ifindex))? {
        sys::replace_program(link.as_fd(), program).map_err(failed)?;
        return Ok(true);
    }
    if mode != AttachMode::Tcx {
        // The kernel has native or generic XDP on an interface, not both: ours of the other kind must go first.
        let other = match mode {
            AttachMode::Native => AttachMode::Generic,
            _ => AttachMode::Native,
        };
        release_link(&uplink_pin(directory, interface, other))?;
    }
    let link = match mode {
        AttachMode::Tcx => sys::link_tcx(program, attachment.ifindex),
        _ => sys::link_xdp(program, attachment.ifindex, mode.xdp_flags()),
    }
    .map_err(failed)?;
    sys::pin(&link, &pin).map_err(|source| Error::Pin { path: pin, source })?;
    Ok(false)
}

/// As one of a dispatcher's programs. What is pinned is the program, so that it is known as ours later; until the exchange is done it
/// lies beside the one that it replaces, so that neither is forgotten by a process that ends in between.
fn join(programs: &Programs, directory: &Path, attachment: &Attachment) -> io::Result<bool> {
    let pin = uplink_pin(directory, &attachment.interface, AttachMode::Joined);
    let next = next_pin(&pin);
    let ours = pins::own_programs(directory);
    let load = |dispatcher| programs.extension(directory, dispatcher);
    let joined = dispatcher::join(attachment.ifindex, &ours, load, |program| {
        drop(fs::remove_file(&next));
        sys::pin(program, &next)
    });
    match joined {
        Ok(_) => fs::rename(&next, &pin)?,
        Err(_) => drop(fs::remove_file(&next)),
    }
    joined
}

/// By a filter of traffic control. What is pinned is the program, so that the filter is known as ours later.
fn filter(program: BorrowedFd<'_>, directory: &Path, attachment: &Attachment) -> io::Result<bool> {
    let mut netlink = Netlink::open()?;
    let adopted = clsact::is_attached(&mut netlink, attachment.ifindex)?;
    let made = clsact::attach(&mut netlink, program, attachment.ifindex)?;
    let pin = uplink_pin(directory, &attachment.interface, AttachMode::Clsact);
    let of_qdisc = qdisc_pin(&pin);
    for (path, wanted) in [(&pin, true), (&of_qdisc, made)] {
        if wanted && !path.exists() {
            sys::pin(program, path)?;
        }
    }
    Ok(adopted)
}

/// The interface as it is, before a program is on it.
fn describe(name: &str, ifindex: u32, interface: &Interface) -> Attachment {
    Attachment {
        interface: name.to_owned(),
        ifindex,
        mac: interface.mac,
        mtu: interface.mtu,
        mode: AttachMode::Auto,
        cost_percent: 100,
        note: None,
        state: AttachState::Failed,
        adopted: false,
    }
}

/// `ours` are the numbers of our own programs.
fn facts(attachment: &Attachment, ours: &BTreeSet<u32>) -> Result<Facts, Error> {
    let on = xdp_on(attachment.ifindex)
        .map_err(Error::netlink("reading what XDP programs there are"))?;
    let mut programs = on.programs.into_iter();
    let foreign = programs.find(|program| !ours.contains(program));
    let name = foreign.and_then(program_name);
    let is_dispatcher = |program| dispatcher::is_dispatcher(attachment.ifindex, program);
    Ok(Facts {
        foreign: foreign.map(|id| match &name {
            Some(name) => format!("program {name}, id {id}"),
            None => format!("program id {id}"),
        }),
        dispatcher: foreign.is_some_and(is_dispatcher),
        in_driver: on.in_driver,
        partial_checksums: has_partial_checksums(&attachment.interface),
    })
}

/// Partial checksums of a veth are lost where native XDP sends a packet on.
fn has_partial_checksums(interface: &str) -> bool {
    const ETHTOOL_GTXCSUM: u32 = 0x16;
    let veth = sys::ethtool_driver(interface).is_ok_and(|driver| driver == "veth");
    veth && !matches!(sys::ethtool_value(interface, ETHTOOL_GTXCSUM), Ok(0))
}

fn attach_error(source: io::Error, attachment: &Attachment, facts: &Facts) -> Error {
    let (interface, mode) = (attachment.interface.clone(), attachment.mode);
    if mode == AttachMode::Joined {
        let owner = facts.foreign.clone().unwrap_or_default();
        return Error::NotJoined {
            interface,
            owner,
            source,
        };
    }
    match source.raw_os_error() {
        Some(libc::EPERM) => Error::NotPermitted {
            what: format!("attaching a program to {interface}"),
        },
        Some(libc::EBUSY | libc::EEXIST)
            if matches!(mode, AttachMode::Native | AttachMode::Generic) =>
        {
            Error::ForeignXdp {
                interface,
                owner: facts
                    .foreign
                    .clone()
                    .unwrap_or_else(|| "unknown program".to_owned()),
            }
        }
        _ => match mode {
            AttachMode::Native => Error::NativeRefused { interface, source },
            AttachMode::Tcx | AttachMode::Clsact => Error::TcRefused {
                interface,
                mode: mode.name(),
                source,
            },
            _ => Error::Attach {
                program: XDP_PROGRAM,
                // Generic XDP of older kernels takes no program that hands packets on to other interfaces as ours does.
                to: match sys::is_linux(5, 15) {
                    true => interface,
                    false => format!("{interface}, for which Forebay needs Linux 5.15 or newer,"),
                },
                source,
            },
        },
    }
}

/// What XDP an interface has.
struct OnInterface {
    /// Numbers of its programs.
    programs: Vec<u32>,
    /// It is one program, in the driver.
    in_driver: bool,
}

fn xdp_on(ifindex: u32) -> io::Result<OnInterface> {
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_ATTACHED: u16 = 2;
    const XDP_ATTACHED_DRV: u8 = 1;
    /// `IFLA_XDP_PROG_ID` and those of the driver, the stack and the hardware.
    const PROGRAM_IDS: std::ops::RangeInclusive<u16> = 4..=7;
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let messages = Netlink::open()?.request(libc::RTM_GETLINK, 0, &Body::new(&fixed))?;
    let link = messages.iter().find_map(|message| message.get(16..));
    let xdp = link.and_then(|link| attributes(link).find(|(kind, _)| *kind == IFLA_XDP));
    let xdp = xdp.map(|(_, xdp)| xdp).unwrap_or_default();
    let ids = attributes(xdp).filter(|(kind, _)| PROGRAM_IDS.contains(kind));
    Ok(OnInterface {
        programs: ids
            .map(|(_, value)| word(value, 0))
            .filter(|id| *id != 0)
            .collect(),
        in_driver: attributes(xdp)
            .any(|(kind, value)| kind == IFLA_XDP_ATTACHED && value == [XDP_ATTACHED_DRV]),
    })
}

fn program_name(identifier: u32) -> Option<String> {
    let program = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == identifier)?;
    program.name_as_str().map(str::to_owned)
}

fn uplink_pin(directory: &Path, interface: &str, mode: AttachMode) -> PathBuf {
    directory.join(match mode {
        AttachMode::Tcx => format!("{LINK_PREFIX}tcx-{interface}"),
        AttachMode::Clsact => format!("{FILTER_PREFIX}{interface}"),
        AttachMode::Joined => format!("{JOINED_PREFIX}{interface}"),
        mode => format!("{LINK_PREFIX}xdp-{interface}-{}", mode.name()),
    })
}

/// A pinned link if it belongs to `target`; else its pin is removed, which detaches it.
fn pinned_link(pin: &Path, target: LinkTarget) -> Result<Option<OwnedFd>, Error> {
    let failed = |source: io::Error| Error::Pin {
        path: pin.to_owned(),
        source,
    };
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if sys::link_target(link.as_fd()).map_err(failed)? == target {
        return Ok(Some(link));
    }
    fs::remove_file(pin).map_err(failed)?;
    Ok(None)
}
