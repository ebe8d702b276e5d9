//! The kernel's tables as JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use gateway_common::abi::{
    NodeEntry, NodeIndex, ROWS, Row, VipEntry, VipKey, config, node_flag, vip_flag,
};
use gateway_common::hash::{flow_v4, flow_v6, row_of};
use serde_json::{Value, json};

use crate::datapath::counts::Counts;
use crate::datapath::look::{ListSize, Seen};
use crate::datapath::status::{Forward, NodePackets};
use crate::l4::address_of;
use crate::l4::vips::port_key;
use crate::snapshot::{BindKey, Transport};

/// Nodes of a row beside its owner.
const OTHERS: usize = gateway_common::abi::row::ROW_NODES - 1;

/// What a daemon calls the nodes of its tables.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: BTreeMap<NodeIndex, (IpAddr, String)>,
    own: Option<String>,
}

impl Names {
    /// Out of the daemon's answer to `/datapath`.
    #[must_use]
    pub fn of(answer: &Value) -> Self {
        let nodes = answer["nodes"].as_array().into_iter().flatten();
        let known = nodes.filter_map(|node| {
            let index = NodeIndex::try_from(node["index"].as_u64()?).ok()?;
            let address = node["address"].as_str()?.parse().ok()?;
            Some((index, (address, node["name"].as_str()?.to_owned())))
        });
        let nodes = answer["nodes"].as_array().into_iter().flatten();
        let own = nodes.into_iter().find(|node| node["forward"] == "own");
        Self {
            known: known.collect(),
            own: own.and_then(|node| Some(node["name"].as_str()?.to_owned())),
        }
    }

    /// The name of the node that the daemon runs on.
    #[must_use]
    pub fn own(&self) -> Option<&str> {
        self.own.as_deref()
    }

    /// The name, if the daemon knows the node under this index and address.
    #[must_use]
    pub fn name(&self, index: NodeIndex, entry: &NodeEntry) -> Option<&str> {
        let (address, name) = self.known.get(&index)?;
        (*address == address_of(entry.address)).then_some(name)
    }

    /// What to call a node: its name, else its address, else its index.
    #[must_use]
    pub fn call(&self, seen: &Seen, index: NodeIndex) -> String {
        let Some(entry) = seen.nodes.get(&index) else {
            return format!("#{index}");
        };
        self.name(index, entry)
            .map_or_else(|| address_of(entry.address).to_string(), str::to_owned)
    }
}

/// `tcp`, `udp`, or nothing for the entry of an address.
#[must_use]
pub fn protocol_name(number: u8) -> &'static str {
    match Transport::of_number(number) {
        Some(Transport::Tcp) => "tcp",
        Some(Transport::Udp) => "udp",
        None => "",
    }
}

fn state(flags: u32) -> &'static str {
    if flags & node_flag::READY != 0 {
        "ready"
    } else if flags & node_flag::DRAINING != 0 {
        "draining"
    } else {
        "joining"
    }
}

/// `forebay bpf vips`.
#[must_use]
pub fn vips(seen: &Seen, lists: &BTreeMap<u16, ListSize>, counts: &Counts) -> Value {
    let all = seen.vips.iter().map(|entry| {
        let mut value = vip(entry, lists);
        value["packets"] = json!(counts.of_vip(entry.number));
        value
    });
    json!({"vips": all.collect::<Vec<_>>()})
}

fn vip(entry: &VipEntry, lists: &BTreeMap<u16, ListSize>) -> Value {
    let address = address_of(entry.key.address);
    let port = u16::from_be_bytes(entry.key.port);
    let is = |flag: u32| entry.flags & flag != 0;
    let list = lists.get(&entry.sources).copied().unwrap_or_default();
    let sources = match (entry.sources, is(vip_flag::ALLOW_LIST)) {
        (0, _) => "all",
        (_, true) => "allow-list",
        (_, false) => "deny-list",
    };
    let mut value = json!({
        "address": address,
        "number": entry.number,
        "shared": is(vip_flag::SHARED),
        "hash": if is(vip_flag::BY_ADDRESSES) { "addresses" } else { "ports" },
        "sources": sources,
        "allowed_prefixes": list.allowed,
        "denied_prefixes": list.denied,
    });
    if entry.key.protocol == 0 {
        value["vip"] = json!(address);
        value["announced"] = json!(is(vip_flag::ANNOUNCE));
        return value;
    }
    value["vip"] = json!(SocketAddr::new(address, port).to_string());
    value["port"] = json!(port);
    value["protocol"] = json!(protocol_name(entry.key.protocol));
    value["group"] = json!(entry.group);
    let served_here = is(vip_flag::LOCAL_ONLY) || is(vip_flag::SHARED);
    value["return_path"] = json!(if served_here { "local-only" } else { "direct" });
    value["state"] = json!(if is(vip_flag::DRAINING) {
        "draining"
    } else {
        "serving"
    });
    value
}

