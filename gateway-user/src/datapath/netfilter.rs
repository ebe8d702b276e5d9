//! Keeps everybody's NAT away from VIPs.
//!
//! A VIP is local here by a route of ours, and rules that rewrite what comes to a port "of this machine" mean all local
//! addresses: those of a pod's `hostPort`, for example. They come before any socket is looked for. So packets to and from
//! VIPs are not tracked (`notrack`, just before the priority `raw` and thus before connection tracking), and NAT never
//! sees what is not tracked. The replies as well: connection tracking calls what answers nothing it knows invalid, and
//! many drop that.
//!
//! The table `inet forebay` has exactly the addresses with a route of ours. It has no owner in the sense of nf_tables: it
//! stays when the process ends, as the routes do. Whoever flushes the ruleset takes it along: [`Shield::look`] asks for the
//! number of the ruleset's generation, and only looks at the table if that is another one.

mod message;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use self::message::{SUBSYSTEM, TABLE, difference, nothing, whole};
use super::netlink::Netlink;

/// How often the table is looked at. Less than the second after which everybody who calls looks at his clock.
const LOOK: Duration = Duration::from_millis(900);
/// The same for a kernel that cannot have it: each try may start a search for modules.
const LOOK_UNABLE: Duration = Duration::from_secs(60);

/// How often something is written in a row, if others change the ruleset meanwhile.
const TRIES: usize = 5;

/// How VIPs are kept from NAT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShieldStatus {
    /// Addresses whose packets nobody's NAT sees.
    pub addresses: BTreeSet<IpAddr>,
    /// Times that the table had to be put back, since somebody had removed or changed it.
    pub restored: u64,
    /// Why addresses that are local are not among them, if so: one sentence.
    pub failed: Option<String>,
}

/// What is there of our table.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    None,
    /// A table that is not as we make it.
    Other,
    /// Our table with these addresses.
    Table(BTreeSet<IpAddr>),
}

/// Keeps the table.
#[derive(Debug, Default)]
pub struct Shield {
    netlink: Option<Netlink>,
    wanted: BTreeSet<IpAddr>,
    /// The ruleset's generation that had it all.
    right_at: Option<u32>,
    next_look: Option<Instant>,
    status: ShieldStatus,
}

impl Shield {
    /// Goes on with what an earlier process made local. A version that knew no such table left routes without it.
    #[must_use]
    pub fn adopt(local: BTreeSet<IpAddr>) -> Self {
        let mut shield = Self {
            wanted: local,
            ..Self::default()
        };
        shield.put(Instant::now());
        shield
    }

    /// Shields these addresses beside those that it shields already: to be called before they become local.
    pub fn add(&mut self, addresses: &BTreeSet<IpAddr>) {
        if !addresses.is_subset(&self.wanted) {
            self.wanted.extend(addresses);
            self.put(Instant::now());
        }
    }

    /// Shields exactly these addresses: to be called when the others are local no more.
    pub fn set(&mut self, addresses: &BTreeSet<IpAddr>) {
        if self.wanted != *addresses {
            self.wanted.clone_from(addresses);
            self.put(Instant::now());
        }
    }

    /// Puts right what somebody changed, if it is time to look.
    pub fn look(&mut self, now: Instant) -> &ShieldStatus {
        if self.next_look.is_none_or(|at| at <= now) {
            let before = self.right_at;
            let writes = self.put(now);
            if writes > 0 && before.is_some() && self.right_at.is_some() {
                self.status.restored += 1;
                tracing::warn!(
                    vips = self.wanted.len(),
                    "somebody removed or changed the table inet {TABLE} of nftables: it is there again"
                );
            }
        }
        &self.status
    }

    /// Makes the table right; how often something was written. A failure never stops the node from serving.
    fn put(&mut self, now: Instant) -> usize {
        let mut writes = 0;
        let result = self.try_put(&mut writes);
        let unable = result.as_ref().is_err_and(is_unable);
        self.next_look = Some(now + if unable { LOOK_UNABLE } else { LOOK });
        let failed = match result {
            Ok(generation) => {
                self.right_at = Some(generation);
                self.status.addresses.clone_from(&self.wanted);
                None
            }
            Err(error) => {
                self.netlink = None;
                self.right_at = None;
                self.status.addresses.clear();
                // Without VIPs there is nothing that would not be kept from NAT.
                (!self.wanted.is_empty()).then(|| sentence(&error))
            }
        };
        match &failed {
            Some(why) if self.status.failed != failed => tracing::warn!("{why}"),
            None if self.status.failed.is_some() => tracing::info!("VIPs are kept from NAT now"),
            _ => {}
        }
        self.status.failed = failed;
        writes
    }

