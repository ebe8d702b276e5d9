//! The programs themselves, the one for socket lookups, and the one for the far end of a veth pair.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use aya::Ebpf;
use aya::programs::{Program, ProgramError};

use super::super::netlink::Netlink;
use super::super::sys::{self, LinkTarget};
use super::super::{Error, object, routes};
use super::{AttachMode, attach_error, describe, dispatcher, facts, pinned_link};

/// Name of the program on uplinks.
pub(super) const XDP_PROGRAM: &str = "forebay_xdp";
/// Name of its form for traffic control.
const TC_PROGRAM: &str = "forebay_tc";
/// Name of the socket lookup program.
const LOOKUP_PROGRAM: &str = "forebay_lookup";
/// Name of the program that passes everything.
const PASS_PROGRAM: &str = "forebay_pass";

/// The programs in the kernel, attached to nothing: all are verified before the first one replaces an older one.
#[derive(Debug)]
pub struct Programs {
    xdp: OwnedFd,
    /// The kernel's words if it refuses this form; then traffic control cannot be had.
    tc: Result<OwnedFd, String>,
    pub(super) lookup: OwnedFd,
    /// The one on uplinks once more, as a part of a dispatcher; loaded when it is first wanted.
    extension: OnceLock<OwnedFd>,
}

impl Programs {
    /// Loads them.
    ///
    /// # Errors
    /// The kernel refuses one without which nothing works.
    pub fn load(programs: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            xdp: loaded(programs, XDP_PROGRAM)?,
            tc: loaded(programs, TC_PROGRAM).map_err(|error| error.to_string()),
            lookup: loaded(programs, LOOKUP_PROGRAM)?,
            extension: OnceLock::new(),
        })
    }

    /// The form that a mode needs.
    pub(super) fn of(&self, mode: AttachMode) -> Result<BorrowedFd<'_>, io::Error> {
        match mode {
            AttachMode::Tcx | AttachMode::Clsact => match &self.tc {
                Ok(program) => Ok(program.as_fd()),
                Err(reason) => Err(io::Error::other(reason.clone())),
            },
            _ => Ok(self.xdp.as_fd()),
        }
    }

    /// The form that takes the place of a dispatcher's function: loaded for the first dispatcher that wants it, which is then as good
    /// for any other. `directory` is where the maps are pinned.
    pub(super) fn extension(&self, directory: &Path, dispatcher: u32) -> io::Result<OwnedFd> {
        if let Some(loaded) = self.extension.get() {
            return loaded.try_clone();
        }
        let refused = |error: ProgramError| {
            io::Error::other(object::refused(XDP_PROGRAM, &error).to_string())
        };
        let mut programs = object::load_extension(
            directory,
            object::embedded().map_err(io::Error::other)?,
            XDP_PROGRAM,
        )
        .map_err(io::Error::other)?;
        let Some(Program::Extension(program)) = programs.program_mut(XDP_PROGRAM) else {
            return Err(io::Error::other("the BPF object has no such program"));
        };
        let target = dispatcher::loaded(dispatcher)?.fd().map_err(refused)?;
        program.load(target, "prog0").map_err(refused)?;
        let program = program.fd().map_err(refused)?;
        let program = program.as_fd().try_clone_to_owned()?;
        let clone = program.try_clone()?;
        drop(self.extension.set(program));
        Ok(clone)
    }
}

fn loaded(programs: &mut Ebpf, name: &'static str) -> Result<OwnedFd, Error> {
    let program = programs
        .program_mut(name)
        .ok_or_else(|| Error::BadObject(format!("it has no program {name}")))?;
    let refused = |error: &ProgramError| object::refused(name, error);
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => return Err(Error::BadObject(format!("{name} is of another kind"))),
    }
    .map_err(|error| refused(&error))?;
    let program = program.fd().map_err(|error| refused(&error))?;
    let cloned = program.as_fd().try_clone_to_owned();
    cloned.map_err(|error| object::refused(name, &error))
}

/// Attaches the socket lookup program to this thread's network namespace and pins the link; says whether an
/// earlier link was adopted.
pub(super) fn lookup(programs: &Programs, directory: &Path) -> Result<bool, Error> {
    let program = programs.lookup.as_fd();
    let namespace = fs::File::open("/proc/thread-self/ns/net").map_err(lookup_error)?;
    let inode = namespace.metadata().map_err(lookup_error)?.ino();
    let target = LinkTarget::Namespace(u32::try_from(inode).unwrap_or_default());
    let pin = directory.join(LOOKUP_PIN);
    if let Some(link) = pinned_link(&pin, target)? {
        sys::replace_program(link.as_fd(), program).map_err(lookup_error)?;
        return Ok(true);
    }
    let link = sys::link_lookup(program, namespace.as_fd()).map_err(lookup_error)?;
    sys::pin(&link, &pin).map_err(|source| Error::Pin { path: pin, source })?;
    Ok(false)
}

/// Where the link of the socket lookup program is pinned.
pub(super) const LOOKUP_PIN: &str = "link-lookup";

pub(super) fn lookup_error(source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPERM) => Error::NotPermitted {
            what: "attaching sk_lookup to the network namespace".to_owned(),
        },
        _ => Error::Attach {
            program: LOOKUP_PROGRAM,
            to: "the network namespace".to_owned(),
            source,
        },
    }
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
/// No such interface, another program on it, or no permission.
pub fn attach_pass(interface: &str) -> Result<PassGuard, Error> {
    let mut netlink = Netlink::open().map_err(Error::netlink("opening a netlink socket"))?;
    let (ifindex, found) = routes::interfaces(&mut netlink)?
        .into_iter()
        .find(|(_, link)| link.name == interface)
        .ok_or_else(|| Error::NoInterface(interface.to_owned()))?;
    let mut attachment = describe(interface, ifindex, &found);
    attachment.mode = AttachMode::Native;
    let facts = facts(&attachment, &BTreeSet::new())?;
    let (programs, program) = pass_program()?;
    let link = sys::link_xdp(program.as_fd(), ifindex, AttachMode::Native.xdp_flags())
        .map_err(|source| attach_error(source, &attachment, &facts))?;
    Ok(PassGuard {
        _link: link,
        _programs: programs,
    })
}

/// Loads `forebay_pass`, attached to nothing.
pub(crate) fn pass_program() -> Result<(Ebpf, OwnedFd), Error> {
    let mut programs = aya::EbpfLoader::new()
        .btf(None)
        .load(object::embedded()?)
        .map_err(|error| object::refused("its maps", &error))?;
    let program = loaded(&mut programs, PASS_PROGRAM)?;
    Ok((programs, program))
}
