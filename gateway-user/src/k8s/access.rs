//! One call to the API server: bounded in time, judged, counted, and if it is refused, told with the rule that is missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Resource as _;
use kube::core::params::{GetParams, PostParams};
use kube::core::{ApiResource, DynamicObject, Request};
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::permissions::{Forbidden, Permissions};
use crate::causes::chain;
use crate::translate::Kind;

/// Name under which the API server notes who owns a field.
pub(super) const MANAGER: &str = "forebay";

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

macro_rules! counted {
    ($name:ident, $doc:literal, $($variant:ident $text:literal $variant_doc:literal,)*) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $(#[doc = $variant_doc] $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As metrics name it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

counted! { What, "What is written.",
    GatewayClass "GatewayClass" "Status of a GatewayClass.",
    Gateway "Gateway" "Status of a Gateway.",
    HttpRoute "HTTPRoute" "Status of an HTTPRoute.",
    GrpcRoute "GRPCRoute" "Status of a GRPCRoute.",
    UdpRoute "UDPRoute" "Status of a UDPRoute.",
    DestinationRule "DestinationRule" "Status of a DestinationRule.",
    AddressPool "AddressPool" "Status of an AddressPool.",
    TrafficPolicy "TrafficPolicy" "Status of a TrafficPolicy.",
    Service "Service" "A Service or its status.",
    EndpointSlice "EndpointSlice" "An EndpointSlice.",
    Lease "Lease" "A Lease.",
    Event "Event" "An Event.",
    Secret "Secret" "The Secret of the keys.",
}

counted! { Outcome, "What became of a write.",
    Written "written" "It is done.",
    Conflict "conflict" "The object had changed; it is tried anew.",
    Forbidden "forbidden" "A rule is missing.",
    Gone "gone" "The object is not there any more.",
    Invalid "invalid" "The API server will never take it.",
    Failed "failed" "The API server did not answer, or has trouble; it is tried anew.",
}

impl What {
    /// Status of this kind; none if Forebay writes none.
    #[must_use]
    pub fn status_of(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::GatewayClass => Self::GatewayClass,
            Kind::Gateway => Self::Gateway,
            Kind::HttpRoute => Self::HttpRoute,
            Kind::GrpcRoute => Self::GrpcRoute,
            Kind::UdpRoute => Self::UdpRoute,
            Kind::DestinationRule => Self::DestinationRule,
            Kind::AddressPool => Self::AddressPool,
            Kind::TrafficPolicy => Self::TrafficPolicy,
            _ => return None,
        })
    }
}

const WHATS: usize = What::ALL.len();
const OUTCOMES: usize = Outcome::ALL.len();

/// Writes by what was written and what became of it.
#[derive(Debug, Default)]
pub struct Counters {
    writes: [[AtomicU64; OUTCOMES]; WHATS],
    /// Entries and conditions of ours for which a status had no room.
    pub left_out: AtomicU64,
}

impl Counters {
    fn add(&self, what: What, outcome: Outcome) {
        self.writes[what as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many writes had this outcome.
    #[must_use]
    pub fn get(&self, what: What, outcome: Outcome) -> u64 {
        self.writes[what as usize][outcome as usize].load(Ordering::Relaxed)
    }

    /// All that happened at least once.
    pub fn iter(&self) -> impl Iterator<Item = (What, Outcome, u64)> {
        let all = What::ALL
            .iter()
            .flat_map(|what| Outcome::ALL.iter().map(move |o| (*what, *o)));
        all.map(|(what, outcome)| (what, outcome, self.get(what, outcome)))
            .filter(|(.., count)| *count > 0)
    }
}

/// Why a call had no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The object has changed since it was read, or is there already.
    Conflict(String),
    /// The object is not there.
    Gone,
    /// The path is not there: nothing of this kind has it.
    NotServed,
    /// A rule is missing.
    Forbidden,
    /// It is refused for what it says.
    Invalid(String),
    /// The API server cannot be reached or has trouble.
    Unavailable(String),
}

impl Failure {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Conflict(_) => Outcome::Conflict,
            Self::Gone | Self::NotServed => Outcome::Gone,
            Self::Forbidden => Outcome::Forbidden,
            Self::Invalid(_) => Outcome::Invalid,
            Self::Unavailable(_) => Outcome::Failed,
        }
    }

    fn of(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Unavailable(chain(&error));
        };
        let details = status.details.as_ref();
        let terminating = details.is_some_and(|details| {
            details
                .causes
                .iter()
                .any(|c| c.reason == "NamespaceTerminating")
        });
        match status.code {
            403 if terminating => Self::Gone,
            403 => Self::Forbidden,
            404 if details.is_some_and(|details| !details.name.is_empty()) => Self::Gone,
            404 => Self::NotServed,
            409 => Self::Conflict(status.message),
            400 | 405 | 406 | 413 | 415 | 422 => Self::Invalid(status.message),
            _ => Self::Unavailable(format!("{} {}", status.code, status.message)),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Conflict(message) | Self::Invalid(message) | Self::Unavailable(message) => {
                f.write_str(message)
            }
            Self::Gone => f.write_str("not found"),
            Self::NotServed => f.write_str("not served"),
            Self::Forbidden => f.write_str("forbidden"),
        }
    }
}

