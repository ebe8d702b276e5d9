//! An API server in memory: as much of one as the writer can tell from a real one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use kube::core::ApiResource;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::rights::{Asked, Rights};
use crate::k8s::seen::{Known, Seen};
use crate::snapshot::ObjectKey;
use crate::translate::{Kind, ObjectId};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
/// A watch: of which collection, of which object in it if only of one, and where it is told.
type Watch = (String, Option<String>, mpsc::UnboundedSender<Bytes>);
type Hook = Box<dyn FnMut(&mut State, &Method, &str) -> Option<u16> + Send>;

#[derive(Default)]
pub(super) struct State {
    /// By path.
    pub(super) objects: BTreeMap<String, Value>,
    pub(super) calls: Vec<(Method, String)>,
    version: u64,
    watches: Vec<Watch>,
    /// What may be asked; none: everything.
    pub(super) rights: Option<Rights>,
    seen: Option<Seen>,
    /// Fields of `status` that the schema does not know.
    pub(super) pruned: Vec<&'static str>,
}

/// The server. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Fake {
    state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

/// Plural and group of the kinds that have a status.
pub(super) const KINDS: [(Kind, &str, &str); 5] = [
    (
        Kind::GatewayClass,
        "gatewayclasses",
        "gateway.networking.k8s.io/v1",
    ),
    (Kind::Gateway, "gateways", "gateway.networking.k8s.io/v1"),
    (
        Kind::HttpRoute,
        "httproutes",
        "gateway.networking.k8s.io/v1",
    ),
    (
        Kind::DestinationRule,
        "destinationrules",
        "networking.istio.io/v1",
    ),
    (
        Kind::TrafficPolicy,
        "trafficpolicies",
        "forebay.dev/v1alpha1",
    ),
];

impl Fake {
    pub(super) fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                // A real one takes its time: others have their turn.
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(fake.answer(&parts, &body))
            }
        });
        kube::Client::new(service, "default")
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Called before each request; a number is the answer.
    pub(super) fn hook(
        &self,
        hook: impl FnMut(&mut State, &Method, &str) -> Option<u16> + Send + 'static,
    ) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub(super) fn no_hook(&self) {
        *self.hook.lock().unwrap() = None;
    }

    /// What the watch sees, from now on at once.
    pub(super) fn seen(&self) -> Seen {
        let seen = Seen::default();
        let resource = |plural: &str, version: &str, kind: Kind| ApiResource {
            group: version.split('/').next().unwrap().into(),
            version: version.split('/').next_back().unwrap().into(),
            api_version: version.into(),
            kind: kind.as_str().into(),
            plural: plural.into(),
        };
        let resources =
            KINDS.map(|(kind, plural, version)| (kind, resource(plural, version, kind)));
        seen.set_resources(resources.into());
        let mut state = self.state();
        state.seen = Some(seen.clone());
        let objects: Vec<_> = state
            .objects
            .iter()
            .map(|(p, o)| (p.clone(), o.clone()))
            .collect();
        for (path, object) in objects {
            state.tell("ADDED", &path, &object);
        }
        seen
    }

    /// Calls by method and what their path contains.
    pub(super) fn count(&self, method: &Method, part: &str) -> usize {
        let state = self.state();
        let calls = state.calls.iter();
        calls
            .filter(|(m, path)| m == method && path.contains(part))
            .count()
    }

    fn answer(&self, parts: &http::request::Parts, body: &Bytes) -> Answer {
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or("");
        let mut state = self.state();
        state.calls.push((parts.method.clone(), path.clone()));
        if let Some(hook) = &mut *self.hook.lock().unwrap()
            && let Some(code) = hook(&mut state, &parts.method, &path)
        {
            return status(code, &path, "a hook");
        }
        let one = query.split('&').find_map(|part| {
            let name = part.strip_prefix("fieldSelector=metadata.name%3D")?;
            Some(name.to_owned())
        });
        let watches = query.contains("watch=true");
        if let Some(mut rights) = state.rights.take() {
            let new = !state.objects.contains_key(&path);
            let asked = Asked::all(parts, watches, one.as_deref(), new);
            let may = asked.into_iter().all(|asked| rights.may(asked));
            state.rights = Some(rights);
            if !may {
                return status(403, &path, "forbidden");
            }
        }
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let kind = parts
            .headers
            .get("content-type")
            .and_then(|kind| kind.to_str().ok());
        match (&parts.method, kind) {
            (&Method::GET, _) if watches => state.watch(&path, one),
            (&Method::GET, _) => state.get(&path, one.as_deref()),
            (&Method::POST, _) => {
                let name = value["metadata"]["name"].as_str().unwrap().to_owned();
                state.create(&format!("{path}/{name}"), value)
            }
            (&Method::PUT, _) => state.replace(&path, value),
            (&Method::PATCH, Some("application/apply-patch+yaml")) => state.apply(&path, &value),
            (&Method::PATCH, _) => state.merge(&path, &value),
            _ => status(405, &path, "unknown"),
        }
    }
}

impl State {
    fn next(&mut self) -> Value {
        self.version += 1;
        self.version.to_string().into()
    }

