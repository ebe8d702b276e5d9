//! Answers of the daemon as text for people. Everything here is also in the JSON form.

mod explanation;

use std::fmt::Write as _;

use serde_json::Value;

pub use self::explanation::explanation;
use super::table::Table;

mod objects;

use objects::objects;

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A host name, where none stands for all.
fn any(hostname: &Value) -> String {
    hostname.as_str().unwrap_or("*").to_owned()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn name_of(object: &Value) -> String {
    match object["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{}", text(&object["name"])),
        None => text(&object["name"]),
    }
}

/// `forebay status`.
#[must_use]
pub fn status(answer: &Value) -> String {
    let mut out = format!(
        "Node {}: {}, configuration {}, {}, {} open connections\n\n",
        text(&answer["node"]),
        if answer["well"] == Value::Bool(true) {
            "well"
        } else {
            "not well"
        },
        text(&answer["generation"]),
        text(&answer["drain"]),
        text(&answer["open_connections"]),
    );
    out += &datapath(&answer["datapath"]);
    let mut nodes = Table::new("Listed nodes", &["NAME", "ADDRESS", "STATE", "WEIGHT"]);
    for replica in items(&answer["replicas"]) {
        nodes.row(
            [
                &replica["name"],
                &replica["address"],
                &replica["state"],
                &replica["weight"],
            ]
            .map(text),
        );
    }
    out += &nodes.to_string();
    out += &objects(&answer["objects"]);
    out += &problems(&answer["problems"]);
    out
}

/// `forebay bpf`.
#[must_use]
pub fn bpf(answer: &Value) -> String {
    if answer.is_null() {
        return "this daemon runs with --datapath off: it has no kernel tables\n".into();
    }
    let mut vips = Table::new("VIPs", &["ADDRESS", "GROUP", "STATE"]);
    for vip in items(&answer["vips"]) {
        let draining = vip["draining"] == Value::Bool(true);
        let state = if draining { "draining" } else { "serving" };
        vips.row([text(&vip["vip"]), text(&vip["group"]), state.into()]);
    }
    let mut counters = Table::new("Counters", &["REASON", "PACKETS"]);
    for (reason, packets) in answer["counters"].as_object().into_iter().flatten() {
        if packets.as_u64() != Some(0) {
            counters.row([reason.clone(), text(packets)]);
        }
    }
    format!("{}{vips}{counters}", datapath(answer))
}

/// The kernel half; nothing with `--datapath off`.
fn datapath(datapath: &Value) -> String {
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
        let cells =
            ["name", "address", "state", "rows", "forward", "mac"].map(|cell| text(&node[cell]));
        nodes.row(cells);
    }
    let peers = peers(&datapath["nodes"]);
    let announced = join(items(&datapath["announcing"]).iter().map(text));
    format!(
        "{links}{nodes}{peers}Rows in transition: {}. Second chances: {}. Announced by this node: {announced}.\n\n",
        text(&datapath["rows_in_transition"]),
        text(&datapath["counters"]["second_chance"]),
    )
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

/// `forebay validate`.
#[must_use]
pub fn validation(answer: &Value) -> String {
    let mut out = objects(&answer["objects"]);
    out += &problems(&answer["problems"]);
    let empty = |list: &str| items(&answer[list]).is_empty();
    if empty("objects") && empty("problems") && empty("ignored") {
        return "there are no objects; manifests are files that end in .yaml, .yml or .json\n"
            .into();
    }
    for ignored in items(&answer["ignored"]) {
        let _ = writeln!(
            out,
            "note: {}: {}",
            text(&ignored["object"]),
            text(&ignored["message"])
        );
    }
    out += if answer["well"] == Value::Bool(true) {
        "everything is well\n"
    } else {
        "not everything is well\n"
    };
    out
}

fn join(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        "-".into()
    } else {
        parts.join(",")
    }
}

fn problems(problems: &Value) -> String {
    let mut table = Table::new("Errors", &["FILE", "OBJECT", "FIELD", "MESSAGE"]);
    for problem in items(problems) {
        table.row(
            [
                &problem["file"],
                &problem["object"],
                &problem["field"],
                &problem["message"],
            ]
            .map(text),
        );
    }
    table.to_string()
}