/// What is asked of the API server, in the words of its rules.
#[derive(Clone, Debug)]
pub(super) struct Target<'a> {
    pub(super) what: What,
    pub(super) resource: &'a ApiResource,
    /// `status` or nothing.
    pub(super) part: &'static str,
    /// Empty: it is in none, or in all.
    pub(super) namespace: &'a str,
    /// `get`, `create`, `update` or `patch`.
    pub(super) verb: &'static str,
}

/// The API server.
#[derive(Clone)]
pub(super) struct Access {
    client: kube::Client,
    counters: Arc<Counters>,
    permissions: Permissions,
}

impl Access {
    pub(super) fn new(client: kube::Client, permissions: Permissions) -> Self {
        Self {
            client,
            counters: Arc::default(),
            permissions,
        }
    }

    pub(super) fn client(&self) -> &kube::Client {
        &self.client
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Sends one request. Successes are counted if they write.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        target: Target<'_>,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, Failure> {
        let result = match request {
            Ok(request) => {
                let sent = tokio::time::timeout(TIMEOUT, self.client.request(request)).await;
                match sent {
                    Ok(answer) => answer.map_err(Failure::of),
                    Err(_) => Err(Failure::Unavailable(format!(
                        "no answer within {TIMEOUT:?}"
                    ))),
                }
            }
            Err(error) => Err(Failure::Invalid(error.to_string())),
        };
        match &result {
            // To look whether something is there is no write.
            Ok(_) | Err(Failure::Gone) if target.verb == "get" => {}
            Ok(_) => self.counters.add(target.what, Outcome::Written),
            Err(failure) => {
                self.counters.add(target.what, failure.outcome());
                if *failure == Failure::Forbidden {
                    self.tell_forbidden(&target);
                }
            }
        }
        result
    }

    /// Uid of a Node, for something `what` that belongs to it or is about it.
    pub(super) async fn node_uid(&self, what: What, node: &str) -> Result<String, Failure> {
        let resource = ApiResource::erase::<Node>(&());
        let target = Target {
            what,
            resource: &resource,
            part: "",
            namespace: "",
            verb: "get",
        };
        let request = path(&resource, "").get(node, &GetParams::default());
        let node = self.call::<Value>(target, request).await?;
        Ok(node["metadata"]["uid"].as_str().unwrap_or("").to_owned())
    }

    /// Judges the failure of a watch.
    pub(super) fn judge(&self, target: &Target<'_>, error: watcher::Error) -> Failure {
        use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
        let failure = match error {
            InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
                Failure::of(error)
            }
            other => Failure::Unavailable(other.to_string()),
        };
        if failure == Failure::Forbidden {
            self.tell_forbidden(target);
        }
        failure
    }

    fn tell_forbidden(&self, target: &Target<'_>) {
        let resource = match target.part {
            "" => target.resource.plural.clone(),
            part => format!("{}/{part}", target.resource.plural),
        };
        self.permissions.missing(Forbidden {
            verb: target.verb,
            group: &target.resource.group,
            resource: &resource,
            namespace: target.namespace,
            name: None,
        });
    }
}

/// Says who creates or replaces an object.
pub(super) fn by_us() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Requests about objects of one kind in one namespace; empty: cluster-scoped.
pub(super) fn path(resource: &ApiResource, namespace: &str) -> Request {
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    Request::new(DynamicObject::url_path(resource, namespace))
}

/// How long to wait before the next try after so many failures.
pub(super) fn backoff(first: Duration, most: Duration, failures: u32) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(failures.min(20)))
        .min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let wait = |n| backoff(Duration::from_millis(100), Duration::from_secs(5), n).as_millis();
        assert_eq!([0, 1, 3, 6, 99].map(wait), [100, 200, 800, 5000, 5000]);
    }
}
