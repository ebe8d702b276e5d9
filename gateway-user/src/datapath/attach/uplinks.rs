//! The uplinks of a node, from start to end: programs come to interfaces, follow them, and give way to newer ones.
//!
//! Programs of another map layout, which an earlier version of the daemon left on the interfaces, go on with their own maps
//! until ours are written; then ours take their links over.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::super::netlink::Netlink;
use super::super::routes::Interface;
use super::super::sys::{self, LinkTarget};
use super::super::{Error, pins};
use super::programs::{LOOKUP_PIN, lookup, lookup_error};
use super::release::{release_joined, release_link, release_others, unpin};
use super::{
    AttachMode, AttachState, Attachment, Facts, Programs, attach_as, clsact, describe, dispatcher,
    plan, uplink, uplink_pin,
};

/// See the module.
#[derive(Debug)]
pub struct Uplinks {
    programs: Programs,
    directory: PathBuf,
    wanted: AttachMode,
    list: Vec<Attachment>,
    /// Directories of other versions whose programs have not given way yet.
    old: Vec<PathBuf>,
}

impl Uplinks {
    /// Attaches the programs to the network namespace and to all of `names`; `directory` is where this version's pins are.
    ///
    /// # Errors
    /// No such interface, another program on it, no permission, or the mode that is asked for cannot be had.
    pub fn open(
        programs: Programs,
        directory: &Path,
        interfaces: &BTreeMap<u32, Interface>,
        names: &[String],
        wanted: AttachMode,
    ) -> Result<Self, Error> {
        let mut uplinks = Self {
            programs,
            directory: directory.to_owned(),
            wanted,
            list: Vec::new(),
            old: pins::other_versions(directory),
        };
        if !uplinks.old.iter().any(|old| old.join(LOOKUP_PIN).exists()) {
            lookup(&uplinks.programs, directory)?;
        }
        for name in names {
            let found = interfaces.iter().find(|(_, link)| link.name == *name);
            let (ifindex, link) = found.ok_or_else(|| Error::NoInterface(name.clone()))?;
            let attachment = describe(name, *ifindex, link);
            let attachment = match uplinks.old_link(&attachment) {
                Some((_, mode)) => Attachment {
                    mode,
                    cost_percent: mode.cost_percent(),
                    state: AttachState::Attached,
                    adopted: true,
                    ..attachment
                },
                None => uplink(&uplinks.programs, directory, attachment, wanted)?,
            };
            uplinks.list.push(attachment);
        }
        release_others(directory, names)?;
        Ok(uplinks)
    }

    /// All of them, in the order of their names on the command line.
    #[must_use]
    pub fn attachments(&self) -> &[Attachment] {
        &self.list
    }

    /// The tables are written: programs of other versions give way, and their pins go.
    ///
    /// # Errors
    /// What the kernel refused; what has given way so far stays so.
    pub fn take_over(&mut self) -> Result<(), Error> {
        if self.old.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        for old in &self.old {
            let pin = old.join(LOOKUP_PIN);
            self.move_link(&pin, LOOKUP_PIN, self.programs.lookup.as_fd())?;
        }
        lookup(&self.programs, &self.directory)?;
        for at in 0..self.list.len() {
            let attachment = self.list[at].clone();
            if let Some((pin, mode)) = self.old_link(&attachment) {
                self.list[at] = self.take_over_from(&pin, mode, attachment)?;
            }
        }
        for old in std::mem::take(&mut self.old) {
            pins::remove(&old)?;
            tracing::info!(
                from = %old.display(),
                to = %self.directory.display(),
                took = ?begun.elapsed(),
                "programs and maps of another version gave way to this one's"
            );
        }
        Ok(())
    }

