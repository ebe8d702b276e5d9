//! The classifier as a filter of the qdisc `clsact`, for kernels without tcx.
//!
//! There are no links for filters: ours is known by its preference, handle and name. It goes with its interface.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::super::netlink::{Body, Netlink, attributes, word};

/// Low, so that ours is asked before others' filters.
const PREFERENCE: u32 = 1;
/// Ours among filters of the same preference.
const HANDLE: u32 = 0xf0eb;
/// How the filter is listed.
const NAME: &[u8] = b"forebay_tc\0";

const QDISC: u32 = 0xffff_0000;
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const ETH_P_ALL: u16 = 3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const ACT_DIRECT: u32 = 1;

/// Puts the program on the interface, or in the place of an earlier one of ours; says whether the qdisc was made for it.
///
/// # Errors
/// What the kernel answered.
pub(super) fn attach(
    netlink: &mut Netlink,
    program: BorrowedFd<'_>,
    ifindex: u32,
) -> io::Result<bool> {
    let made = make_qdisc(netlink, ifindex)?;
    let options = Body::default()
        .attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
        .attribute(TCA_BPF_NAME, NAME)
        .attribute(TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes());
    let body = filter(ifindex)
        .attribute(TCA_KIND, b"bpf\0")
        .nested(TCA_OPTIONS, &options);
    netlink.request(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE, &body)?;
    Ok(made)
}

/// Whether our filter is on the interface.
///
/// # Errors
/// What the kernel answered.
pub(super) fn is_attached(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    let filters = netlink.dump(
        libc::RTM_GETTFILTER,
        &Body::new(&message(ifindex, 0, INGRESS, 0)),
    )?;
    Ok(filters.iter().any(|filter| is_ours(filter)))
}

/// Takes our filter off the interface, if it is there, and the qdisc too if `qdisc` and nobody else has a filter.
///
/// # Errors
/// What the kernel answered.
pub(super) fn detach(netlink: &mut Netlink, ifindex: u32, qdisc: bool) -> io::Result<()> {
    if is_attached(netlink, ifindex)? {
        netlink.request(libc::RTM_DELTFILTER, 0, &filter(ifindex))?;
    }
    if qdisc && !has_filters(netlink, ifindex)? {
        let body = Body::new(&message(ifindex, QDISC, CLSACT, 0)).attribute(TCA_KIND, b"clsact\0");
        netlink.request(libc::RTM_DELQDISC, 0, &body)?;
    }
    Ok(())
}

fn has_filters(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    const EGRESS: u32 = 0xffff_fff3;
    for parent in [INGRESS, EGRESS] {
        let body = Body::new(&message(ifindex, 0, parent, 0));
        if !netlink.dump(libc::RTM_GETTFILTER, &body)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn make_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    let body = Body::new(&message(ifindex, QDISC, CLSACT, 0)).attribute(TCA_KIND, b"clsact\0");
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match netlink.request(libc::RTM_NEWQDISC, flags, &body) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn filter(ifindex: u32) -> Body {
    let info = PREFERENCE << 16 | u32::from(ETH_P_ALL.to_be());
    Body::new(&message(ifindex, HANDLE, INGRESS, info))
}

/// `struct tcmsg`.
fn message(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut fixed = [0; 20];
    for (at, word) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        fixed[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    fixed
}

fn is_ours(filter: &[u8]) -> bool {
    let Some(rest) = filter.get(20..) else {
        return false;
    };
    let named = attributes(rest)
        .find(|(kind, _)| *kind == TCA_OPTIONS)
        .is_some_and(|(_, options)| {
            attributes(options).any(|(kind, value)| kind == TCA_BPF_NAME && value == NAME)
        });
    named && word(filter, 8) == HANDLE
}
