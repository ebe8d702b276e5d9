//! Answers of the daemon as text for people. Everything here is also in the JSON form.

pub mod bpf;
mod datapath;
mod explanation;

use std::fmt::Write as _;

use serde_json::Value;

use self::datapath::datapath;
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

/// `forebay dump`: what `status`, `routes` and `endpoints` show.
#[must_use]
pub fn dump(answer: &Value) -> String {
    status(&answer["status"]) + &routes(&answer["config"]) + &endpoints(&answer["endpoints"])
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
    let redirect = &rule["filters"]["redirect"]["status"];
    let to = match redirect.as_u64() {
        Some(status) => format!("redirect {status}"),
        None => join(backends),
    };
    (rule_name(&rule["key"], &rule["name"]), to)
}

/// A rule by its name, if it has one, else by its position; the kind is said if it is not HTTPRoute.
fn rule_name(key: &Value, name: &Value) -> String {
    let of = if name.is_string() {
        name
    } else {
        &key["index"]
    };
    let rule = format!("{}/rule/{}", text(&key["route"]), text(of));
    match key["kind"].as_str() {
        Some("GRPCRoute") => format!("GRPCRoute {rule}"),
        _ => rule,
    }
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
