//! Tables of objects and their conditions.

use serde_json::Value;

use super::{items, join, name_of, text};
use crate::cli::table::Table;

/// One table for each kind, then each condition that is not as it should be.
pub(super) fn objects(objects: &Value) -> String {
    let mut tables = Objects {
        gateways: Table::new("Gateways", &["NAME", "ADDRESSES", "PROGRAMMED"]),
        listeners: Table::new("Listeners", &["GATEWAY", "NAME", "ROUTES", "PROGRAMMED"]),
        routes: Table::new("Routes", &["NAME", "PARENT", "ACCEPTED", "REFS"]),
        policies: Table::new("Policies", &["NAME", "TARGET", "ACCEPTED"]),
        others: Table::new(
            "Other objects",
            &["KIND", "NAME", "CONDITION", "STATUS", "REASON"],
        ),
        remarks: Table::new(
            "Not as asked for",
            &["OBJECT", "CONDITION", "REASON", "MESSAGE"],
        ),
    };
    for object in items(objects) {
        tables.add(object);
    }
    let Objects {
        gateways,
        listeners,
        routes,
        policies,
        others,
        remarks,
    } = tables;
    format!("{gateways}{listeners}{routes}{policies}{others}{remarks}")
}

struct Objects {
    gateways: Table,
    listeners: Table,
    routes: Table,
    policies: Table,
    others: Table,
    remarks: Table,
}

impl Objects {
    fn add(&mut self, object: &Value) {
        let (name, status) = (name_of(object), &object["status"]);
        let kind = text(&object["kind"]);
        remark(
            &mut self.remarks,
            &format!("{kind} {name}"),
            &status["conditions"],
        );
        match kind.as_str() {
            "Gateway" => self.add_gateway(&name, status),
            "HTTPRoute" | "GRPCRoute" | "UDPRoute" => {
                for parent in items(&status["parents"]) {
                    let of = text(&parent["parentRef"]["name"]);
                    remark(
                        &mut self.remarks,
                        &format!("{kind} {name} at {of}"),
                        &parent["conditions"],
                    );
                    let accepted = truth(&parent["conditions"], "Accepted");
                    self.routes.row([
                        name.clone(),
                        of,
                        accepted,
                        truth(&parent["conditions"], "ResolvedRefs"),
                    ]);
                }
            }
            "TrafficPolicy" => {
                for ancestor in items(&status["ancestors"]) {
                    let target = &ancestor["ancestorRef"];
                    let mut of = text(&target["name"]);
                    if let Some(section) = target["sectionName"].as_str() {
                        of = format!("{of}/{section}");
                    }
                    let accepted = truth(&ancestor["conditions"], "Accepted");
                    let what = format!("{kind} {name} at {of}");
                    remark(&mut self.remarks, &what, &ancestor["conditions"]);
                    self.policies.row([name.clone(), of, accepted]);
                }
            }
            _ => {
                for c in items(&status["conditions"]) {
                    let [of, value, reason] = [&c["type"], &c["status"], &c["reason"]].map(text);
                    self.others
                        .row([kind.clone(), name.clone(), of, value, reason]);
                }
            }
        }
    }

    fn add_gateway(&mut self, name: &str, status: &Value) {
        let addresses = items(&status["addresses"])
            .iter()
            .map(|a| text(&a["value"]));
        self.gateways.row([
            name.to_owned(),
            join(addresses),
            truth(&status["conditions"], "Programmed"),
        ]);
        for listener in items(&status["listeners"]) {
            let section = text(&listener["name"]);
            let what = format!("Gateway {name} listener {section}");
            remark(&mut self.remarks, &what, &listener["conditions"]);
            let routes = text(&listener["attachedRoutes"]);
            self.listeners.row([
                name.to_owned(),
                section,
                routes,
                truth(&listener["conditions"], "Programmed"),
            ]);
        }
    }
}

fn truth(conditions: &Value, kind: &str) -> String {
    let found = items(conditions).iter().find(|c| c["type"] == kind);
    found.map_or_else(|| "-".into(), |c| text(&c["status"]))
}

/// Adds the conditions that say something is wrong.
fn remark(remarks: &mut Table, object: &str, conditions: &Value) {
    const BAD_IF_TRUE: [&str; 4] = [
        "Conflicted",
        "OverlappingTLSConfig",
        "PartiallyInvalid",
        "forebay.dev/UnsupportedFields",
    ];
    for c in items(conditions) {
        let kind = text(&c["type"]);
        let good = if BAD_IF_TRUE.contains(&kind.as_str()) {
            "False"
        } else {
            "True"
        };
        if c["status"] != good {
            remarks.row([
                object.to_owned(),
                kind,
                text(&c["reason"]),
                text(&c["message"]),
            ]);
        }
    }
}
