//! The kernel half as text: interfaces, nodes, what the others answer to probes.

use serde_json::Value;

use super::{items, join, text};
use crate::cli::table::Table;

/// The kernel half; nothing with `--datapath off`.
pub(super) fn datapath(datapath: &Value) -> String {
    if datapath.is_null() {
        return String::new();
    }
    let mut links = Table::new(
        "Interfaces",
        &["NAME", "STATE", "MODE", "COST", "MTU", "NOTE"],
    );
    for link in items(&datapath["interfaces"]) {
        links.row([
            text(&link["interface"]),
            text(&link["state"]),
            text(&link["mode"]),
            cost(&link["cost_percent"]),
            text(&link["mtu"]),
            text(&link["note"]),
        ]);
    }
    let mut nodes = Table::new(
        "Nodes",
        &["NAME", "ADDRESS", "STATE", "ROWS", "FORWARD", "MAC"],
    );
    for node in items(&datapath["nodes"]) {
        let [name, address, state, rows, mac] =
            ["name", "address", "state", "rows", "mac"].map(|cell| text(&node[cell]));
        let state = match node["dead"] == true {
            true => format!("{state}, dead"),
            false => state,
        };
        nodes.row([name, address, state, rows, way(node), mac]);
    }
    let peers = peers(&datapath["nodes"]);
    let announced = join(items(&datapath["announcing"]).iter().map(text));
    format!(
        "{links}{nodes}{peers}Rows in transition: {}. Second chances: {}. Announced by this node: {announced}.\n{}{}{}\n",
        text(&datapath["rows_in_transition"]),
        text(&datapath["counters"]["second_chance"]),
        shielded(datapath),
        routed(datapath),
        left_out(datapath),
    )
}

/// What does not work here, one sentence each.
fn left_out(datapath: &Value) -> String {
    let sentences = items(&datapath["left_out"]).iter().map(text);
    sentences
        .map(|sentence| format!("Not served: {sentence}.\n"))
        .collect()
}

/// Whether others' rules may rewrite packets of VIPs; nothing where no VIP is local.
fn shielded(datapath: &Value) -> String {
    let shield = &datapath["nat_shield"];
    if let Some(why) = shield["failed"].as_str() {
        return format!("Not kept from NAT: {why}.\n");
    }
    let restored = match shield["restored"].as_u64() {
        None | Some(0) => String::new(),
        Some(times) => format!(" (put back: {times})"),
    };
    match items(&shield["addresses"]) {
        [] => String::new(),
        all => format!("Kept from NAT: {}{restored}.\n", join(all.iter().map(text))),
    }
}

/// The addresses that routers send here, or would.
fn routed(datapath: &Value) -> String {
    let routed = items(&datapath["routed"]);
    if routed.is_empty() {
        return String::new();
    }
    let all = join(routed.iter().map(text));
    let told = match (items(&datapath["exported"]), &datapath["withheld"]) {
        ([], Value::String(why)) => format!("none, {why}"),
        ([], _) => "none yet".to_owned(),
        (known, _) => join(known.iter().map(text)),
    };
    format!("VIPs {all}: announced by: nobody (routed). Routers are told of: {told}.\n")
}

/// How packets go to a node, and why so.
fn way(node: &Value) -> String {
    let way = text(&node["forward"]);
    let vip = node["path"]["vip"].as_str();
    match (node["forward_reason"].as_str(), vip) {
        (None | Some(""), _) => way,
        (Some(why), Some(vip)) => format!("{way} ({why} for {vip})"),
        (Some(why), None) => format!("{way} ({why})"),
    }
}

/// What a packet costs in a mode, beside what it costs natively.
fn cost(percent: &Value) -> String {
    let tenths = percent.as_u64().unwrap_or(100) / 10;
    format!("about {}.{} × native", tenths / 10, tenths % 10)
}

/// What the other nodes answer to probes.
fn peers(nodes: &Value) -> Table {
    let mut table = Table::new(
        "Peers",
        &[
            "NAME",
            "PROBES",
            "LAST ANSWER",
            "MEMBERSHIP",
            "FOREIGN",
            "PROXY",
            "ROUND TRIP",
            "LOST",
        ],
    );
    for node in items(nodes).iter().filter(|node| !node["probes"].is_null()) {
        let probes = &node["probes"];
        let with = |value: &Value, unit: &str| match value {
            Value::Null => "-".into(),
            value => format!("{} {unit}", text(value)),
        };
        let either = |value: &Value, yes: &str, no: &str| match value.as_bool() {
            Some(true) => yes.to_owned(),
            Some(false) => no.to_owned(),
            None => "-".to_owned(),
        };
        let standing = match node["dead"] == Value::Bool(true) {
            true => "dead".into(),
            false => text(&probes["standing"]),
        };
        table.row([
            text(&node["name"]),
            standing,
            with(&probes["last_answer_ms"], "ms ago"),
            either(&probes["same_membership"], "equal", "differs"),
            text(&probes["foreign_sockets"]),
            either(&probes["proxy_alive"], "alive", "hangs"),
            with(&probes["round_trip_us"], "us"),
            text(&probes["lost"]),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whether_nat_sees_vips_is_said() {
        let shown = |shield| datapath(&json!({"nat_shield": shield}));
        let has = |shield, line: &str| {
            let shown = shown(shield);
            assert!(shown.lines().any(|shown| shown == line), "{shown}");
        };
        let two = json!(["192.0.2.100", "2001:db8::1"]);
        has(
            json!({"addresses": two, "restored": 0, "failed": null}),
            "Kept from NAT: 192.0.2.100,2001:db8::1.",
        );
        has(
            json!({"addresses": two, "restored": 3, "failed": null}),
            "Kept from NAT: 192.0.2.100,2001:db8::1 (put back: 3).",
        );
        has(
            json!({"addresses": [], "restored": 0, "failed": "no nf_tables"}),
            "Not kept from NAT: no nf_tables.",
        );
        let none = shown(json!({"addresses": [], "restored": 0, "failed": null}));
        assert!(!none.contains("NAT"), "{none}");
    }

    #[test]
    fn the_dead_are_called_so_and_what_is_not_served_is_said() {
        let shown = datapath(&json!({
            "nodes": [
                {"name": "a", "address": "192.0.2.1", "state": "Ready", "dead": false},
                {"name": "b", "address": "192.0.2.2", "state": "Ready", "dead": true},
            ],
            "left_out": ["2001:db8::1 is not served by this node: IPv6 is off"],
        }));
        let line = |start: &str| {
            let mut lines = shown.lines();
            lines
                .find(|line| line.trim_start().starts_with(start))
                .unwrap()
                .to_owned()
        };
        assert!(!line("a ").contains("dead"), "{shown}");
        assert!(line("b ").contains("Ready, dead"), "{shown}");
        assert!(
            line("Not served: 2001:db8::1 is not served").ends_with("IPv6 is off."),
            "{shown}"
        );
    }
}
