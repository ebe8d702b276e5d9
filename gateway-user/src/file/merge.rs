//! What the files of a directory say together.
//!
//! Invariant: what works is never disturbed. A file that cannot be read or parsed keeps all that was last read
//! from it; an object that cannot be read, or that an API server would refuse, keeps its last good version; of an
//! object in two files the one in the first path in byte order counts. Every such case is a [`Problem`]. No file is
//! touched here.
//!
//! Without a last good version an object that an API server would refuse, but that can be read, is handed on as it is:
//! what of it is sound gets carried out and the rest becomes conditions. A listener beside a bad one serves, and a typing
//! error in a policy or rule that guards something does not open it after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::document;
use super::read::{Content, Listing};
use super::schema;
use crate::translate::{Inputs, Object};

/// API groups in which every kind means something to a load balancer: one that Forebay does not read is an
/// error, while a Deployment beside the routes is not.
const GROUPS: [&str; 3] = [
    "gateway.networking.k8s.io",
    "networking.istio.io",
    "forebay.dev",
];

/// Something that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Path below the directory; empty for the directory itself.
    pub file: String,
    /// Kind and name of the object, if it is about one.
    pub object: Option<String>,
    /// Path of the field, if it is about one.
    pub field: Option<String>,
    /// What is wrong and what is used instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file.is_empty() {
            "."
        } else {
            &self.file
        };
        write!(f, "{file}: ")?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "field {field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The directory as last read.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<String, File>,
    directories: BTreeMap<String, String>,
    /// Last good versions of all objects, by [`identity`].
    good: BTreeMap<String, Object>,
    merged: Merged,
}

/// What the directory says.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// The objects in effect.
    pub inputs: Inputs,
    /// What is wrong.
    pub problems: BTreeSet<Problem>,
    /// Objects of kinds that Forebay has no use for.
    pub ignored: BTreeSet<Problem>,
}

#[derive(Debug, Default)]
struct File {
    hash: [u8; 32],
    claims: Vec<Claim>,
    problem: Option<String>,
}

/// One object as one file states it.
#[derive(Debug)]
struct Claim {
    /// `None` if the object does not say what it is.
    identity: Option<String>,
    described: String,
    read: Read,
}

#[derive(Debug)]
enum Read {
    Good(Object),
    /// Readable, but an API server would refuse it.
    Refused(Object, Vec<schema::Finding>),
    Bad {
        field: Option<String>,
        message: String,
    },
    Ignored(String),
}

