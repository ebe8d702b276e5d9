//! Takes programs off interfaces, and what was pinned for them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::super::netlink::Netlink;
use super::super::pins::{self, FILTER_PREFIX, LINK_PREFIX};
use super::super::{Error, routes, sys};
use super::programs::LOOKUP_PIN;
use super::{AttachMode, Attachment, clsact, uplink_pin};

/// End of the name of the pin that says that the qdisc was made for our filter.
const QDISC_SUFFIX: &str = "+qdisc";

pub(super) fn qdisc_pin(filter: &Path) -> PathBuf {
    let mut name = filter.as_os_str().to_owned();
    name.push(QDISC_SUFFIX);
    PathBuf::from(name)
}

/// Whether a pin of this name stands for a filter.
pub(in super::super) fn is_filter(name: &str) -> bool {
    name.starts_with(FILTER_PREFIX) && !name.ends_with(QDISC_SUFFIX)
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
    if attachment.mode != AttachMode::Clsact {
        release_filter(&uplink_pin(
            directory,
            &attachment.interface,
            AttachMode::Clsact,
        ))?;
    }
    Ok(())
}

/// Takes the filter away that a pin stands for, wherever it is now.
pub(in super::super) fn release_filter(pin: &Path) -> Result<(), Error> {
    if !pin.exists() {
        return Ok(());
    }
    let of_qdisc = qdisc_pin(pin);
    let name = pin
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix(FILTER_PREFIX));
    let said = |source| Error::netlink("removing a filter of traffic control")(source);
    let mut netlink = Netlink::open().map_err(said)?;
    for (ifindex, interface) in routes::interfaces(&mut netlink)? {
        if Some(interface.name.as_str()) == name {
            clsact::detach(&mut netlink, ifindex, of_qdisc.exists()).map_err(said)?;
        }
    }
    unpin(&of_qdisc)?;
    unpin(pin)
}

/// Takes our program off the interfaces that are not in `interfaces`.
pub(super) fn release_others(directory: &Path, interfaces: &[String]) -> Result<(), Error> {
    let modes = [
        AttachMode::Native,
        AttachMode::Tcx,
        AttachMode::Clsact,
        AttachMode::Generic,
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
        if is_filter(name) {
            release_filter(&pin)?;
        } else if name.starts_with(LINK_PREFIX) && name != LOOKUP_PIN {
            unpin(&pin)?;
        }
    }
    Ok(())
}
