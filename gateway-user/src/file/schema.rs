//! What an API server would refuse: the rules of the kinds' schemas, for objects that come from files.
//!
//! On a cluster an object that breaks the schema of its kind is refused when it is written, and the one that was there
//! stays. Files have no such door, so the same rules are held here, as tables of this program's own: one module per family
//! of kinds, which names its source. They know types, bounds, enumerations, formats, uniqueness and the rules between
//! fields. What a schema admits but Forebay cannot carry out is none of their business: that is a condition.
//!
//! Pure, total, without a clock. Fields that a table does not name may hold anything.

mod core;
mod forebay;
mod format;
mod gateway;
mod grpc_route;
mod http_filter;
mod http_route;
mod istio;
mod route;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

use self::format::Format;

/// Most findings that are told about one object.
const MAX_FINDINGS: usize = 16;

/// Longest value that is shown, in characters.
const MAX_SHOWN: usize = 80;

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path of the field, for example `spec.listeners[0].port`.
    pub field: String,
    /// What is expected there, and what is there.
    pub message: String,
}

/// What a value must be. Null counts as missing.
enum Schema {
    /// true or false.
    Bool,
    /// A string of so many characters in a format.
    Text(usize, usize, Format),
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A whole number from the first to the second.
    Number(i64, i64),
    /// A number from the first to the second.
    Decimal(f64, f64),
    /// One of these whole numbers.
    OneOf(&'static [i64]),
    /// A list.
    List(List),
    /// An object with free keys: at most so many, the format of the keys, what their values must be.
    Map(usize, Format, &'static Schema),
    /// An object with known fields, and rules between them.
    Object(&'static [Field], &'static [Rule]),
}

/// A list from `least` to `most` entries.
struct List {
    least: usize,
    most: usize,
    of: &'static Schema,
    /// Entries must differ in these fields taken together; `[""]`: in themselves; none: they may be equal.
    by: &'static [&'static str],
    rules: &'static [Rule],
}

/// A field of an object.
struct Field {
    name: &'static str,
    required: bool,
    schema: &'static Schema,
}

/// A rule between fields: the field below that it is about (may be empty) and what is wrong, if it is broken.
type Rule = fn(&Value) -> Option<(String, String)>;

const fn need(name: &'static str, schema: &'static Schema) -> Field {
    Field {
        name,
        required: true,
        schema,
    }
}

const fn may(name: &'static str, schema: &'static Schema) -> Field {
    Field {
        name,
        required: false,
        schema,
    }
}

const fn list(least: usize, most: usize, of: &'static Schema) -> Schema {
    set(least, most, of, &[])
}

const fn set(
    least: usize,
    most: usize,
    of: &'static Schema,
    by: &'static [&'static str],
) -> Schema {
    Schema::List(List {
        least,
        most,
        of,
        by,
        rules: &[],
    })
}

/// Everything that the schema of its kind forbids in an object, the first findings of it; nothing for kinds that
/// Forebay does not read.
#[must_use]
pub fn check(object: &Value) -> Vec<Finding> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or("");
    let group = text("apiVersion")
        .rsplit_once('/')
        .map_or("", |(group, _)| group);
    let schema = match (group, text("kind")) {
        ("gateway.networking.k8s.io", "GatewayClass") => &gateway::GATEWAY_CLASS,
        ("gateway.networking.k8s.io", "Gateway") => &gateway::GATEWAY,
        ("gateway.networking.k8s.io", "HTTPRoute") => &http_route::HTTP_ROUTE,
        ("gateway.networking.k8s.io", "GRPCRoute") => &grpc_route::GRPC_ROUTE,
        ("gateway.networking.k8s.io", "UDPRoute") => &route::UDP_ROUTE,
        ("gateway.networking.k8s.io", "ReferenceGrant") => &route::REFERENCE_GRANT,
        ("networking.istio.io", "DestinationRule") => &istio::DESTINATION_RULE,
        ("forebay.dev", "AddressPool") => &forebay::ADDRESS_POOL,
        ("forebay.dev", "TrafficPolicy") => &forebay::TRAFFIC_POLICY,
        ("discovery.k8s.io", "EndpointSlice") => &core::ENDPOINT_SLICE,
        ("", "Service") => &core::SERVICE,
        ("", "Secret") => &core::SECRET,
        ("", "Namespace") => &core::NAMESPACE_KIND,
        ("", "Node") => &core::NODE,
        _ => return Vec::new(),
    };
    let mut walk = Walk {
        path: String::new(),
        secret: (group, text("kind")) == ("", "Secret"),
        findings: Vec::new(),
    };
    walk.value(schema, object);
    walk.findings.truncate(MAX_FINDINGS);
    walk.findings
}

struct Walk {
    path: String,
    /// Whether values must not be shown.
    secret: bool,
    findings: Vec<Finding>,
}

