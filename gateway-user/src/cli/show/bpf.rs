//! `forebay bpf` and its subcommands as text.

use std::fmt::Write as _;

use serde_json::Value;

use super::{datapath, items, text};
use crate::cli::table::Table;

/// `forebay bpf`.
#[must_use]
pub fn overview(answer: &Value) -> String {
    if answer.is_null() {
        return "this daemon runs with --datapath off: it has no kernel tables\n".into();
    }
    let mut out = if answer["daemon"] == Value::Bool(false) {
        format!(
            "No daemon answers: this is what the kernel's tables say.\n\n{}{}{}",
            nodes(answer),
            owners(answer),
            vips(answer)
        )
    } else {
        let mut vips = Table::new("VIPs", &["ADDRESS", "GROUP", "STATE", "PACKETS"]);
        for vip in items(&answer["vips"]) {
            let draining = vip["draining"] == Value::Bool(true);
            let state = if draining { "draining" } else { "serving" };
            let [address, group, packets] =
                ["vip", "group", "packets"].map(|cell| text(&vip[cell]));
            vips.row([address, group, state.into(), packets]);
        }
        format!("{}{vips}", datapath(answer))
    };
    let mut counters = Table::new("Counters", &["REASON", "PACKETS"]);
    for (reason, packets) in answer["counters"].as_object().into_iter().flatten() {
        if packets.as_u64() != Some(0) {
            counters.row([reason.clone(), text(packets)]);
        }
    }
    out += &counters.to_string();
    out += &memory(&answer["memory"]);
    out
}

fn memory(memory: &Value) -> String {
    if let Some(error) = memory["error"].as_str() {
        return format!("Memory of the tables: not known, since {error}.\n");
    }
    let Some(total) = memory["total_bytes"].as_u64() else {
        return String::new();
    };
    let maps = memory["maps"].as_object().map_or(0, serde_json::Map::len);
    let (mib, kib) = (total >> 20, total >> 10);
    let tenth = (kib % 1024) * 10 / 1024;
    format!("Memory of the tables: {mib}.{tenth} MiB in {maps} maps.\n")
}

/// `forebay bpf vips`.
#[must_use]
pub fn vips(answer: &Value) -> String {
    let columns = [
        "ADDRESS", "PROTOCOL", "GROUP", "RETURN", "HASH", "SOURCES", "STATE", "PACKETS",
    ];
    let mut table = Table::new("VIPs", &columns);
    for vip in items(&answer["vips"]) {
        let sources = match vip["sources"].as_str() {
            Some("all") | None => "all".to_owned(),
            Some(kind) => format!(
                "{kind} of {} allowed, {} denied",
                text(&vip["allowed_prefixes"]),
                text(&vip["denied_prefixes"])
            ),
        };
        let mut state = match vip["announced"].as_bool() {
            Some(true) => "announced here".to_owned(),
            Some(false) => "-".to_owned(),
            None => text(&vip["state"]),
        };
        if vip["shared"] == Value::Bool(true) {
            state += ", shared with the node";
        }
        let [address, protocol, group, back, hash] =
            ["vip", "protocol", "group", "return_path", "hash"].map(|cell| text(&vip[cell]));
        let packets = text(&vip["packets"]);
        table.row([
            address, protocol, group, back, hash, sources, state, packets,
        ]);
    }
    or(&table, "there are no VIPs\n")
}

