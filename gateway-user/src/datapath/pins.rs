//! The directory of pins: `<bpffs>/v<ABI_VERSION>/` with one pin for each map and each link.
//!
//! If the directory does not lie on a BPF file system one is mounted there and marked, so that [`detach`] takes
//! it away again. Below `SYSTEM` the file system is mounted where every system has it, and stays.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use gateway_common::abi::{ABI_VERSION, map};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::netlink::Netlink;
use super::{Error, attach, exported, netfilter, routes, sys};

/// `BPF_FS_MAGIC` of Linux.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Where systems have the BPF file system that all programs share. The directory is the kernel's: nothing can be
/// made in it before that file system is mounted.
const SYSTEM: &str = "/sys/fs/bpf";

/// A directory that says that this file system was mounted by us.
const MARK: &str = "mounted-by-forebay";

/// Where this build's pins lie below `bpffs`.
#[must_use]
pub fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{ABI_VERSION}"))
}

/// Makes [`directory`], on a BPF file system.
///
/// # Errors
/// The directory cannot be made, or no BPF file system can be mounted.
pub fn prepare(bpffs: &Path) -> Result<PathBuf, Error> {
    let failed = |what: &'static str, remedy: String| {
        move |error: io::Error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Error::NotPermitted {
                    what: format!("{what} {}", bpffs.display()),
                };
            }
            Error::Bpffs {
                path: bpffs.to_owned(),
                reason: format!("{what} it failed ({error}); {remedy}"),
            }
        }
    };
    let elsewhere = || "name another directory with --bpffs".to_owned();
    let by_hand = |at: &Path| format!("run `mount -t bpf bpf {}` as root", at.display());
    let system = Path::new(SYSTEM);
    if bpffs.starts_with(system) {
        mount_system(system).map_err(failed("mounting a BPF file system for", by_hand(system)))?;
    }
    fs::create_dir_all(bpffs).map_err(failed("making", elsewhere()))?;
    if !is_bpffs(bpffs).map_err(failed("reading", elsewhere()))? {
        mount_bpf(bpffs).map_err(failed("mounting a BPF file system on", by_hand(bpffs)))?;
        fs::create_dir(bpffs.join(MARK)).map_err(failed("marking", elsewhere()))?;
    }
    let directory = directory(bpffs);
    fs::create_dir_all(&directory).map_err(failed("making directories in", elsewhere()))?;
    Ok(directory)
}

/// Mounts the system's BPF file system if nobody did. Several daemons may start at once, and a second mount would
/// hide what the first one pinned: the lock is on the directory below.
fn mount_system(system: &Path) -> io::Result<()> {
    let below = fs::File::open(system)?;
    flock(&below, FlockOperation::LockExclusive)?;
    if is_bpffs(system)? {
        return Ok(());
    }
    mount_bpf(system)
}

fn mount_bpf(at: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("bpf", at, "bpf", flags, None)?)
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    let statistics = rustix::fs::statfs(path)?;
    Ok(statistics.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// Takes everything away that Forebay left in the kernel: links (which detaches the programs), maps, local
/// routes and the table of nftables of this network namespace, and the BPF file system if it was mounted for them. The ARP settings of
/// the interfaces stay. Doing it again is no error.
///
/// # Errors
/// A pin that cannot be removed, or netlink said no.
pub fn detach(bpffs: &Path) -> Result<(), Error> {
    let failed = not_removed;
    for version in versions(bpffs).map_err(failed(bpffs))? {
        for pin in entries(&version).map_err(failed(&version))? {
            attach::release_where_pinned(&pin)?;
        }
        remove(&version)?;
    }
    if bpffs.join(MARK).is_dir() {
        fs::remove_dir(bpffs.join(MARK)).map_err(failed(bpffs))?;
        unmount(bpffs, UnmountFlags::empty()).map_err(|errno| failed(bpffs)(errno.into()))?;
    }
    let mut netlink = Netlink::open().map_err(Error::netlink("opening a netlink socket"))?;
    exported::remove(&mut netlink)?;
    routes::set_own_routes(&mut netlink, &BTreeSet::new())?;
    netfilter::remove().map_err(Error::netlink(format!(
        "removing the table inet {} of nftables",
        netfilter::TABLE
    )))
}

/// Opens what an unprivileged process maps and writes: rows, alive words, heartbeat and tags of UDP sessions.
///
/// # Errors
/// A pin that is not there, or not ours.
pub fn open_shared(bpffs: &Path) -> Result<[OwnedFd; 4], Error> {
    let directory = directory(bpffs);
    let open = |name: &str| {
        let path = directory.join(name);
        sys::open_pin(&path).map_err(|source| Error::Pin { path, source })
    };
    Ok([
        open(map::ROWS)?,
        open(map::ALIVE)?,
        open(map::HEARTBEAT)?,
        open(map::TAGS)?,
    ])
}

fn not_removed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| {
        if source.kind() == io::ErrorKind::PermissionDenied {
            let what = format!("removing {}", path.display());
            return Error::NotPermitted { what };
        }
        Error::Unpin { path, source }
    }
}

/// Directories of versions.
fn versions(bpffs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut versions = entries(bpffs)?;
    versions.retain(|version| {
        let name = version.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok())
            .is_some()
    });
    Ok(versions)
}

/// Directories of other versions than the one whose pins are in `directory`, if anything is pinned there.
pub(super) fn other_versions(directory: &Path) -> Vec<PathBuf> {
    let all = directory.parent().map(versions);
    let mut others = all.and_then(Result::ok).unwrap_or_default();
    others.retain(|other| {
        other != directory && entries(other).is_ok_and(|entries| !entries.is_empty())
    });
    others
}

/// Removes the directory of a version with all its pins.
pub(super) fn remove(version: &Path) -> Result<(), Error> {
    let failed = not_removed;
    // Links first: from then on no program reads the maps.
    let mut pins = entries(version).map_err(failed(version))?;
    pins.sort_by_key(|pin| !is_link(pin));
    for pin in pins {
        fs::remove_file(&pin).map_err(failed(&pin))?;
    }
    fs::remove_dir(version).map_err(failed(version))
}

/// Numbers of the programs in all pinned links and of those in dispatchers, of every version.
pub(super) fn own_programs(directory: &Path) -> BTreeSet<u32> {
    let versions = directory.parent().map(versions).and_then(Result::ok);
    let pins = versions
        .unwrap_or_default()
        .into_iter()
        .flat_map(|version| {
            let mut pins = entries(&version).unwrap_or_default();
            pins.retain(|pin| is_link(pin) || has_prefix(pin, JOINED_PREFIX));
            pins
        });
    let number = |pin: PathBuf| {
        let object = sys::open_pin(&pin).ok()?;
        let number = match is_link(&pin) {
            true => sys::link_program(object.as_fd()),
            false => sys::program_number(object.as_fd()),
        };
        number.ok()
    };
    pins.filter_map(number).collect()
}

/// Prefix of the pins of programs in dispatchers.
pub(super) const JOINED_PREFIX: &str = "joined-";

/// Prefix of the pins of programs in filters of traffic control.
pub(super) const FILTER_PREFIX: &str = "filter-";

/// Prefix of the pins of links; map names have none.
pub(super) const LINK_PREFIX: &str = "link-";

fn is_link(pin: &Path) -> bool {
    has_prefix(pin, LINK_PREFIX)
}

fn has_prefix(pin: &Path, prefix: &str) -> bool {
    let name = pin.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(prefix))
}

/// Paths in a directory; none if it does not exist.
pub(super) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