    fn take_over_from(
        &self,
        pin: &Path,
        mode: AttachMode,
        attachment: Attachment,
    ) -> Result<Attachment, Error> {
        let usable = self.wanted == AttachMode::Auto || self.wanted == mode;
        if mode == AttachMode::Joined {
            // Where the way is the same, ours takes the place of the older one in the exchange of dispatchers.
            let after = uplink(&self.programs, &self.directory, attachment, self.wanted)?;
            release_joined(pin)?;
            return Ok(after);
        }
        let program = self.programs.of(mode);
        if let (true, Ok(program)) = (usable && mode != AttachMode::Clsact, program) {
            let name = uplink_pin(&self.directory, &attachment.interface, mode);
            let name = name.file_name().and_then(|name| name.to_str());
            self.move_link(pin, name.unwrap_or_default(), program)?;
            return Ok(attachment);
        }
        // Two programs of one interface, one after the other; a filter is replaced where it is.
        release_link(pin)?;
        uplink(&self.programs, &self.directory, attachment, self.wanted)
    }

    /// Puts our program into a link of another version and pins it among our own.
    fn move_link(
        &self,
        from: &Path,
        name: &str,
        program: std::os::fd::BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let Ok(link) = sys::open_pin(from) else {
            return Ok(());
        };
        sys::replace_program(link.as_fd(), program).map_err(lookup_error)?;
        let to = self.directory.join(name);
        if !to.exists() {
            sys::pin(&link, &to).map_err(|source| Error::Pin { path: to, source })?;
        }
        unpin(from)
    }

    /// The pin by which another version holds the interface, and in which mode.
    fn old_link(&self, attachment: &Attachment) -> Option<(PathBuf, AttachMode)> {
        let target = LinkTarget::Interface(attachment.ifindex);
        for old in &self.old {
            for mode in AttachMode::LINKED {
                let pin = uplink_pin(old, &attachment.interface, mode);
                let link = sys::open_pin(&pin).ok();
                if link.is_some_and(|link| sys::link_target(link.as_fd()).ok() == Some(target)) {
                    return Some((pin, mode));
                }
            }
            for mode in [AttachMode::Clsact, AttachMode::Joined] {
                let pin = uplink_pin(old, &attachment.interface, mode);
                if pin.exists() {
                    return Some((pin, mode));
                }
            }
        }
        None
    }

    /// Brings the programs to where the interfaces are now: one that was made again, renamed, or changed.
    pub fn follow(&mut self, netlink: &mut Netlink, interfaces: &BTreeMap<u32, Interface>) {
        for at in 0..self.list.len() {
            let before = &self.list[at];
            let found = interfaces
                .iter()
                .find(|(_, link)| link.name == before.interface);
            let after = match found {
                Some((index, link)) if self.is_there(netlink, before, *index) => {
                    self.of_changed(before, *index, link)
                }
                Some((index, link)) => self.attach_again(before, *index, link),
                None => match interfaces.get(&before.ifindex) {
                    Some(link) => renamed(before, link),
                    None => gone(before),
                },
            };
            self.list[at] = after;
        }
    }

    /// Whether the program is on the interface with this index still.
    fn is_there(&self, netlink: &mut Netlink, attachment: &Attachment, ifindex: u32) -> bool {
        attachment.state == AttachState::Attached
            && attachment.ifindex == ifindex
            && match attachment.mode {
                AttachMode::Clsact => clsact::is_attached(netlink, ifindex).unwrap_or(true),
                AttachMode::Joined => {
                    let ours = pins::own_programs(&self.directory);
                    dispatcher::is_in(ifindex, &ours).unwrap_or(true)
                }
                _ => true,
            }
    }

    /// The interface may take another way in since its MTU was changed.
    fn of_changed(&self, before: &Attachment, ifindex: u32, link: &Interface) -> Attachment {
        let after = changed(before, link);
        let is_native = before.mode.is_in_driver();
        if plan::is_turn(self.wanted, before.mode, before.mtu, link.mtu)
            && (!is_native || (sys::is_linux(6, 3) && self.bridge(&after)))
        {
            return self.attach_again(&after, ifindex, link);
        }
        let loses = is_native && plan::is_raised(before.mtu, link.mtu);
        let note = loses.then(|| plan::loses_frames(link.mtu, self.wanted));
        let Some(note) = note.flatten() else {
            return after;
        };
        tracing::warn!("{}: {note}", before.interface);
        Attachment {
            note: Some(note),
            ..after
        }
    }

