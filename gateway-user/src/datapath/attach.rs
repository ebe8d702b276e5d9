//! Programs to interfaces and to the network namespace, by links that are pinned.
//!
//! A pinned link of an earlier process is adopted and its program replaced in one step: packets meet the old
//! program or the new one. A program of somebody else is never touched.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::{SkLookup, Xdp};
use serde::{Deserialize, Serialize};

use super::netlink::Netlink;
use super::pins::{self, LINK_PREFIX};
use super::sys::{self, LinkTarget};
use super::{Error, object, routes};

/// `--datapath`, as far as programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// Native if the driver takes it (a veth only with its tx checksum offload off), else generic.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
}

impl AttachMode {
    const fn flags(self) -> u32 {
        match self {
            Self::Auto => 0,
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// An uplink with the program on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Interface name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC.
    #[serde(
        serialize_with = "super::status::mac",
        deserialize_with = "super::status::read_mac"
    )]
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u32,
    /// Native or generic.
    pub mode: AttachMode,
    /// Why it is not native, if it was `auto` that chose generic.
    pub note: Option<String>,
    /// Whether a link of an earlier process was adopted.
    pub adopted: bool,
}

/// Name of the program on uplinks.
const XDP_PROGRAM: &str = "forebay_xdp";
/// Name of the socket lookup program.
const LOOKUP_PROGRAM: &str = "forebay_lookup";
/// Name of the program that passes everything.
const PASS_PROGRAM: &str = "forebay_pass";

/// The XDP program `name`, loaded into the kernel; a second call loads nothing.
fn xdp<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    let program: &mut Xdp = programs
        .program_mut(name)
        .ok_or_else(|| Error::BadObject(format!("it has no program {name}")))?
        .try_into()
        .map_err(|_| Error::BadObject(format!("{name} is no XDP program")))?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(|error| object::refused(name, &error))?;
    }
    Ok(program)
}

/// Attaches the XDP program to `interface` and pins the link in `directory`.
///
/// # Errors
/// No such interface, another program on it, no permission, or native mode refused although asked for.
pub fn uplink(
    programs: &mut Ebpf,
    directory: &Path,
    interface: &str,
    wanted: AttachMode,
) -> Result<Attachment, Error> {
    let mut attachment = describe(interface, wanted)?;
    let program = xdp(programs, XDP_PROGRAM)?
        .fd()
        .map_err(|error| object::refused(XDP_PROGRAM, &error))?;
    let program = program.as_fd();
    if let Some(mode) = adopt_uplink(directory, &attachment, wanted, program)? {
        attachment.mode = mode;
        attachment.adopted = true;
        if mode == AttachMode::Native {
            attachment.note = None;
        }
        return Ok(attachment);
    }
    let mut result = sys::link_xdp(program, attachment.ifindex, attachment.mode.flags());
    if let Err(error) = &result
        && wanted == AttachMode::Auto
        && attachment.mode == AttachMode::Native
        && !matches!(
            error.raw_os_error(),
            Some(libc::EBUSY | libc::EEXIST | libc::EPERM)
        )
    {
        attachment.note = Some(format!("the driver refused native XDP: {error}"));
        attachment.mode = AttachMode::Generic;
        result = sys::link_xdp(program, attachment.ifindex, attachment.mode.flags());
    }
    let link = result.map_err(|source| attach_error(source, &attachment))?;
    let pin = uplink_pin(directory, interface, attachment.mode);
    sys::pin(&link, &pin).map_err(|source| Error::Pin { path: pin, source })?;
    Ok(attachment)
}

