//! Whether the addresses of VIPs that are local here are kept from everybody's NAT: what the kernel has is looked at, and
//! the daemon is only asked why.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use serde_json::Value;

use super::Finding;
use crate::datapath::netfilter::{self, Found, TABLE};
use crate::datapath::netlink::Netlink;
use crate::datapath::{Error, routes};

const CHECK: &str = "NAT";

/// What the kernel says, and the daemon's status if it answers.
#[must_use]
pub(super) fn finding(daemon: Option<&Value>) -> Finding {
    let local = Netlink::open()
        .map_err(Error::netlink("opening a netlink socket"))
        .and_then(|mut netlink| routes::own_routes(&mut netlink));
    match local {
        Ok(local) => judge(&local, netfilter::found(), daemon),
        Err(error) => Finding::good(CHECK, format!("not looked at: {error}")),
    }
}

fn judge(local: &BTreeSet<IpAddr>, found: io::Result<Found>, daemon: Option<&Value>) -> Finding {
    let why = daemon.and_then(|daemon| daemon["nat_shield"]["failed"].as_str());
    if local.is_empty() {
        return Finding::good(CHECK, "no VIP is local here");
    }
    // The node serves all the same, so this is no failure.
    let warning = |why: String| Finding {
        remedy: Some("see docs/install.md, \"Firewalls and NAT\"".to_owned()),
        ..Finding::good(CHECK, why)
    };
    if let Some(why) = why {
        return warning(why.to_owned());
    }
    let missing: Vec<String> = match found {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let asked = "give this process CAP_NET_ADMIN to have it looked at";
            let found = match daemon {
                Some(_) => "the daemon says that VIPs are kept from it".to_owned(),
                None => format!("not looked at: {asked}"),
            };
            return Finding::good(CHECK, found);
        }
        Err(error) if netfilter::is_unable(&error) => {
            return warning(netfilter::sentence(&error));
        }
        Err(error) => {
            return Finding::bad(
                CHECK,
                format!("nftables cannot be read: {error}"),
                "run it again",
            );
        }
        Ok(Found::Table(have)) => local.difference(&have).map(ToString::to_string).collect(),
        Ok(Found::None | Found::Other) => local.iter().map(ToString::to_string).collect(),
    };
    if missing.is_empty() {
        let count = local.len();
        return Finding::good(CHECK, format!("{count} VIP addresses are kept from it"));
    }
    Finding::bad(
        CHECK,
        format!(
            "the table inet {TABLE} of nftables does not have {}: rules for all addresses of this machine, as of a pod with hostPort and no hostIP, may take their connections",
            missing.join(", ")
        ),
        "start `forebay agent` (or `forebay run`), which puts it back within a second, and see its log for why it does not",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn local_addresses_outside_the_table_are_named() {
        let addresses = |last: &[u8]| -> BTreeSet<IpAddr> {
            last.iter()
                .map(|last| IpAddr::from([192, 0, 2, *last]))
                .collect()
        };
        let local = addresses(&[100, 101]);
        let said = |found, daemon: Option<&Value>| {
            let finding = judge(&local, found, daemon);
            (finding.ok, finding.found, finding.remedy.is_some())
        };
        let all = said(Ok(Found::Table(addresses(&[100, 101, 102]))), None);
        assert_eq!(
            all,
            (true, "2 VIP addresses are kept from it".to_owned(), false)
        );
        let (ok, text, remedy) = said(Ok(Found::Table(addresses(&[101]))), None);
        assert!(
            !ok && remedy && text.contains(" does not have 192.0.2.100: "),
            "{text}"
        );
        for found in [Found::None, Found::Other] {
            let well = json!({"nat_shield": {"failed": null}});
            let (ok, text, _) = said(Ok(found), Some(&well));
            assert!(!ok && text.contains("192.0.2.100, 192.0.2.101: "), "{text}");
        }
        // A kernel that cannot have it: a warning.
        let unable = json!({"nat_shield": {"failed": "VIPs are served, but not kept from NAT"}});
        let warned = (
            true,
            "VIPs are served, but not kept from NAT".to_owned(),
            true,
        );
        assert_eq!(said(Ok(Found::None), Some(&unable)), warned);
        let (ok, text, remedy) = said(
            Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT)),
            None,
        );
        assert!(ok && remedy && text.contains("not kept from NAT"), "{text}");
        let denied = || Err(io::Error::from_raw_os_error(libc::EPERM));
        assert!(said(denied(), None).1.starts_with("not looked at"));
        assert_eq!(
            judge(&BTreeSet::new(), denied(), None).found,
            "no VIP is local here"
        );
    }
}
