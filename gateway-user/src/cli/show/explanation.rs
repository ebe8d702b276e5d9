//! What becomes of a request, as text: the listener, the rules that were tried, the backends of the one that won.

use std::fmt::Write as _;

use serde_json::Value;

use super::{any, cluster_name, items, join, matching, rule_name, text};

/// `forebay explain`.
#[must_use]
pub fn explanation(answer: &Value, port: u16) -> String {
    if items(answer).is_empty() {
        return format!(
            "no Gateway listens on port {port}; `forebay routes` lists what is served\n"
        );
    }
    items(answer).iter().map(explained_bind).collect()
}

fn explained_bind(bind: &Value) -> String {
    let mut out = format!(
        "{} (Gateway {})\n",
        text(&bind["bind"]),
        text(&bind["gateway"])
    );
    for listener in items(&bind["listeners"]) {
        let chosen = listener["chosen"] == Value::Bool(true);
        let mark = if chosen { "listener" } else { "not     " };
        let _ = writeln!(
            out,
            "  {mark}  {} (host {})",
            text(&listener["name"]),
            any(&listener["hostname"])
        );
    }
    for tried in items(&bind["considered"]) {
        let rule = rule_name(&tried["rule"], &tried["name"]);
        let what = matching(&tried["matching"]);
        let _ = match &tried["mismatch"] {
            Value::Null => writeln!(out, "  rule      {rule} ({what})"),
            why => writeln!(
                out,
                "  not       {rule} ({what}): {} differs",
                text(why).to_lowercase()
            ),
        };
    }
    for filter in items(&bind["winner"]["filters"]) {
        let _ = writeln!(out, "  filter    {}", text(filter));
    }
    if let Some(retry) = bind["winner"]["retry"].as_str() {
        let _ = writeln!(out, "  retry     {retry}");
    }
    for backend in items(&bind["winner"]["backends"]) {
        let key = &backend["cluster"];
        let target = match backend["invalid"].as_str() {
            Some(why) if text(&bind["bind"]).ends_with("/udp") => format!("dropped: {why}"),
            Some(why) => format!("answers 500: {why}"),
            None => cluster_name(key),
        };
        let policy = key["destination_rule"].as_str();
        let policy =
            policy.map_or_else(String::new, |name| format!(" under DestinationRule {name}"));
        let to = join(
            items(&backend["endpoints"])
                .iter()
                .map(|e| text(&e["key"]["address"])),
        );
        let _ = writeln!(
            out,
            "  {:>3} %     {target}{policy}: {to}",
            text(&backend["percent"])
        );
        for filter in items(&backend["filters"]) {
            let _ = writeln!(out, "  filter      {}", text(filter));
        }
    }
    let _ = writeln!(out, "  {}", text(&bind["outcome"]));
    out
}