fn describe(interface: &str, wanted: AttachMode) -> Result<Attachment, Error> {
    let mut netlink = Netlink::open().map_err(Error::netlink("opening a netlink socket"))?;
    let (ifindex, link) = routes::interfaces(&mut netlink)?
        .into_iter()
        .find(|(_, link)| link.name == interface)
        .ok_or_else(|| Error::NoInterface(interface.to_owned()))?;
    let note = (wanted == AttachMode::Auto)
        .then(|| why_not_native(interface))
        .flatten();
    let mode = match wanted {
        AttachMode::Auto if note.is_some() => AttachMode::Generic,
        AttachMode::Auto => AttachMode::Native,
        mode => mode,
    };
    Ok(Attachment {
        interface: interface.to_owned(),
        ifindex,
        mac: link.mac,
        mtu: link.mtu,
        mode,
        note,
        adopted: false,
    })
}

/// Partial checksums of a veth survive only generic XDP.
fn why_not_native(interface: &str) -> Option<String> {
    const ETHTOOL_GTXCSUM: u32 = 0x16;
    let veth = sys::ethtool_driver(interface).is_ok_and(|driver| driver == "veth");
    let offloads = !matches!(sys::ethtool_value(interface, ETHTOOL_GTXCSUM), Ok(0));
    (veth && offloads).then(|| {
        format!("{interface} is a veth with tx checksum offload; for native XDP run `ethtool -K {interface} tx off` at both ends")
    })
}

fn attach_error(source: io::Error, attachment: &Attachment) -> Error {
    let interface = attachment.interface.clone();
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => Error::ForeignXdp {
            interface,
            owner: foreign_owner(attachment.ifindex),
        },
        Some(libc::EPERM) => Error::NotPermitted {
            what: format!("attaching XDP to {interface}"),
        },
        _ if attachment.mode == AttachMode::Native => Error::NativeRefused { interface, source },
        _ => Error::Attach {
            program: XDP_PROGRAM,
            to: interface,
            source,
        },
    }
}

/// Name and number of the program on an interface, as far as the kernel tells.
fn foreign_owner(ifindex: u32) -> String {
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_PROG_ID: u16 = 4;
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let body = super::netlink::Body::new(&fixed);
    let link = Netlink::open().and_then(|mut netlink| netlink.request(libc::RTM_GETLINK, 0, &body));
    let identifier = link.ok().and_then(|messages| {
        let message = messages.into_iter().find(|message| message.len() >= 16)?;
        let (_, xdp) =
            super::netlink::attributes(&message[16..]).find(|(kind, _)| *kind == IFLA_XDP)?;
        let (_, id) =
            super::netlink::attributes(xdp).find(|(kind, _)| *kind == IFLA_XDP_PROG_ID)?;
        Some(super::netlink::word(id, 0))
    });
    let Some(identifier) = identifier else {
        return "unknown program".to_owned();
    };
    let name = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == identifier)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) => format!("program {name}, id {identifier}"),
        None => format!("program id {identifier}"),
    }
}

fn uplink_pin(directory: &Path, interface: &str, mode: AttachMode) -> PathBuf {
    directory.join(format!("{LINK_PREFIX}xdp-{interface}-{}", mode.name()))
}

/// Puts our program into a link that an earlier process pinned for this interface, and says its mode. Links of
/// another mode than the wanted one and of interfaces that are gone are taken away.
fn adopt_uplink(
    directory: &Path,
    attachment: &Attachment,
    wanted: AttachMode,
    program: BorrowedFd<'_>,
) -> Result<Option<AttachMode>, Error> {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let pin = uplink_pin(directory, &attachment.interface, mode);
        let usable = LinkTarget::Interface(attachment.ifindex);
        let Some(link) = pinned_link(&pin, usable, wanted == AttachMode::Auto || wanted == mode)?
        else {
            continue;
        };
        sys::replace_program(link.as_fd(), program)
            .map_err(|source| attach_error(source, attachment))?;
        return Ok(Some(mode));
    }
    Ok(None)
}

/// A pinned link if it belongs to `target` and is `wanted`; else its pin is removed, which detaches it.
fn pinned_link(pin: &Path, target: LinkTarget, wanted: bool) -> Result<Option<OwnedFd>, Error> {
    let failed = |source: io::Error| Error::Pin {
        path: pin.to_owned(),
        source,
    };
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if wanted && sys::link_target(link.as_fd()).map_err(failed)? == target {
        return Ok(Some(link));
    }
    fs::remove_file(pin).map_err(failed)?;
    Ok(None)
}

