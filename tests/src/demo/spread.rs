//! Act 1: each node's share is as the hash gives, whichever node a packet comes to first.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Table, must};
use crate::{
    client::{Finished, Load, Tally},
    fixture::HOST,
    rig::{Rig, VIP},
    topology::CLIENT,
};

/// New connections in all.
pub const CONNECTIONS: usize = 300;

/// Sends 300 new connections, the switch delivering to each node in turn; all must be answered 200 by the
/// node that the hash names, with the client's address kept.
///
/// # Errors
/// The first connection that was not, by its port.
pub fn spread(rig: &mut Rig) -> Result<Table> {
    rig.backends.forget_all();
    let nodes = rig.daemons.len();
    let steering = rig.steering();
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    let mut finished: Vec<Finished> = Vec::new();
    for entry in 0..nodes {
        rig.deliver_to(entry)?;
        let load = Load {
            overlap: 10,
            path: format!("/spread/{entry}/"),
            ..Load::new(VIP, HOST, CONNECTIONS / nodes)
        };
        let sent = rig.client.send(load)?;
        let tally = Tally::of(&sent);
        let name = &rig.topology.nodes[entry].name;
        must!(
            tally.status(200) == sent.len(),
            "{} connections through {name}: {tally}",
            sent.len()
        );
        for request in &sent {
            let owner = Rig::owner_of(&steering, request);
            let path = format!("/spread/{entry}/{}", request.number);
            check_path(rig, &path, &owner, request.port)?;
            *expected.entry(owner).or_default() += 1;
        }
        finished.extend(sent);
    }
    table(rig, &expected, finished.len())
}

/// The backend that saw this path saw it from the owner, with the client's address.
fn check_path(rig: &Rig, path: &str, owner: &str, port: u16) -> Result<()> {
    let seen: Vec<_> = rig
        .backends
        .seen()
        .into_iter()
        .filter(|seen| seen.path == path)
        .collect();
    must!(
        seen.len() == 1,
        "the request {path} reached {} backends, not 1",
        seen.len()
    );
    let seen = &seen[0];
    let site = rig
        .topology
        .nodes
        .iter()
        .find(|site| site.name == owner)
        .context("the owner is no node")?;
    must!(
        seen.peer == site.back,
        "the connection from port {port} belongs to {owner} ({}) but came from {}",
        site.back,
        seen.peer
    );
    let kept = seen.forwarded_for.as_deref() == Some(&CLIENT.to_string());
    must!(
        kept,
        "the connection from port {port} came with X-Forwarded-For {:?}, not {CLIENT}",
        seen.forwarded_for
    );
    Ok(())
}

fn table(rig: &Rig, expected: &BTreeMap<String, usize>, sent: usize) -> Result<Table> {
    let mut table = Table::new(["node", "by the hash", "served", "forward"]);
    let seen = rig.backends.seen();
    must!(
        seen.len() == sent,
        "{sent} connections made {} requests at the backends",
        seen.len()
    );
    for site in &rig.topology.nodes {
        let by_hash = expected.get(&site.name).copied().unwrap_or(0);
        let served = seen.iter().filter(|seen| seen.peer == site.back).count();
        must!(
            by_hash == served,
            "{} served {served} connections, the hash gives it {by_hash}",
            site.name
        );
        table.row([
            site.name.clone(),
            by_hash.to_string(),
            served.to_string(),
            rig.settings.forward.clone(),
        ]);
    }
    Ok(table)
}
