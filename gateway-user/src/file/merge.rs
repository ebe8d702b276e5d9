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
//!
//! A change of one file costs what that file holds: of the objects only those are looked at that it names or named, and one
//! that it states as before stays the same object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::document;
use super::identity::{describe, description, group_and_kind, identity};
pub use super::problem::Problem;
use super::read::{Content, Listing};
use super::schema;
use crate::translate::{Inputs, Object, pack};

/// API groups in which every kind means something to a load balancer: one that Forebay does not read is an
/// error, while a Deployment beside the routes is not.
const GROUPS: [&str; 3] = [
    "gateway.networking.k8s.io",
    "networking.istio.io",
    "forebay.dev",
];

/// The directory as last read.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<Arc<str>, File>,
    directories: BTreeMap<String, String>,
    /// Problems of files that have any, apart from those of objects, by path.
    unwell: BTreeMap<Arc<str>, Vec<Problem>>,
    /// Objects that files state or stated, by [`identity`].
    standing: BTreeMap<Arc<str>, Standing>,
    /// Problems of objects that have any, by the same.
    troubled: BTreeMap<Arc<str>, Vec<Problem>>,
    merged: Merged,
}

/// What is known of one object. There is one for each, so it holds no more than it must.
#[derive(Debug, Default)]
struct Standing {
    /// Who states it: path and position in the file, in no order.
    stated: Box<[(Arc<str>, u32)]>,
    effective: Option<Effective>,
}

#[derive(Debug)]
struct Effective {
    object: Object,
    /// It is a good version, which stays when worse ones come.
    good: bool,
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
    hash: Digest,
    claims: Box<[Claim]>,
    problem: Option<String>,
    /// Notes on objects of kinds that Forebay has no use for.
    ignored: Vec<Problem>,
}

/// One object as one file states it.
#[derive(Debug)]
struct Claim {
    /// Of what is stated.
    digest: Digest,
    /// `None` if the object does not say what it is.
    identity: Option<Arc<str>>,
    /// How people are told of it, where its identity does not say that.
    described: Option<Box<str>>,
    read: Read,
}

#[derive(Debug)]
enum Read {
    Good(Object),
    /// Readable, but an API server would refuse it.
    Refused(Box<(Object, Vec<schema::Finding>)>),
    /// Not readable: the field, if it is about one, and why.
    Bad(Box<(Option<String>, String)>),
    Ignored(Box<str>),
}

/// Half a SHA-256: whoever writes manifests has nothing to gain from two that are taken for one.
type Digest = [u8; 16];

impl Files {
    /// Takes over what a reading found; true if anything differs from before.
    pub fn update(&mut self, listing: Listing) -> bool {
        let mut touched = BTreeSet::new();
        let mut changed = false;
        for path in self.gone(&listing) {
            if let Some(file) = self.files.remove(&path) {
                self.withdraw(&path, &file, &mut touched);
                self.unwell.remove(&path);
                changed = true;
            }
        }
        for (path, content) in listing.files {
            let path = path.into();
            if self.take(&path, content, &mut touched) {
                self.examine(&path);
                changed = true;
            }
        }
        if listing.only.is_none() && self.directories != listing.unreadable {
            self.directories = listing.unreadable;
            changed = true;
        }
        let all = touched.len() * 2 > self.standing.len();
        if changed {
            for id in touched {
                self.settle(&id);
            }
            self.merged.problems = self.problems();
        }
        if all {
            pack(&mut self.files);
            pack(&mut self.standing);
            self.merged.inputs.pack();
        }
        changed
    }

    /// What the directory says as of the last update.
    #[must_use]
    pub fn merged(&self) -> &Merged {
        &self.merged
    }