/// `forebay routes`.
#[must_use]
pub fn routes(config: &Value) -> String {
    let mut table = Table::new(
        "",
        &["ADDRESS", "LISTENER", "HOST", "MATCH", "RULE", "BACKENDS"],
    );
    for bind in config["binds"]
        .as_object()
        .into_iter()
        .flat_map(|b| b.values())
    {
        for listener in items(&bind["listeners"]) {
            let mut row = |rule: &Value, host: String, what: String| {
                let (rule, backends) = rule_and_backends(config, rule);
                let [bind, name] = [&bind["key"], &listener["name"]].map(text);
                table.row([bind, name, host, what, rule, backends]);
            };
            for entry in items(&listener["router"]) {
                let what = matching(&entry["matching"]);
                row(&entry["rule"], any(&entry["hostname"]), what);
            }
            if listener["rule"].is_u64() {
                row(&listener["rule"], any(&Value::Null), "everything".into());
            }
        }
    }
    table.to_string()
}

/// Names of the rule at this position and of its backends.
fn rule_and_backends(config: &Value, position: &Value) -> (String, String) {
    let at = |list: &str, position: &Value| {
        let at = position.as_u64().and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| items(&config[list]).get(at))
            .unwrap_or(&Value::Null)
    };
    let rule = at("rules", position);
    let backends = items(&rule["backends"]).iter().map(|backend| {
        let name = match at("clusters", &backend["target"]["Cluster"]) {
            Value::Null => "invalid".into(),
            cluster => cluster_name(&cluster["key"]),
        };
        format!("{name}={}", text(&backend["weight"]))
    });
    let key = &rule["key"];
    let name = format!("{}/rule/{}", text(&key["route"]), text(&key["index"]));
    (name, join(backends))
}

fn cluster_name(key: &Value) -> String {
    let suffix = if key["transport"] == "Udp" {
        "/udp"
    } else {
        ""
    };
    format!("{}:{}{suffix}", text(&key["service"]), text(&key["port"]))
}

fn matching(matching: &Value) -> String {
    let mut parts = Vec::new();
    for kind in ["Exact", "Prefix", "Regex"] {
        if let Some(path) = matching["path"][kind].as_str() {
            let path = if path.is_empty() { "/" } else { path };
            parts.push(format!("{} {path}", kind.to_lowercase()));
        }
    }
    if let Some(method) = matching["method"].as_str() {
        parts.push(method.to_owned());
    }
    for (what, list) in [
        ("header", &matching["headers"]),
        ("query", &matching["query"]),
    ] {
        parts.extend(
            items(list)
                .iter()
                .map(|pair| format!("{what}:{}", text(&pair[0]))),
        );
    }
    parts.join(" ")
}

/// `forebay endpoints`.
#[must_use]
pub fn endpoints(answer: &Value) -> String {
    let mut clusters = Table::new(
        "Clusters",
        &["NAME", "CONNECTIONS", "REQUESTS", "PENDING", "EJECTIONS"],
    );
    let mut endpoints = Table::new(
        "Endpoints",
        &["CLUSTER", "ADDRESS", "HEALTH", "ACTIVE", "IDLE"],
    );
    for cluster in items(answer) {
        let (name, used) = (text(&cluster["name"]), &cluster["in_use"]);
        let [connections, requests, pending, ejections] = [
            &used["connections"],
            &used["requests"],
            &used["pending"],
            &cluster["ejections"],
        ]
        .map(text);
        clusters.row([name.clone(), connections, requests, pending, ejections]);
        for endpoint in items(&cluster["endpoints"]) {
            let health = if endpoint["ejected"] == Value::Bool(true) {
                format!(
                    "ejected, back in {} ms or later",
                    text(&endpoint["ejected_for_ms"])
                )
            } else if endpoint["terminating"] == Value::Bool(true) {
                "terminating".into()
            } else {
                "usable".into()
            };
            let [address, active, idle] =
                [&endpoint["address"], &endpoint["active"], &endpoint["idle"]].map(text);
            endpoints.row([name.clone(), address, health, active, idle]);
        }
    }
    format!("{clusters}{endpoints}")
}

/// `forebay check`.
#[must_use]
pub fn findings(answer: &Value) -> String {
    let mut table = Table::new("", &["CHECK", "", "FOUND", "WHAT TO DO"]);
    for finding in items(answer) {
        let ok = if finding["ok"] == Value::Bool(true) {
            "ok"
        } else {
            "NOT OK"
        };
        table.row([
            text(&finding["check"]),
            ok.into(),
            text(&finding["found"]),
            text(&finding["remedy"]),
        ]);
    }
    table.to_string()
}