/// Attaches the socket lookup program to this thread's network namespace and pins the link; says whether an
/// earlier link was adopted.
///
/// # Errors
/// No permission, or a kernel without `sk_lookup` (before 5.9).
pub fn lookup(programs: &mut Ebpf, directory: &Path) -> Result<bool, Error> {
    let program: &mut SkLookup = programs
        .program_mut(LOOKUP_PROGRAM)
        .ok_or_else(|| Error::BadObject(format!("it has no program {LOOKUP_PROGRAM}")))?
        .try_into()
        .map_err(|_| Error::BadObject(format!("{LOOKUP_PROGRAM} is no sk_lookup program")))?;
    program
        .load()
        .map_err(|error| object::refused(LOOKUP_PROGRAM, &error))?;
    let program = program
        .fd()
        .map_err(|error| object::refused(LOOKUP_PROGRAM, &error))?;
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM) => Error::NotPermitted {
            what: "attaching sk_lookup to the network namespace".to_owned(),
        },
        _ => Error::Attach {
            program: LOOKUP_PROGRAM,
            to: "the network namespace".to_owned(),
            source,
        },
    };
    let namespace = fs::File::open("/proc/thread-self/ns/net").map_err(failed)?;
    let inode = namespace.metadata().map_err(failed)?.ino();
    let target = LinkTarget::Namespace(u32::try_from(inode).unwrap_or_default());
    let pin = directory.join(format!("{LINK_PREFIX}lookup"));
    if let Some(link) = pinned_link(&pin, target, true)? {
        sys::replace_program(link.as_fd(), program.as_fd()).map_err(failed)?;
        return Ok(true);
    }
    let link = sys::link_lookup(program.as_fd(), namespace.as_fd()).map_err(failed)?;
    sys::pin(&link, &pin).map_err(|source| Error::Pin { path: pin, source })?;
    Ok(false)
}

/// Removes uplink pins of interfaces that are not in `interfaces`, which detaches the program there.
///
/// # Errors
/// A pin that cannot be removed.
pub fn release_others(directory: &Path, interfaces: &[String]) -> Result<(), Error> {
    let keep: Vec<PathBuf> = interfaces
        .iter()
        .flat_map(|name| {
            [AttachMode::Native, AttachMode::Generic].map(|mode| uplink_pin(directory, name, mode))
        })
        .collect();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::Pin { path, source }
    };
    let prefix = format!("{LINK_PREFIX}xdp-");
    for pin in pins::entries(directory).map_err(failed(directory))? {
        let is_uplink = pin
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(&prefix));
        if is_uplink && !keep.contains(&pin) {
            fs::remove_file(&pin).map_err(failed(&pin))?;
        }
    }
    Ok(())
}

/// A program that passes everything, attached until this is dropped.
#[derive(Debug)]
pub struct PassGuard {
    _link: OwnedFd,
    _programs: Ebpf,
}

/// Attaches `forebay_pass` natively to an interface of this thread's network namespace: the far end of a veth
/// pair takes frames that the near end transmits from XDP only if it runs a program.
///
/// # Errors
/// As [`uplink`].
pub fn attach_pass(interface: &str) -> Result<PassGuard, Error> {
    let attachment = describe(interface, AttachMode::Native)?;
    let mut programs = aya::EbpfLoader::new()
        .btf(None)
        .load(object::embedded()?)
        .map_err(|error| object::refused("its maps", &error))?;
    let program = xdp(&mut programs, PASS_PROGRAM)?;
    let program = program
        .fd()
        .map_err(|error| object::refused(PASS_PROGRAM, &error))?;
    let link = sys::link_xdp(
        program.as_fd(),
        attachment.ifindex,
        AttachMode::Native.flags(),
    )
    .map_err(|source| attach_error(source, &attachment))?;
    Ok(PassGuard {
        _link: link,
        _programs: programs,
    })
}