    /// Files that are there no more. What lies below a directory that cannot be read stays.
    fn gone(&self, listing: &Listing) -> Vec<Arc<str>> {
        let here = |path: &&Arc<str>| listing.files.contains_key(&***path);
        if let Some(only) = &listing.only {
            let known = only
                .iter()
                .filter_map(|path| self.files.get_key_value(path.as_str()));
            let known = known.map(|(path, _)| path).filter(|path| !here(path));
            return known.cloned().collect();
        }
        let kept_below = |path: &&Arc<str>| {
            listing.unreadable.keys().any(|dir| {
                let rest = path.strip_prefix(dir.as_str());
                dir.is_empty() || rest.is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let gone = self
            .files
            .keys()
            .filter(|path| !here(path) && !kept_below(path));
        gone.cloned().collect()
    }

    fn take(
        &mut self,
        path: &Arc<str>,
        content: Content,
        touched: &mut BTreeSet<Arc<str>>,
    ) -> bool {
        let text = match content {
            Content::Text(text) => text,
            Content::BeingWritten | Content::Unchanged => return false,
            Content::Unreadable(why) => {
                let file = self.files.entry(Arc::clone(path)).or_default();
                // Read again in full when it becomes readable.
                file.hash = Digest::default();
                return set_problem(file, format!("the file cannot be read: {why}"));
            }
        };
        let hash = half(&Sha256::digest(&text));
        if self.files.get(path).is_some_and(|file| file.hash == hash) {
            return false;
        }
        let mut file = self.files.remove(path).unwrap_or_default();
        file.hash = hash;
        match document::parse(path, &text) {
            Ok(values) => {
                self.withdraw(path, &file, touched);
                file.restate(path, &values);
                self.state(path, &file, touched);
            }
            Err(why) => {
                set_problem(&mut file, format!("the file cannot be parsed: {why}"));
            }
        }
        self.files.insert(Arc::clone(path), file);
        true
    }

    /// Forgets what a file states, until it is settled again.
    fn withdraw(&mut self, path: &Arc<str>, file: &File, touched: &mut BTreeSet<Arc<str>>) {
        for id in file.claims.iter().filter_map(Claim::stands_for) {
            if let Some(standing) = self.standing.get_mut(id) {
                let stated = std::mem::take(&mut standing.stated).into_iter();
                standing.stated = stated.filter(|(other, _)| other != path).collect();
            }
            touched.insert(Arc::clone(id));
        }
        for note in &file.ignored {
            self.merged.ignored.remove(note);
        }
    }

    fn state(&mut self, path: &Arc<str>, file: &File, touched: &mut BTreeSet<Arc<str>>) {
        for (at, claim) in (0u32..).zip(&file.claims) {
            if let Some(id) = claim.stands_for() {
                let standing = self.standing.entry(Arc::clone(id)).or_default();
                let stated = std::mem::take(&mut standing.stated).into_iter();
                let own = std::iter::once((Arc::clone(path), at));
                standing.stated = stated.chain(own).collect();
                touched.insert(Arc::clone(id));
            }
        }
        self.merged.ignored.extend(file.ignored.iter().cloned());
    }

    /// Puts one object, or its last good version, into effect.
    fn settle(&mut self, id: &Arc<str>) {
        let standing = self.standing.entry(Arc::clone(id)).or_default();
        let before = standing.effective.take();
        let last = before.as_ref().filter(|before| before.good);
        let mut problems = Vec::new();
        standing.stated.sort();
        let mut claims = standing.stated.iter().filter_map(|(path, at)| {
            let file = self.files.get(path)?;
            Some((path, file.claims.get(*at as usize)?))
        });
        let now = claims.next().and_then(|(first, claim)| {
            let others =
                claims.map(|(path, other)| other.problem(path, None, duplicate(first, path)));
            problems.extend(others);
            claim.settle(first, last.map(|last| &last.object), &mut problems)
        });
        if let Some(before) = before
            && now.is_none()
        {
            self.merged.inputs.remove(&before.object.id());
        }
        if let Some(now) = now {
            self.merged.inputs.insert(now.object.clone());
            standing.effective = Some(now);
        }
        if standing.effective.is_none() && standing.stated.is_empty() {
            self.standing.remove(id);
        }
        if problems.is_empty() {
            self.troubled.remove(id);
        } else {
            self.troubled.insert(Arc::clone(id), problems);
        }
    }

    /// Notes what is wrong with a file.
    fn examine(&mut self, path: &Arc<str>) {
        let file = self.files.get(path);
        let problems = file.map_or(Vec::new(), |file| file.problems(path));
        if problems.is_empty() {
            self.unwell.remove(path);
        } else {
            self.unwell.insert(Arc::clone(path), problems);
        }
    }

    fn problems(&self) -> BTreeSet<Problem> {
        let directories = self.directories.iter().map(|(dir, why)| Problem {
            file: dir.clone(),
            object: None,
            field: None,
            message: format!("the directory cannot be read: {why}"),
        });
        let files = self.unwell.values().flatten().cloned();
        let objects = self.troubled.values().flatten().cloned();
        directories.chain(files).chain(objects).collect()
    }
}

impl File {
    /// Takes over what it states now; what it stated before is taken from there.
    fn restate(&mut self, path: &str, values: &[Value]) {
        let mut before: BTreeMap<Digest, Claim> = std::mem::take(&mut self.claims)
            .into_iter()
            .map(|claim| (claim.digest, claim))
            .collect();
        let claims = values.iter().map(|value| {
            let digest = digest(value);
            before
                .remove(&digest)
                .unwrap_or_else(|| Claim::new(value, digest))
        });
        self.claims = claims.collect();
        self.problem = None;
        let ignored = self.claims.iter().filter_map(|claim| match &claim.read {
            Read::Ignored(why) => Some(claim.problem(path, None, why.to_string())),
            _ => None,
        });
        self.ignored = ignored.collect();
    }

    /// Its own problems, and those of objects that do not say what they are.
    fn problems(&self, path: &str) -> Vec<Problem> {
        let kept = if self.claims.is_empty() {
            ""
        } else {
            "; what was last read from it stays"
        };
        let own = self.problem.iter().map(|message| Problem {
            file: path.to_owned(),
            object: None,
            field: None,
            message: format!("{message}{kept}"),
        });
        let mut problems: Vec<Problem> = own.collect();
        for claim in self.claims.iter().filter(|claim| claim.identity.is_none()) {
            // Nothing of it can have been good.
            let _none = claim.settle(path, None, &mut problems);
        }
        problems
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
    fn new(value: &Value, digest: Digest) -> Self {
        let (group, kind) = group_and_kind(value);
        let read = match Object::parse(value) {
            Ok(Some(object)) => match schema::check(value) {
                findings if findings.is_empty() => Read::Good(object),
                findings => Read::Refused(Box::new((object, findings))),
            },
            Ok(None) if GROUPS.contains(&group) => {
                let message = format!(
                    "the kind {kind} of {group} is not supported; correct the kind or remove the object"
                );
                Read::Bad(Box::new((None, message)))
            }
            Ok(None) => Read::Ignored(format!("Forebay has no use for the kind {kind}").into()),
            Err(error) => Read::Bad(Box::new((Some(error.field), error.message))),
        };
        let identity = identity(value).map(Arc::from);
        let described = describe(value);
        let says_it = identity.as_deref().and_then(description) == Some(described.clone());
        Self {
            digest,
            identity,
            described: (!says_it).then(|| described.into()),
            read,
        }
    }

    /// Identity of the object that it is a version of, good or bad.
    fn stands_for(&self) -> Option<&Arc<str>> {
        let ignored = matches!(self.read, Read::Ignored(_));
        self.identity.as_ref().filter(|_| !ignored)
    }

    fn problem(&self, path: &str, field: Option<String>, message: String) -> Problem {
        Problem {
            file: path.to_owned(),
            object: match &self.described {
                Some(described) => Some(described.to_string()),
                None => self.identity.as_deref().and_then(description),
            },
            field,
            message,
        }
    }

    /// What is in effect: the object, or its `last` good version.
    fn settle(
        &self,
        path: &str,
        last: Option<&Object>,
        problems: &mut Vec<Problem>,
    ) -> Option<Effective> {
        let last_good = || {
            last.map(|object| Effective {
                object: object.clone(),
                good: true,
            })
        };
        match &self.read {
            Read::Good(object) => Some(Effective {
                object: newest(object, last).clone(),
                good: true,
            }),
            Read::Refused(refused) => {
                let (object, findings) = &**refused;
                let kept = if last.is_some() {
                    "its last good version stays"
                } else {
                    "what of the object can be carried out is"
                };
                for finding in findings {
                    let message = format!("{}; {kept}", finding.message);
                    let field = Some(finding.field.clone());
                    problems.push(self.problem(path, field, message));
                }
                last_good().or_else(|| {
                    Some(Effective {
                        object: object.clone(),
                        good: false,
                    })
                })
            }
            Read::Bad(bad) => {
                let (field, message) = &**bad;
                let kept = if last.is_some() {
                    "; its last good version stays"
                } else {
                    ""
                };
                let message = format!("{message}{kept}");
                problems.push(self.problem(path, field.clone(), message));
                last_good()
            }
            Read::Ignored(_) => None,
        }
    }
}

fn digest(value: &Value) -> Digest {
    half(&Sha256::digest(value.to_string()))
}

fn half(sha256: &[u8]) -> Digest {
    std::array::from_fn(|at| sha256[at])
}

/// The object, or the last one if that is a Secret that says the same: its key need not be checked again only because
/// something else in the file has changed.
fn newest<'a>(object: &'a Object, last: Option<&'a Object>) -> &'a Object {
    match (object, last) {
        (Object::Secret(new), Some(last @ Object::Secret(old))) if new.says_the_same(old) => last,
        _ => object,
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
            Arc::clone(&files.merged().inputs.secrets[&key])
        };
        let first = read(&secret("one"));
        let beside = read(&format!("{}{}", secret("one"), gateway("a", "80")));
        assert!(Arc::ptr_eq(&first, &beside));
        let other = read(&secret("two"));
        assert_eq!(other.string_data["a"], "two");
    }

    #[test]
    fn what_a_file_states_as_before_stays_the_same_object() {
        let key = |name| crate::snapshot::ObjectKey::new("default", name);
        let mut files = Files::default();
        let mut read = |texts: &[(&str, &str)]| {
            files.update(listing(texts));
            files.merged().inputs.gateways.clone()
        };
        let (a, b) = (gateway("a", "80"), gateway("b", "81"));
        let first = read(&[
            ("x.yaml", &format!("{a}{b}")),
            ("y.yaml", &gateway("c", "1")),
        ]);
        let second = read(&[
            ("x.yaml", &format!("{}{a}", gateway("b", "82"))),
            ("y.yaml", &gateway("c", "1")),
        ]);
        let same = |name| Arc::ptr_eq(&first[&key(name)], &second[&key(name)]);
        assert_eq!([same("a"), same("b"), same("c")], [true, false, true]);
    }

    #[test]
    fn a_reading_of_some_files_says_nothing_of_the_others() {
        let (a, b) = (gateway("a", "80"), gateway("b", "81"));
        let mut files = Files::default();
        files.update(listing(&[("x.yaml", &a), ("y.yaml", &b)]));
        let mut some = listing(&[("x.yaml", &gateway("a", "90"))]);
        some.only = Some(["x.yaml".to_owned()].into());
        assert!(files.update(some));
        assert_eq!(state(&files).0, ["a:90", "b:81"]);
        let mut gone = listing(&[]);
        gone.only = Some(["y.yaml".to_owned(), "z.yaml".to_owned()].into());
        assert!(files.update(gone.clone()) && !files.update(gone));
        assert_eq!(state(&files).0, ["a:90"]);
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