    /// Puts an object in, as somebody else would.
    pub(super) fn put(&mut self, path: &str, mut object: Value) {
        let before = self.objects.get(path).cloned();
        let uid = match &before {
            Some(before) => before["metadata"]["uid"].clone(),
            None => format!("uid of {path} {}", self.version).into(),
        };
        let mut names = path.rsplit('/');
        object["metadata"]["name"] = names.next().unwrap().into();
        // A Namespace itself is in none.
        if let Some((namespace, _)) = path
            .split_once("/namespaces/")
            .and_then(|(_, rest)| rest.split_once('/'))
        {
            object["metadata"]["namespace"] = namespace.into();
        }
        object["metadata"]["uid"] = uid;
        object["metadata"]["resourceVersion"] = self.next();
        let event = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.objects.insert(path.to_owned(), object.clone());
        self.tell(event, path, &object);
    }

    pub(super) fn delete(&mut self, path: &str) {
        if let Some(object) = self.objects.remove(path) {
            self.tell("DELETED", path, &object);
        }
    }

    /// Status of an object.
    pub(super) fn status(&self, path: &str) -> Value {
        self.objects
            .get(path)
            .map_or(Value::Null, |object| object["status"].clone())
    }

    fn tell(&mut self, event: &str, path: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": event, "object": object}));
        self.watches.retain(|(of, one, to)| {
            !is_in(path, of, one.as_deref()) || to.send(line.clone().into()).is_ok()
        });
        let (Some(seen), Some((kind, ..))) =
            (&self.seen, KINDS.iter().find(|k| path.contains(k.1)))
        else {
            return;
        };
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
        let known = Known {
            uid: text("uid").into(),
            resource_version: text("resourceVersion").into(),
            status: object.get("status").map(|status| status.to_string().into()),
        };
        let key = ObjectKey::new(text("namespace"), text("name"));
        let id = ObjectId { kind: *kind, key };
        seen.set(id, (event != "DELETED").then_some(known));
    }

    fn get(&self, path: &str, one: Option<&str>) -> Answer {
        if let Some(object) = self.objects.get(path) {
            return good(object);
        }
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(p, _)| is_in(p, path, one))
            .map(|(_, o)| o)
            .collect();
        let of_namespace = path.rsplit('/').nth(2) == Some("namespaces");
        if path.ends_with("s") && (of_namespace || !path.contains("/namespaces/")) {
            let version = self.version.to_string();
            return good(&json!({"metadata": {"resourceVersion": version}, "items": items}));
        }
        status(404, path, "not found")
    }

    fn watch(&mut self, path: &str, one: Option<String>) -> Answer {
        let (to, from) = mpsc::unbounded_channel();
        self.watches.push((path.to_owned(), one, to));
        let stream = futures_util::stream::unfold(from, |mut from| async move {
            let line = from.recv().await?;
            Some((Ok(Frame::data(line)), from))
        });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }

    fn create(&mut self, path: &str, object: Value) -> Answer {
        if self.objects.contains_key(path) {
            return status(409, path, "already exists");
        }
        self.put(path, object);
        good(&self.objects[path])
    }

    fn replace(&mut self, path: &str, object: Value) -> Answer {
        let Some(before) = self.objects.get(path) else {
            return status(404, path, "not found");
        };
        if before["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return status(409, path, "has been modified");
        }
        self.put(path, object);
        good(&self.objects[path])
    }

    fn apply(&mut self, path: &str, object: &Value) -> Answer {
        let mut next = self.objects.get(path).cloned().unwrap_or(json!({}));
        merge(&mut next, object);
        self.store(path, next)
    }

    fn merge(&mut self, path: &str, patch: &Value) -> Answer {
        let status_only = path.ends_with("/status");
        let path = path.strip_suffix("/status").unwrap_or(path);
        let Some(before) = self.objects.get(path) else {
            return status(404, path, "not found");
        };
        for field in ["uid", "resourceVersion"] {
            let wanted = &patch["metadata"][field];
            if !wanted.is_null() && *wanted != before["metadata"][field] {
                return status(409, path, "has been modified");
            }
        }
        let mut next = before.clone();
        if status_only {
            merge(&mut next["status"], &patch["status"]);
            for field in &self.pruned {
                next["status"].as_object_mut().unwrap().remove(*field);
            }
        } else {
            merge(&mut next, patch);
        }
        self.store(path, next)
    }

    /// What does not change has no new version.
    fn store(&mut self, path: &str, next: Value) -> Answer {
        if self.objects.get(path) != Some(&next) {
            self.put(path, next);
        }
        good(&self.objects[path])
    }
}

/// Whether an object is in a collection over all namespaces or one, or is the one of it that is asked for.
fn is_in(path: &str, collection: &str, one: Option<&str>) -> bool {
    let Some((folder, name)) = path.rsplit_once('/') else {
        return false;
    };
    let of_namespace = |(base, plural): (&str, &str)| {
        let rest = folder.strip_prefix(base)?.strip_prefix("/namespaces/")?;
        Some(rest.split_once('/')?.1 == plural)
    };
    let holds =
        folder == collection || collection.rsplit_once('/').and_then(of_namespace) == Some(true);
    holds && one.is_none_or(|one| one == name)
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(field);
        } else {
            merge(&mut into[field], value);
        }
    }
}

fn good(value: &Value) -> Answer {
    Response::new(Full::from(value.to_string()).boxed_unsync())
}

fn status(code: u16, path: &str, message: &str) -> Answer {
    let name = path.rsplit('/').next().unwrap();
    let details = if code == 404 && message == "a hook" {
        json!({})
    } else {
        json!({"name": name})
    };
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "message": message, "reason": "Odd", "details": details});
    let mut answer = good(&body);
    *answer.status_mut() = code.try_into().unwrap();
    answer
}