impl Files {
    /// Takes over what a reading found; true if anything differs from before.
    pub fn update(&mut self, listing: Listing) -> bool {
        let mut changed = self.directories != listing.unreadable;
        let kept_below = |path: &str| {
            listing.unreadable.keys().any(|dir| {
                dir.is_empty()
                    || path
                        .strip_prefix(dir.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let before = self.files.len();
        self.files
            .retain(|path, _| listing.files.contains_key(path) || kept_below(path));
        changed |= self.files.len() != before;
        for (path, content) in listing.files {
            changed |= self.take(path, content);
        }
        self.directories = listing.unreadable;
        if changed {
            self.merge();
        }
        changed
    }

    /// What the directory says as of the last update.
    #[must_use]
    pub fn merged(&self) -> &Merged {
        &self.merged
    }

    fn take(&mut self, path: String, content: Content) -> bool {
        let text = match content {
            Content::Text(text) => text,
            Content::BeingWritten => return false,
            Content::Unreadable(why) => {
                let file = self.files.entry(path).or_default();
                // Read again in full when it becomes readable.
                file.hash = [0; 32];
                return set_problem(file, format!("the file cannot be read: {why}"));
            }
        };
        let hash: [u8; 32] = Sha256::digest(&text).into();
        if self.files.get(&path).is_some_and(|file| file.hash == hash) {
            return false;
        }
        let parsed = document::parse(&path, &text);
        let file = self.files.entry(path).or_default();
        file.hash = hash;
        match parsed {
            Ok(values) => {
                file.claims = values.iter().map(Claim::new).collect();
                file.problem = None;
            }
            Err(why) => {
                set_problem(file, format!("the file cannot be parsed: {why}"));
            }
        }
        true
    }

    fn merge(&mut self) {
        let mut merged = Merged::default();
        for (dir, why) in &self.directories {
            merged.problems.insert(Problem {
                file: dir.clone(),
                object: None,
                field: None,
                message: format!("the directory cannot be read: {why}"),
            });
        }
        let mut good = BTreeMap::new();
        let mut first_in: BTreeMap<&str, &str> = BTreeMap::new();
        for (path, file) in &self.files {
            if let Some(message) = &file.problem {
                let kept = if file.claims.is_empty() {
                    ""
                } else {
                    "; what was last read from it stays"
                };
                merged.problems.insert(Problem {
                    file: path.clone(),
                    object: None,
                    field: None,
                    message: format!("{message}{kept}"),
                });
            }
            for claim in &file.claims {
                if let (Some(id), false) = (&claim.identity, matches!(claim.read, Read::Ignored(_)))
                {
                    if let Some(first) = first_in.get(id.as_str()) {
                        merged
                            .problems
                            .insert(claim.problem(path, None, duplicate(first, path)));
                        continue;
                    }
                    first_in.insert(id, path);
                }
                claim.settle(path, &self.good, &mut good, &mut merged);
            }
        }
        for object in good.values() {
            merged.inputs.insert(object.clone());
        }
        self.good = good;
        self.merged = merged;
    }
}

fn set_problem(file: &mut File, problem: String) -> bool {
    let changed = file.problem.as_ref() != Some(&problem);
    file.problem = Some(problem);
    changed
}

fn duplicate(first: &str, path: &str) -> String {
    if first == path {
        "the same object stands earlier in this file, which counts; remove one of them".into()
    } else {
        format!("the same object is in {first}, which counts; remove one of them")
    }
}

impl Claim {
    fn new(value: &Value) -> Self {
        let (group, kind) = group_and_kind(value);
        let read = match Object::parse(value) {
            Ok(Some(object)) => match schema::check(value) {
                findings if findings.is_empty() => Read::Good(object),
                findings => Read::Refused(object, findings),
            },
            Ok(None) if GROUPS.contains(&group) => Read::Bad {
                field: None,
                message: format!(
                    "the kind {kind} of {group} is not supported; correct the kind or remove the object"
                ),
            },
            Ok(None) => Read::Ignored(format!("Forebay has no use for the kind {kind}")),
            Err(error) => Read::Bad {
                field: Some(error.field),
                message: error.message,
            },
        };
        Self {
            identity: identity(value),
            described: describe(value),
            read,
        }
    }

    fn problem(&self, path: &str, field: Option<String>, message: String) -> Problem {
        Problem {
            file: path.to_owned(),
            object: Some(self.described.clone()),
            field,
            message,
        }
    }

    /// Puts the object, or its last good version, into effect.
    fn settle(
        &self,
        path: &str,
        before: &BTreeMap<String, Object>,
        good: &mut BTreeMap<String, Object>,
        merged: &mut Merged,
    ) {
        let last = self
            .identity
            .as_ref()
            .and_then(|id| before.get_key_value(id));
        match &self.read {
            Read::Good(object) => {
                if let Some(id) = &self.identity {
                    let last = last.map(|(_, object)| object);
                    good.insert(id.clone(), newest(object, last).clone());
                }
            }
            Read::Refused(object, findings) => {
                let kept = if last.is_some() {
                    "its last good version stays"
                } else {
                    "what of the object can be carried out is"
                };
                for finding in findings {
                    let message = format!("{}; {kept}", finding.message);
                    let field = Some(finding.field.clone());
                    merged.problems.insert(self.problem(path, field, message));
                }
                match last {
                    Some((id, object)) => drop(good.insert(id.clone(), object.clone())),
                    None => merged.inputs.insert(object.clone()),
                }
            }
            Read::Bad { field, message } => {
                let kept = if last.is_some() {
                    "; its last good version stays"
                } else {
                    ""
                };
                let problem = self.problem(path, field.clone(), format!("{message}{kept}"));
                merged.problems.insert(problem);
                if let Some((id, object)) = last {
                    good.insert(id.clone(), object.clone());
                }
            }
            Read::Ignored(why) => {
                let note = self.problem(path, None, why.clone());
                merged.ignored.insert(note);
            }
        }
    }
}

/// The object, or the last one if that is a Secret that says the same: its key need not be checked again only because
/// something else in the file has changed.
fn newest<'a>(object: &'a Object, last: Option<&'a Object>) -> &'a Object {
    match (object, last) {
        (Object::Secret(new), Some(last @ Object::Secret(old))) if new.says_the_same(old) => last,
        _ => object,
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

fn group_and_kind(value: &Value) -> (&str, &str) {
    let api_version = text(value, "/apiVersion").unwrap_or_default();
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    (group, text(value, "/kind").unwrap_or_default())
}

/// What makes two manifests the same object, readable also from one that is broken elsewhere: group (in any
/// version), kind, namespace, name.
fn identity(value: &Value) -> Option<String> {
    let (group, kind) = group_and_kind(value);
    let namespace = text(value, "/metadata/namespace").unwrap_or("default");
    let name = text(value, "/metadata/name")?;
    (!kind.is_empty()).then(|| format!("{group}/{kind}/{namespace}/{name}"))
}

fn describe(value: &Value) -> String {
    let kind = text(value, "/kind").unwrap_or("object");
    match (
        text(value, "/metadata/namespace"),
        text(value, "/metadata/name"),
    ) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => format!("{kind} without a name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(name: &str, port: &str) -> String {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\n\
             spec: {{gatewayClassName: c, listeners: [{{name: http, protocol: HTTP, port: {port}}}]}}\n---\n"
        )
    }

    fn listing(files: &[(&str, &str)]) -> Listing {
        let content = |text: &str| match text {
            "BUSY" => Content::BeingWritten,
            "DENIED" => Content::Unreadable("permission denied".into()),
            text => Content::Text(text.to_owned()),
        };
        Listing {
            files: files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), content(text)))
                .collect(),
            ..Listing::default()
        }
    }

    /// Gateways in effect with their ports, and the problems.
    fn state(files: &Files) -> (Vec<String>, Vec<String>) {
        let merged = files.merged();
        (
            merged
                .inputs
                .gateways
                .iter()
                .map(|(key, gateway)| format!("{}:{}", key.name, gateway.spec.listeners[0].port))
                .collect(),
            merged.problems.iter().map(ToString::to_string).collect(),
        )
    }

    /// Files by path, then the objects in effect and the problems that they make.
    type Step<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

    fn check(steps: &[Step<'_>]) {
        let mut files = Files::default();
        for (number, (step, gateways, problems)) in steps.iter().enumerate() {
            files.update(listing(step));
            let (got, errors) = state(&files);
            assert_eq!(got, *gateways, "step {number}");
            assert_eq!(errors, *problems, "step {number}");
        }
    }

    #[test]
    fn a_secret_that_says_the_same_stays_the_same_object() {
        let secret = |value: &str| {
            format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{a: {value}}}\n---\n"
            )
        };
        let key = crate::snapshot::ObjectKey::new("default", "s");
        let mut files = Files::default();
        let mut read = |text: &str| {
            files.update(listing(&[("x.yaml", text)]));
            std::sync::Arc::clone(&files.merged().inputs.secrets[&key])
        };
        let first = read(&secret("one"));
        let beside = read(&format!("{}{}", secret("one"), gateway("a", "80")));
        assert!(std::sync::Arc::ptr_eq(&first, &beside));
        let other = read(&secret("two"));
        assert_eq!(other.string_data["a"], "two");
    }

    #[test]
    fn a_file_that_cannot_be_parsed_keeps_what_was_read_from_it() {
        let (a, b) = (gateway("a", "80"), gateway("b", "81"));
        let broken = format!("{a}kind: [");
        let parse = "x.yaml: the file cannot be parsed: ";
        let mut files = Files::default();
        assert!(files.update(listing(&[("x.yaml", &a), ("y.yaml", &b)])));
        assert!(!files.update(listing(&[("x.yaml", &a), ("y.yaml", &b)])));
        assert!(files.update(listing(&[("x.yaml", &broken), ("y.yaml", &b)])));
        let (gateways, problems) = state(&files);
        assert_eq!(gateways, ["a:80", "b:81"]);
        assert!(problems[0].starts_with(parse), "{problems:?}");
        assert!(
            problems[0].ends_with("; what was last read from it stays"),
            "{problems:?}"
        );
        assert!(files.update(listing(&[("x.yaml", &a)])));
        assert_eq!(state(&files), (vec!["a:80".into()], vec![]));
    }

    #[test]
    fn a_broken_object_keeps_its_last_good_version() {
        let (a, bad, b) = (
            gateway("a", "80"),
            gateway("a", "eighty"),
            gateway("b", "81"),
        );
        let both = format!("{bad}{b}");
        let problem = "x.yaml: Gateway a: field spec.listeners[0].port: expected a whole number from 0 to 65535, got the string \"eighty\"";
        check(&[
            (&[("x.yaml", &both)], &["b:81"], &[problem]),
            (&[("x.yaml", &a)], &["a:80"], &[]),
            (
                &[("x.yaml", &both)],
                &["a:80", "b:81"],
                &[&format!("{problem}; its last good version stays")],
            ),
            // Also after it has moved to another file.
            (
                &[("w.yaml", &bad)],
                &["a:80"],
                &[&format!("{problem}; its last good version stays").replace("x.yaml", "w.yaml")],
            ),
            (&[("x.yaml", &b)], &["b:81"], &[]),
            (&[("x.yaml", &both)], &["b:81"], &[problem]),
        ]);
    }

    #[test]
    fn what_an_api_server_would_refuse_keeps_its_last_good_version() {
        let (good, bad, other) = (gateway("a", "80"), gateway("a", "0"), gateway("a", "81"));
        let problem = "x.yaml: Gateway a: field spec.listeners[0].port: expected a whole number from 1 to 65535, got 0";
        let kept = format!("{problem}; its last good version stays");
        let carried_out = format!("{problem}; what of the object can be carried out is");
        check(&[
            // Nothing could stay: translate judges what is there.
            (&[("x.yaml", &bad)], &["a:0"], &[&carried_out]),
            (&[("x.yaml", &good)], &["a:80"], &[]),
            (&[("x.yaml", &bad)], &["a:80"], &[&kept]),
            // As long as it takes.
            (&[("x.yaml", &bad), ("y.yaml", "BUSY")], &["a:80"], &[&kept]),
            (&[("x.yaml", &other)], &["a:81"], &[]),
            (&[], &[], &[]),
            (&[("x.yaml", &bad)], &["a:0"], &[&carried_out]),
        ]);
    }

    #[test]
    fn every_finding_of_an_object_is_told() {
        let text = gateway("a", "0").replace("name: http", "name: H_");
        let mut files = Files::default();
        files.update(listing(&[("x.yaml", &text)]));
        assert_eq!(state(&files).1.len(), 2, "{:?}", state(&files).1);
    }

    #[test]
    fn of_an_object_in_two_files_the_first_path_counts() {
        let (first, second) = (gateway("a", "80"), gateway("a", "81"));
        let twice = format!("{second}{first}");
        let problem =
            "y.yaml: Gateway a: the same object is in x.yaml, which counts; remove one of them";
        check(&[
            (&[("y.yaml", &second)], &["a:81"], &[]),
            (
                &[("y.yaml", &second), ("x.yaml", &first)],
                &["a:80"],
                &[problem],
            ),
            (&[("y.yaml", &second)], &["a:81"], &[]),
            (
                &[("y.yaml", &twice)],
                &["a:81"],
                &[
                    "y.yaml: Gateway a: the same object stands earlier in this file, which counts; remove one of them",
                ],
            ),
        ]);
    }

    #[test]
    fn unreadable_and_half_written_files_keep_their_objects() {
        let a = gateway("a", "80");
        check(&[
            (&[("x.yaml", "BUSY")], &[], &[]),
            (&[("x.yaml", &a)], &["a:80"], &[]),
            (&[("x.yaml", "BUSY")], &["a:80"], &[]),
            (
                &[("x.yaml", "DENIED")],
                &["a:80"],
                &[
                    "x.yaml: the file cannot be read: permission denied; what was last read from it stays",
                ],
            ),
            (&[("x.yaml", &a)], &["a:80"], &[]),
            (&[], &[], &[]),
        ]);
    }

    #[test]
    fn an_unreadable_directory_keeps_the_objects_below_it() {
        let (a, b) = (gateway("a", "80"), gateway("b", "81"));
        let mut files = Files::default();
        files.update(listing(&[("sub/x.yaml", &a), ("sub2.yaml", &b)]));
        let mut lost = listing(&[]);
        lost.unreadable
            .insert("sub".into(), "permission denied".into());
        assert!(files.update(lost.clone()));
        let problem = "sub: the directory cannot be read: permission denied".to_owned();
        assert_eq!(state(&files), (vec!["a:80".into()], vec![problem]));
        assert!(!files.update(lost));
    }

    #[test]
    fn foreign_kinds_are_ignored_and_unsupported_ones_are_errors() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n\
                    apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRout\nmetadata: {name: r, namespace: n}\n---\n\
                    just text\n";
        let mut files = Files::default();
        files.update(listing(&[("x.yaml", text)]));
        assert_eq!(
            state(&files).1,
            [
                "x.yaml: HTTPRout n/r: the kind HTTPRout of gateway.networking.k8s.io is not supported; correct the kind or remove the object",
                "x.yaml: object without a name: field .: expected an object, got a string",
            ]
        );
        let ignored: Vec<String> = files
            .merged()
            .ignored
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            ignored,
            ["x.yaml: Deployment d: Forebay has no use for the kind Deployment"]
        );
    }
}
