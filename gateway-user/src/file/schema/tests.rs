//! The tables of `schema`: what they admit, what they refuse and in which words, and that nothing breaks them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::check;

/// See there.
const REFUSED: &str = include_str!("tests/refused.yaml");

/// Complete objects of all kinds, which every schema admits.
const GOOD: &str = include_str!("tests/good.yaml");

fn good(kind: &str) -> Value {
    let documents: Vec<Value> = serde_saphyr::from_multiple(GOOD).unwrap();
    documents
        .into_iter()
        .find(|document| document["kind"] == kind)
        .unwrap_or_else(|| panic!("there is no {kind}"))
}

fn findings(object: &Value) -> Vec<String> {
    check(object)
        .iter()
        .map(|finding| format!("{}: {}", finding.field, finding.message))
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// JSON pointer.
    set: String,
    to: Value,
    times: Option<usize>,
    #[serde(default)]
    want: Vec<String>,
}

fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match object.pointer_mut(parent) {
        Some(Value::Object(fields)) => drop(fields.insert(name.to_owned(), value)),
        Some(Value::Array(items)) if name == "-" => items.push(value),
        Some(Value::Array(items)) => items[name.parse::<usize>().unwrap()] = value,
        _ => panic!("there is no {parent}"),
    }
}

#[test]
fn every_row_of_the_table_is_refused_in_these_words() {
    let table: BTreeMap<String, Vec<Row>> = serde_saphyr::from_str(REFUSED).unwrap();
    for (kind, rows) in &table {
        for row in rows {
            let value = match row.times {
                Some(times) => vec![row.to.clone(); times].into(),
                None => row.to.clone(),
            };
            let mut object = good(kind);
            set(&mut object, &row.set, value);
            assert_eq!(
                findings(&object),
                row.want,
                "{kind} {} = {}",
                row.set,
                row.to
            );
        }
    }
    let rows: usize = table.values().map(Vec::len).sum();
    assert!(
        table.len() == 12 && rows >= 90,
        "{} kinds, {rows} rows",
        table.len()
    );
}

#[test]
fn complete_objects_of_all_kinds_are_admitted() {
    let documents: Vec<Value> = serde_saphyr::from_multiple(GOOD).unwrap();
    assert_eq!(documents.len(), 14, "one of each kind that is read");
    for document in &documents {
        assert_eq!(findings(document), [""; 0], "{}", document["kind"]);
        let object = crate::translate::Object::parse(document);
        assert!(object.is_ok_and(|object| object.is_some()));
    }
    assert_eq!(
        findings(&json!({"kind": "Deployment", "apiVersion": "apps/v1"})),
        [""; 0]
    );
}

#[test]
fn a_replaced_prefix_needs_one_match() {
    let mut two = good("HTTPRoute");
    two["spec"]["rules"][0]["matches"] = json!([{}, {"path": {"value": "/b"}}]);
    two["spec"]["rules"][0]["filters"] = json!([{"type": "URLRewrite", "urlRewrite":
        {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}}}]);
    assert_eq!(
        findings(&two),
        [
            "spec.rules[0].matches: expected exactly one match of type PathPrefix, as a filter replaces the prefix"
        ]
    );
}

#[test]
fn matches_are_few_in_all_rules_together() {
    let mut route = good("HTTPRoute");
    let matches = json!(vec![json!({"method": "GET"}); 64]);
    route["spec"]["rules"] = json!([{"matches": matches}, {"matches": matches}]);
    assert_eq!(findings(&route), [""; 0]);
    route["spec"]["rules"]
        .as_array_mut()
        .unwrap()
        .push(json!({}));
    assert_eq!(
        findings(&route),
        ["spec.rules: expected at most 128 matches in all rules together, got 129"]
    );
}

#[test]
fn findings_are_limited_and_long_values_cut() {
    let mut route = good("HTTPRoute");
    route["spec"]["hostnames"] = (0..20).map(|_| json!("_".repeat(200))).collect();
    let found = check(&route);
    assert_eq!(found.len(), super::MAX_FINDINGS);
    assert!(found[1].message.chars().count() < 160, "{:?}", found[1]);
}

/// Places of all values inside a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.replace('/', "~1"), value))
            .collect(),
        Value::Array(items) => (0..).map(|at: usize| at.to_string()).zip(items).collect(),
        _ => return,
    };
    for (name, value) in below {
        let place = format!("{at}/{name}");
        places(value, &place, found);
        found.push(place);
    }
}

#[test]
fn no_value_of_any_field_can_break_it() {
    let odd = [
        json!(null),
        json!(""),
        json!("%"),
        json!(-1),
        json!([[]]),
        json!({"": {}}),
    ];
    let mut tried = 0;
    for document in serde_saphyr::from_multiple::<Value>(GOOD).unwrap() {
        let mut all = Vec::new();
        places(&document, "", &mut all);
        for place in all {
            for odd in &odd {
                let mut changed = document.clone();
                *changed.pointer_mut(&place).unwrap() = odd.clone();
                std::hint::black_box(check(&changed));
                tried += 1;
            }
        }
    }
    assert!(tried > 1_000, "only {tried}");
}