    fn try_put(&mut self, writes: &mut usize) -> io::Result<u32> {
        if self.netlink.is_none() {
            self.netlink = Some(Netlink::netfilter()?);
        }
        let Some(netlink) = &mut self.netlink else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut last = io::Error::from(io::ErrorKind::Interrupted);
        for _ in 0..TRIES {
            // First: what changes after it is seen the next time.
            let generation = generation(netlink)?;
            if self.right_at == Some(generation)
                && self.status.addresses == self.wanted
                && self.status.failed.is_none()
            {
                return Ok(generation);
            }
            let found = match read(netlink) {
                Err(error) if is_passing(&error) => {
                    last = error;
                    continue;
                }
                found => found?,
            };
            let messages = match found {
                Found::None if self.wanted.is_empty() => return Ok(generation),
                Found::Table(have) if have == self.wanted && !have.is_empty() => {
                    return Ok(generation);
                }
                _ if self.wanted.is_empty() => nothing(),
                Found::Table(have) => difference(&have, &self.wanted),
                Found::None | Found::Other => whole(&self.wanted),
            };
            match netlink.batch(SUBSYSTEM, &messages) {
                Ok(()) => *writes += 1,
                Err(error) if is_passing(&error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

/// Removes the table. One that is not there, or cannot be, is no error.
///
/// # Errors
/// Netlink said no.
pub fn remove() -> io::Result<()> {
    match Netlink::netfilter().and_then(|mut netlink| netlink.batch(SUBSYSTEM, &nothing())) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) || is_unable(&error) => Ok(()),
        result => result,
    }
}

/// What there is of our table in this thread's network namespace.
///
/// # Errors
/// Netlink said no, or others change the ruleset all the time.
pub fn found() -> io::Result<Found> {
    let mut netlink = Netlink::netfilter()?;
    let mut result = read(&mut netlink);
    for _ in 1..TRIES {
        match &result {
            Err(error) if is_passing(error) => result = read(&mut netlink),
            _ => break,
        }
    }
    result
}

fn generation(netlink: &mut Netlink) -> io::Result<u32> {
    let (kind, body) = message::generation();
    let answer = netlink.request(kind, 0, &body)?;
    let number = answer
        .iter()
        .find_map(|message| message::generation_in(message));
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn read(netlink: &mut Netlink) -> io::Result<Found> {
    let (kind, body) = message::table();
    match netlink.request(kind, 0, &body) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Found::None),
        answer => drop(answer?),
    }
    let (kind, body) = message::rules();
    let rules = whole_dump(netlink, kind, &body)?;
    let rules: Vec<message::Rule> = rules.iter().filter_map(|m| message::rule_in(m)).collect();
    if rules != message::right_rules() {
        return Ok(Found::Other);
    }
    let mut addresses = BTreeSet::new();
    for (kind, body) in message::elements() {
        let elements = match whole_dump(netlink, kind, &body) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Found::Other),
            elements => elements?,
        };
        addresses.extend(elements.iter().flat_map(|m| message::elements_in(m)));
    }
    Ok(Found::Table(addresses))
}

/// A dump that nobody's change has torn.
fn whole_dump(
    netlink: &mut Netlink,
    kind: u16,
    body: &super::netlink::Body,
) -> io::Result<Vec<Vec<u8>>> {
    let entries = netlink.dump(kind, body)?;
    if netlink.is_torn() {
        return Err(io::Error::from_raw_os_error(libc::EINTR));
    }
    Ok(entries)
}

/// Whether others were in the way, and it may be well the next moment. ENOENT and EEXIST are among them: what was read
/// just before is not so any more.
fn is_passing(error: &io::Error) -> bool {
    const PASSING: [i32; 7] = [
        libc::EBUSY,
        libc::EAGAIN,
        libc::EINTR,
        libc::ERESTART,
        libc::ENOBUFS,
        libc::ENOENT,
        libc::EEXIST,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| PASSING.contains(&code))
}

/// Whether the kernel has no nf_tables, no family `inet` or no `notrack`, or does not let this process.
#[must_use]
pub fn is_unable(error: &io::Error) -> bool {
    const UNABLE: [i32; 6] = [
        libc::EOPNOTSUPP,
        libc::EPROTONOSUPPORT,
        libc::EAFNOSUPPORT,
        libc::ENOENT,
        libc::EINVAL,
        libc::EPERM,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| UNABLE.contains(&code))
}

/// What such an error means while VIPs are served, and what to do: one sentence.
#[must_use]
pub fn sentence(error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => "give this process CAP_NET_ADMIN",
        _ if is_unable(error) => {
            "load the kernel's modules nf_tables and nft_ct (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_CT)"
        }
        _ => "it is tried again every second",
    };
    format!(
        "VIPs are served, but not kept from NAT: the table inet {TABLE} of nftables cannot be kept ({error}), and rules for all addresses of this machine, as of a pod with hostPort and no hostIP, may take their connections; {remedy}"
    )
}

#[cfg(test)]
mod tests;