/// `forebay bpf nodes`.
#[must_use]
pub fn nodes(answer: &Value) -> String {
    let columns = [
        "INDEX",
        "NAME",
        "ADDRESS",
        "STATE",
        "SUSPECT",
        "PATH",
        "MAC",
        "INTERFACE",
        "VLAN",
        "MTU",
    ];
    let mut table = Table::new("Nodes", &columns);
    let mut packets = Table::new(
        "Packets to them, by path",
        &["INDEX", "L2", "UDP", "SECOND CHANCE", "SYN HEIR"],
    );
    for node in items(&answer["nodes"]) {
        let suspect = if node["suspect"] == Value::Bool(true) {
            "suspect"
        } else {
            "-"
        };
        let or_none = |value: &Value| match value.as_u64() {
            Some(0) => "-".to_owned(),
            _ => text(value),
        };
        let [index, name, address, state, forward, mac, interface] = [
            "index",
            "name",
            "address",
            "state",
            "forward",
            "mac",
            "interface",
        ]
        .map(|cell| text(&node[cell]));
        table.row([
            index.clone(),
            name,
            address,
            state,
            suspect.to_owned(),
            forward,
            mac,
            interface,
            or_none(&node["vlan"]),
            or_none(&node["mtu"]),
        ]);
        let sums =
            ["l2", "udp", "second_chance", "syn_heir"].map(|path| text(&node["packets"][path]));
        packets.row([vec![index], sums.to_vec()].concat());
    }
    if items(&answer["nodes"]).is_empty() {
        return "no node is listed\n".to_owned();
    }
    format!("{table}{packets}")
}

/// `forebay bpf counters`.
#[must_use]
pub fn counters(answer: &Value) -> String {
    let mut table = Table::new("Counters", &["REASON", "PACKETS"]);
    for (reason, packets) in answer["counters"].as_object().into_iter().flatten() {
        table.row([reason.clone(), text(packets)]);
    }
    let mut paths = Table::new("Packets to other nodes", &["PATH", "PACKETS"]);
    for (path, packets) in answer["paths"].as_object().into_iter().flatten() {
        paths.row([path.clone(), text(packets)]);
    }
    format!("{table}{paths}")
}

/// `forebay bpf rows`.
#[must_use]
pub fn rows(answer: &Value) -> String {
    if !answer["owners"].is_null() {
        return owners(answer);
    }
    let mut table = Table::new("Rows", &["ROW", "OWNER", "STATE", "RANKS"]);
    for row in items(&answer["rows"]) {
        let moving = row["in_transition"] == Value::Bool(true);
        let state = if moving { "in transition" } else { "stable" };
        let mut ranks = String::new();
        for rank in items(&row["ranks"]) {
            let before = if ranks.is_empty() { "" } else { " > " };
            let _ = write!(ranks, "{before}{}", text(&rank["node"]));
            let state = rank["state"].as_str().filter(|state| *state != "ready");
            let suspect = (rank["suspect"] == Value::Bool(true)).then_some("suspect");
            for word in state.into_iter().chain(suspect) {
                let _ = write!(ranks, " ({word})");
            }
        }
        let [number, owner] = [&row["row"], &row["owner"]].map(text);
        table.row([number, owner, state.into(), ranks]);
    }
    let flow = &answer["flow"];
    let mut out = String::new();
    if !flow.is_null() {
        let [client, vip, protocol] = ["client", "vip", "protocol"].map(|end| text(&flow[end]));
        let _ = writeln!(out, "{client} to {vip}/{protocol}\n");
        if flow["local_only"] == Value::Bool(true) {
            out += "The VIP is local-only: each node serves what it receives, whoever owns the row.\n\n";
        }
    }
    out + &table.to_string()
}

fn owners(answer: &Value) -> String {
    let mut table = Table::new(
        "Rows",
        &["OWNER", "STATE", "ROWS", "SHARE", "IN TRANSITION"],
    );
    for owner in items(&answer["owners"]) {
        let name = match owner["owner"].as_str() {
            Some(name) => name.to_owned(),
            None => "nobody".to_owned(),
        };
        let share = format!("{:.2} %", owner["percent"].as_f64().unwrap_or_default());
        let [state, rows, moving] =
            ["state", "rows", "in_transition"].map(|cell| text(&owner[cell]));
        table.row([name, state, rows, share, moving]);
    }
    table.to_string()
}

fn or(table: &Table, otherwise: &str) -> String {
    match table.to_string() {
        text if text.is_empty() => otherwise.to_owned(),
        text => text,
    }
}