    /// Has traffic control see packets before native XDP goes; whether it has gone. Linux before 6.3 asks the driver about the MTU
    /// also then, and the program stays in a driver that says no.
    fn bridge(&self, attachment: &Attachment) -> bool {
        let attach = |mode| {
            let by = Attachment {
                mode,
                ..attachment.clone()
            };
            attach_as(&self.programs, &self.directory, &by, &Facts::default()).is_ok()
        };
        if ![AttachMode::Tcx, AttachMode::Clsact]
            .into_iter()
            .any(attach)
        {
            return false;
        }
        let pin = uplink_pin(&self.directory, &attachment.interface, attachment.mode);
        match attachment.mode {
            AttachMode::Joined => release_joined(&pin).is_ok(),
            _ => release_link(&pin).is_ok(),
        }
    }

    fn attach_again(&self, before: &Attachment, ifindex: u32, link: &Interface) -> Attachment {
        let fresh = describe(&before.interface, ifindex, link);
        match uplink(&self.programs, &self.directory, fresh.clone(), self.wanted) {
            Ok(after) => {
                let (interface, mode) = (&after.interface, after.mode.name());
                tracing::info!(%interface, ifindex, mode, "attached to the interface again");
                after
            }
            Err(error) => {
                let note = Some(error.to_string());
                if before.note != note {
                    tracing::error!("{error}; trying again");
                }
                Attachment { note, ..fresh }
            }
        }
    }
}

fn changed(before: &Attachment, link: &Interface) -> Attachment {
    let interface = &before.interface;
    if before.mtu != link.mtu {
        tracing::info!(%interface, from = before.mtu, to = link.mtu, "the MTU has changed");
    }
    if before.mac != link.mac {
        tracing::info!(%interface, "the MAC has changed");
    }
    // It may have had another name meanwhile.
    let back = |note: &String| {
        link.name == *interface && note.starts_with(&format!("{interface} is called "))
    };
    // It may have been raised meanwhile.
    let is_native = before.mode.is_in_driver();
    let fits = |note: &String| {
        is_native && note.starts_with("MTU ") && plan::too_long_for_native(link.mtu).is_none()
    };
    Attachment {
        mac: link.mac,
        mtu: link.mtu,
        note: before
            .note
            .clone()
            .filter(|note| !back(note) && !fits(note)),
        ..before.clone()
    }
}

fn renamed(before: &Attachment, link: &Interface) -> Attachment {
    let note = Some(format!("{} is called {} now", before.interface, link.name));
    if before.note != note {
        tracing::warn!(
            "{} is called {} now, the program stays on it",
            before.interface,
            link.name
        );
    }
    Attachment {
        note,
        ..changed(before, link)
    }
}

fn gone(before: &Attachment) -> Attachment {
    if before.state != AttachState::Waiting {
        tracing::warn!(
            "interface {} is gone, waiting for one of that name",
            before.interface
        );
    }
    Attachment {
        ifindex: 0,
        note: Some(format!("waiting for interface {}", before.interface)),
        state: AttachState::Waiting,
        ..before.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        let link = Interface {
            name: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            ..Interface::default()
        };
        Attachment {
            state: AttachState::Attached,
            ..describe("eth0", 7, &link)
        }
    }

    #[test]
    fn an_interface_that_is_gone_is_waited_for() {
        let gone = gone(&attachment());
        assert_eq!((gone.state, gone.ifindex), (AttachState::Waiting, 0));
        assert_eq!(gone.note.as_deref(), Some("waiting for interface eth0"));
    }

    #[test]
    fn a_renamed_interface_keeps_the_program_and_says_so() {
        let link = Interface {
            name: "wan0".to_owned(),
            mac: [2, 0, 0, 0, 0, 2],
            mtu: 9000,
            ..Interface::default()
        };
        let renamed = renamed(&attachment(), &link);
        assert_eq!((renamed.state, renamed.ifindex), (AttachState::Attached, 7));
        assert_eq!((renamed.mac, renamed.mtu), (link.mac, 9000));
        assert_eq!(renamed.note.as_deref(), Some("eth0 is called wan0 now"));
        let link = Interface {
            name: "eth0".to_owned(),
            ..link
        };
        assert_eq!(changed(&renamed, &link).note, None, "it is called so again");
    }
}
