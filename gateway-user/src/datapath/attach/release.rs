//! Takes programs off interfaces, and what was pinned for them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::super::netlink::Netlink;
use super::super::pins::{self, FILTER_PREFIX, JOINED_PREFIX, LINK_PREFIX};
use super::super::{Error, routes, sys};
use super::programs::LOOKUP_PIN;
use super::{AttachMode, Attachment, clsact, dispatcher, uplink_pin};

/// End of the name of the pin that says that the qdisc was made for our filter.
const QDISC_SUFFIX: &str = "+qdisc";

/// End of the name of the pin of a program that is about to take the place of another one in a dispatcher.
const NEXT_SUFFIX: &str = "+next";

pub(super) fn qdisc_pin(filter: &Path) -> PathBuf {
    with_suffix(filter, QDISC_SUFFIX)
}

pub(super) fn next_pin(joined: &Path) -> PathBuf {
    with_suffix(joined, NEXT_SUFFIX)
}

fn with_suffix(pin: &Path, suffix: &str) -> PathBuf {
    let mut name = pin.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// If the pin stands for a program that does not go with it, takes the program off its interface and removes the pin; says whether it
/// does.
pub(in super::super) fn release_where_pinned(pin: &Path) -> Result<bool, Error> {
    let name = pin.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    if name.starts_with(FILTER_PREFIX) && !name.ends_with(QDISC_SUFFIX) {
        release_filter(pin)?;
    } else if name.starts_with(JOINED_PREFIX) {
        release_joined(pin)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Takes a pinned link off its interface before the pin goes.
pub(super) fn release_link(pin: &Path) -> Result<(), Error> {
    if let Ok(link) = sys::open_pin(pin) {
        // The interface may be gone, and the link with it.
        drop(sys::detach_link(link.as_fd()));
    }
    unpin(pin)
}

pub(super) fn unpin(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Pin {
            path: pin.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Takes away what holds our program on the interface in any other mode than the attachment's.
pub(super) fn release_modes(directory: &Path, attachment: &Attachment) -> Result<(), Error> {
    for mode in AttachMode::LINKED {
        if mode != attachment.mode {
            release_link(&uplink_pin(directory, &attachment.interface, mode))?;
        }
    }
    if attachment.mode != AttachMode::Joined {
        let pin = uplink_pin(directory, &attachment.interface, AttachMode::Joined);
        release_joined(&next_pin(&pin))?;
        release_joined(&pin)?;
    }
    if attachment.mode != AttachMode::Clsact {
        release_filter(&uplink_pin(
            directory,
            &attachment.interface,
            AttachMode::Clsact,
        ))?;
    }
    Ok(())
}

/// Takes the program that is pinned out of the dispatcher of its interface.
pub(super) fn release_joined(pin: &Path) -> Result<(), Error> {
    let Ok(program) = sys::open_pin(pin) else {
        return unpin(pin);
    };
    let said = |source| Error::Unpin {
        path: pin.to_owned(),
        source: io::Error::other(format!(
            "its program is in a libxdp dispatcher, and changing that takes CAP_SYS_ADMIN: {source}"
        )),
    };
    let number = sys::program_number(program.as_fd()).map_err(said)?;
    let mut netlink = Netlink::open().map_err(said)?;
    if let Some(ifindex) = interface_of(&mut netlink, pin, JOINED_PREFIX)? {
        dispatcher::leave(ifindex, &[number].into()).map_err(said)?;
    }
    unpin(pin)
}

/// Takes the filter away that a pin stands for, wherever it is now.
fn release_filter(pin: &Path) -> Result<(), Error> {
    if !pin.exists() {
        return Ok(());
    }
    let of_qdisc = qdisc_pin(pin);
    let said = |source| Error::netlink("removing a filter of traffic control")(source);
    let mut netlink = Netlink::open().map_err(said)?;
    if let Some(ifindex) = interface_of(&mut netlink, pin, FILTER_PREFIX)? {
        clsact::detach(&mut netlink, ifindex, of_qdisc.exists()).map_err(said)?;
    }
    unpin(&of_qdisc)?;
    unpin(pin)
}

/// The interface that the name of a pin ends in, if it is there.
fn interface_of(netlink: &mut Netlink, pin: &Path, prefix: &str) -> Result<Option<u32>, Error> {
    let name = pin.file_name().and_then(|name| name.to_str());
    let name = name.and_then(|name| name.strip_prefix(prefix));
    let name = name.map(|name| name.strip_suffix(NEXT_SUFFIX).unwrap_or(name));
    let mut interfaces = routes::interfaces(netlink)?.into_iter();
    let found = interfaces.find(|(_, interface)| Some(interface.name.as_str()) == name);
    Ok(found.map(|(ifindex, _)| ifindex))
}

/// Takes our program off the interfaces that are not in `interfaces`.
pub(super) fn release_others(directory: &Path, interfaces: &[String]) -> Result<(), Error> {
    let modes = [
        AttachMode::Native,
        AttachMode::Tcx,
        AttachMode::Clsact,
        AttachMode::Generic,
        AttachMode::Joined,
    ];
    let mut keep: Vec<PathBuf> = interfaces
        .iter()
        .flat_map(|name| modes.map(|mode| uplink_pin(directory, name, mode)))
        .collect();
    keep.extend(keep.clone().iter().map(|pin| qdisc_pin(pin)));
    let failed = |source: io::Error| Error::Pin {
        path: directory.to_owned(),
        source,
    };
    for pin in pins::entries(directory).map_err(failed)? {
        let name = pin.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if keep.contains(&pin) {
            continue;
        }
        if !release_where_pinned(&pin)? && name.starts_with(LINK_PREFIX) && name != LOOKUP_PIN {
            unpin(&pin)?;
        }
    }
    Ok(())
}