/// `forebay bpf nodes`.
#[must_use]
pub fn nodes(seen: &Seen, names: &Names, counts: &Counts) -> Value {
    let all = seen.nodes.iter().map(|(index, entry)| {
        let [a, b, c, d, e, f] = entry.mac;
        let encapsulates = seen.config.flags & config::flag::ENCAP_ALWAYS != 0;
        json!({
            "index": index,
            "name": names.name(*index, entry),
            "address": address_of(entry.address),
            "state": state(entry.flags),
            "suspect": seen.suspects.contains(index),
            "forward": Forward::of(entry.flags, encapsulates),
            "mac": format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            "interface": interface(entry.ifindex),
            "mtu": entry.mtu,
            "vlan": entry.vlan,
            "packets": NodePackets::from(counts.of_node(*index)),
        })
    });
    json!({"nodes": all.collect::<Vec<_>>()})
}

/// `forebay bpf counters`.
#[must_use]
pub fn counters(counts: &Counts) -> Value {
    let mut paths: BTreeMap<&str, u64> = BTreeMap::new();
    for node in counts.nodes.values() {
        for (path, sum) in NodePackets::from(*node).by_path() {
            *paths.entry(path).or_default() += sum;
        }
    }
    json!({"counters": counts.reasons, "paths": paths})
}

/// Name of an interface, its index if it has gone; nothing for none.
fn interface(index: u32) -> Option<String> {
    if index == 0 {
        return None;
    }
    Some(crate::datapath::interface_name(index).unwrap_or_else(|| format!("#{index}")))
}

/// `forebay bpf rows`: how many rows each owner has.
#[must_use]
pub fn owners(seen: &Seen, names: &Names) -> Value {
    let mut owners: BTreeMap<NodeIndex, (u32, u32)> = BTreeMap::new();
    // Listed nodes that own nothing are worth a line.
    owners.extend(seen.nodes.keys().map(|index| (*index, (0, 0))));
    for row in &seen.rows {
        let (rows, moving) = owners.entry(row.owner()).or_default();
        *rows += 1;
        *moving += u32::from(row.in_transition());
    }
    let in_transition: u32 = owners.values().map(|(_, moving)| moving).sum();
    let owners = owners.into_iter().map(|(index, (rows, moving))| {
        let entry = seen.nodes.get(&index);
        json!({
            "index": index,
            "owner": (index != 0).then(|| names.call(seen, index)),
            "state": entry.map(|entry| state(entry.flags)),
            "rows": rows,
            "percent": f64::from(rows) * 100.0 / f64::from(ROWS),
            "in_transition": moving,
        })
    });
    json!({
        "owners": owners.collect::<Vec<_>>(),
        "rows_in_transition": in_transition,
    })
}

/// `forebay bpf rows ROW...`.
#[must_use]
pub fn rows(seen: &Seen, names: &Names, rows: &[u32]) -> Value {
    let all = rows.iter().map(|row| one_row(seen, names, *row));
    json!({"rows": all.collect::<Vec<_>>()})
}

/// Nodes of a row in the order of their ranks, highest first.
#[must_use]
pub fn ranks(row: Row) -> Vec<NodeIndex> {
    let listed = |outranks: bool| {
        let others = (0..OTHERS).filter(move |i| row.outranks_owner(*i) == outranks);
        others.map(move |i| row.next(i)).filter(|index| *index != 0)
    };
    let owner = Some(row.owner()).filter(|index| *index != 0);
    listed(true).chain(owner).chain(listed(false)).collect()
}

fn one_row(seen: &Seen, names: &Names, number: u32) -> Value {
    let row = seen.rows.get(number as usize).copied().unwrap_or_default();
    let ranks = ranks(row).into_iter().map(|index| {
        let entry = seen.nodes.get(&index);
        json!({
            "node": names.call(seen, index),
            "index": index,
            "owner": index == row.owner(),
            "state": entry.map(|entry| state(entry.flags)),
            "suspect": seen.suspects.contains(&index),
        })
    });
    json!({
        "row": number,
        "owner": (row.owner() != 0).then(|| names.call(seen, row.owner())),
        "in_transition": row.in_transition(),
        "ranks": ranks.collect::<Vec<_>>(),
    })
}

/// `forebay bpf rows --address`: the row of a flow; nothing if it is not for a VIP.
#[must_use]
pub fn row_of_flow(
    seen: &Seen,
    names: &Names,
    client: SocketAddr,
    vip: SocketAddr,
    transport: Transport,
) -> Option<Value> {
    let key: VipKey = port_key(BindKey {
        address: vip.ip(),
        port: vip.port(),
        transport,
    });
    let entry = seen.vips.iter().find(|entry| entry.key == key)?;
    let by_addresses = transport == Transport::Udp && entry.flags & vip_flag::BY_ADDRESSES != 0;
    let [a, b] = client.port().to_be_bytes();
    let [c, d] = vip.port().to_be_bytes();
    let ports = if by_addresses { [0; 4] } else { [a, b, c, d] };
    let (seed, number) = (seen.config.hash_key, transport.number());
    let hash = match (client.ip(), vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            flow_v4(seed, client.octets(), vip.octets(), ports, number)
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            flow_v6(seed, client.octets(), vip.octets(), ports, number)
        }
        _ => return None,
    };
    let mut value = rows(seen, names, &[row_of(hash)]);
    value["flow"] = json!({
        "client": client,
        "vip": vip,
        "protocol": protocol_name(number),
        "local_only": entry.flags & (vip_flag::LOCAL_ONLY | vip_flag::SHARED) != 0,
    });
    Some(value)
}

#[cfg(test)]
mod tests;