impl Walk {
    fn value(&mut self, schema: &Schema, value: &Value) {
        if self.findings.len() >= MAX_FINDINGS {
            return;
        }
        match schema {
            Schema::Bool if value.is_boolean() => {}
            Schema::Bool => self.unexpected("true or false", value),
            Schema::Text(least, most, format) => self.text((*least, *most), format, value),
            Schema::Choice(choices) => {
                if !value.as_str().is_some_and(|text| choices.contains(&text)) {
                    self.unexpected(&one_of(choices), value);
                }
            }
            Schema::Number(least, most) => {
                let fits = |number| (*least..=*most).contains(&number);
                if !value.as_i64().is_some_and(fits) {
                    self.unexpected(&format!("a whole number from {least} to {most}"), value);
                }
            }
            Schema::Decimal(least, most) => {
                let fits = |number| (*least..=*most).contains(&number);
                if !value.as_f64().is_some_and(fits) {
                    self.unexpected(&format!("a number from {least} to {most}"), value);
                }
            }
            Schema::OneOf(numbers) => {
                if !value.as_i64().is_some_and(|n| numbers.contains(&n)) {
                    let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
                    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
                    self.unexpected(&one_of(&numbers), value);
                }
            }
            Schema::List(list) => self.list(list, value),
            Schema::Map(most, keys, values) => self.map((*most, keys, values), value),
            Schema::Object(fields, rules) => self.object(fields, rules, value),
        }
    }

    fn text(&mut self, (least, most): (usize, usize), format: &Format, value: &Value) {
        let Some(text) = value.as_str() else {
            return self.unexpected("a string", value);
        };
        let length = text.chars().count();
        if length < least {
            self.unexpected(format.expected, value);
        } else if length > most {
            self.found(format!(
                "expected at most {most} characters, got {length} of them"
            ));
        } else if !(format.fits)(text) {
            self.unexpected(format.expected, value);
        }
    }

    fn list(&mut self, list: &List, value: &Value) {
        let Some(entries) = value.as_array() else {
            return self.unexpected("a list", value);
        };
        if !(list.least..=list.most).contains(&entries.len()) {
            let got = entries.len();
            let expected = match (list.least, list.most) {
                (least, usize::MAX) => format!("at least {least}"),
                (0, most) => format!("at most {most}"),
                (least, most) if least == most => format!("exactly {least}"),
                (least, most) => format!("{least} to {most}"),
            };
            self.found(format!("expected {expected} entries, got {got}"));
        }
        for (at, entry) in entries.iter().enumerate() {
            self.below(&format!("[{at}]"), |walk| walk.value(list.of, entry));
        }
        if entries.len() <= list.most {
            self.unique(list.by, entries);
            self.rules(list.rules, value);
        }
    }

    fn unique(&mut self, by: &[&str], entries: &[Value]) {
        if by.is_empty() {
            return;
        }
        let key = |entry: &Value| -> Option<String> {
            if by == [""] {
                return Some(shown(entry));
            }
            let parts: Vec<String> = by
                .iter()
                .filter_map(|name| Some(format!("{name} {}", shown(given(entry, name)?))))
                .collect();
            // An entry without any of them is told as incomplete, or is one that may be repeated.
            (!parts.is_empty()).then(|| parts.join(" and "))
        };
        if let Some((at, first, key)) = repeated(entries, key) {
            let message = format!("{key} stands in entry {first} already and must be unique");
            self.below(&format!("[{at}]"), |walk| walk.found(message));
        }
    }

    fn map(&mut self, (most, keys, values): (usize, &Format, &Schema), value: &Value) {
        let Some(fields) = value.as_object() else {
            return self.unexpected("an object", value);
        };
        if fields.len() > most {
            let got = fields.len();
            self.found(format!("expected at most {most} entries, got {got}"));
        }
        for (name, field) in fields.iter().filter(|(_, field)| !field.is_null()) {
            self.below(&format!("[{name}]"), |walk| {
                if !(keys.fits)(name) {
                    walk.found(format!("expected {} as the key", keys.expected));
                }
                walk.value(values, field);
            });
        }
    }

    fn object(&mut self, fields: &[Field], rules: &[Rule], value: &Value) {
        if !value.is_object() {
            return self.unexpected("an object", value);
        }
        for field in fields {
            let path = if self.path.is_empty() {
                field.name.to_owned()
            } else {
                format!(".{}", field.name)
            };
            match given(value, field.name) {
                Some(inner) => self.below(&path, |walk| walk.value(field.schema, inner)),
                None if field.required => self.below(&path, |walk| walk.found("is missing".into())),
                None => {}
            }
        }
        self.rules(rules, value);
    }

    fn rules(&mut self, rules: &[Rule], value: &Value) {
        for (field, message) in rules.iter().filter_map(|rule| rule(value)) {
            self.below(&field, |walk| walk.found(message));
        }
    }

    fn below(&mut self, path: &str, then: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(path);
        then(self);
        self.path.truncate(length);
    }

    fn unexpected(&mut self, expected: &str, value: &Value) {
        let got = match value {
            _ if self.secret => "something else".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            other => shown(other),
        };
        self.found(format!("expected {expected}, got {got}"));
    }

    fn found(&mut self, message: String) {
        self.findings.push(Finding {
            field: self.path.clone(),
            message,
        });
    }
}

/// A field of an object, unless it is missing or null.
fn given<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).filter(|field| !field.is_null())
}

/// A field that holds a string.
fn string<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    given(value, name).and_then(Value::as_str)
}

/// The entries of a field that holds a list.
fn entries<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    given(value, name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The first entry whose key an earlier one has too: its position, the earlier one's, and the key. Entries without a key
/// are not compared.
fn repeated<K: Ord>(
    entries: &[Value],
    key: impl Fn(&Value) -> Option<K>,
) -> Option<(usize, usize, K)> {
    let mut seen = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate() {
        let Some(key) = key(entry) else { continue };
        if let Some((key, first)) = seen.remove_entry(&key) {
            return Some((at, first, key));
        }
        seen.insert(key, at);
    }
    None
}

/// A value as JSON writes it, cut if it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn one_of(choices: &[&str]) -> String {
    match choices.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}
