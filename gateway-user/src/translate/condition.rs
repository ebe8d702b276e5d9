//! Conditions and statuses in Kubernetes' shape, as translate words them.
//!
//! They carry no `lastTransitionTime`: translate knows no clock, whoever writes statuses adds it when `status` changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::features::Feature;
use super::inputs::{Kind, ObjectId};
use super::listener::Fault;
use super::objects::ParentRef;
use crate::snapshot::{ObjectKey, Transport};

/// Present and True when fields of an object are not carried out; the message names them.
pub const UNSUPPORTED_FIELDS: &str = "forebay.dev/UnsupportedFields";

/// `status` of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known yet.
    Unknown,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: Truth,
    /// Why, as one CamelCase word.
    pub reason: &'static str,
    /// Why, as a sentence.
    pub message: String,
    /// `metadata.generation` of the object that was judged.
    pub observed_generation: i64,
}

impl Condition {
    fn new(kind: &'static str, status: Truth, reason: &'static str, message: String) -> Self {
        Self {
            kind,
            status,
            reason,
            message,
            observed_generation: 1,
        }
    }

    /// One that holds.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Truth::True, reason, message.into())
    }

    /// One that does not hold.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Truth::False, reason, message.into())
    }

    /// One that is not known yet.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Truth::Unknown, reason, message.into())
    }

    /// The same for an object of this generation.
    #[must_use]
    pub fn at(mut self, generation: i64) -> Self {
        self.observed_generation = generation;
        self
    }

    /// The condition that names fields which are not carried out; none if there are none.
    pub(super) fn unsupported_fields(fields: &[String]) -> Option<Self> {
        (!fields.is_empty()).then(|| {
            Self::yes(
                UNSUPPORTED_FIELDS,
                "UnsupportedValue",
                format!("not carried out: {}", list(fields)),
            )
        })
    }
}

/// Joins names by commas.
pub(super) fn list(items: &[String]) -> String {
    join(items, ", ", 32)
}

/// Joins sentences by semicolons.
pub(crate) fn sentences(items: &[String]) -> String {
    join(items, "; ", 16)
}

/// Not without end: a condition's message has a size limit.
fn join(items: &[String], between: &str, most: usize) -> String {
    let shown = items[..items.len().min(most)].join(between);
    match items.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown}{between}and {more} more"),
    }
}

/// What is said of a route that is attached.
pub(super) const ATTACHED: &str = "the route is attached";

/// Conditions of a route at one parent: `attached` is what is said of that, or why it is not; `faults` are its bad
/// backendRefs, `dropped` its rules that are not carried out.
pub(super) fn route_conditions(
    attached: Result<String, Fault>,
    faults: &[Fault],
    dropped: &[Fault],
) -> impl Iterator<Item = Condition> {
    let accepted = attached.is_ok();
    let first = match attached {
        Ok(message) => Condition::yes("Accepted", "Accepted", message),
        Err((reason, message)) => Condition::no("Accepted", reason, message),
    };
    let resolved = match faults.first() {
        None => Condition::yes("ResolvedRefs", "ResolvedRefs", "all references are valid"),
        Some((reason, _)) => {
            let mut seen = BTreeSet::new();
            let messages = faults.iter().map(|fault| fault.1.clone());
            let messages: Vec<String> = messages.filter(|m| seen.insert(m.clone())).collect();
            Condition::no("ResolvedRefs", reason, sentences(&messages))
        }
    };
    let partial = dropped.first().filter(|_| accepted).map(|(reason, _)| {
        let rules: Vec<String> = dropped.iter().map(|fault| fault.1.clone()).collect();
        let message = format!("Dropped Rule {}", list(&rules));
        Condition::yes("PartiallyInvalid", reason, message)
    });
    [first, resolved].into_iter().chain(partial)
}

/// Statuses of all objects that translate judges. Those of kinds that there may be thousands of are shared with earlier and
/// later ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// GatewayClasses of ours.
    pub gateway_classes: BTreeMap<ObjectKey, ClassStatus>,
    /// Gateways of our classes.
    pub gateways: BTreeMap<ObjectKey, GatewayStatus>,
    /// HTTPRoutes that name one of our Gateways.
    pub http_routes: Arc<BTreeMap<ObjectKey, Arc<RouteStatus>>>,
    /// GRPCRoutes that name one of our Gateways.
    pub grpc_routes: Arc<BTreeMap<ObjectKey, Arc<RouteStatus>>>,
    /// UDPRoutes that name one of our Gateways.
    pub udp_routes: Arc<BTreeMap<ObjectKey, Arc<RouteStatus>>>,
    /// DestinationRules.
    pub destination_rules: Arc<BTreeMap<ObjectKey, Arc<ClassStatus>>>,
    /// AddressPools.
    pub address_pools: BTreeMap<ObjectKey, ClassStatus>,
    /// TrafficPolicies.
    pub traffic_policies: BTreeMap<ObjectKey, PolicyStatus>,
    /// What is wrong with objects that Forebay writes no status for, such as EndpointSlices.
    pub warnings: BTreeMap<ObjectId, Vec<String>>,
}

impl Conditions {
    /// Notes what is wrong with an object that Forebay writes no status for; once each.
    pub(super) fn warn(&mut self, kind: Kind, key: &ObjectKey, message: String) {
        let id = ObjectId {
            kind,
            key: key.clone(),
        };
        let messages = self.warnings.entry(id).or_default();
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
}

/// A status that is a list of conditions, and for a GatewayClass one of features.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassStatus {
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// What routes and Gateways of the class may use.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub supported_features: &'static [Feature],
}

impl From<Vec<Condition>> for ClassStatus {
    fn from(conditions: Vec<Condition>) -> Self {
        Self {
            conditions,
            supported_features: &[],
        }
    }
}

/// Status of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GatewayStatus {
    /// Addresses that it has.
    pub addresses: Vec<AddressStatus>,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// One for each listener, in the order of the spec.
    pub listeners: Vec<ListenerStatus>,
}

/// One address of a Gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressStatus(pub IpAddr);

impl Serialize for AddressStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape {
            r#type: &'static str,
            value: IpAddr,
        }
        Shape {
            r#type: "IPAddress",
            value: self.0,
        }
        .serialize(serializer)
    }
}

/// Status of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Section name.
    pub name: String,
    /// Kinds of routes that may attach.
    pub supported_kinds: Vec<SupportedKind>,
    /// Routes that are accepted for it.
    pub attached_routes: usize,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Port, to find the listener that a report names.
    #[serde(skip)]
    pub port: u16,
    /// Transport, for the same.
    #[serde(skip)]
    pub transport: Transport,
}

/// One kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SupportedKind {
    /// API group.
    pub group: &'static str,
    /// Kind.
    pub kind: &'static str,
}

/// Status of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RouteStatus {
    /// One for each parentRef that is ours.
    pub parents: Vec<ParentStatus>,
}

/// Status of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// One for each target.
    pub ancestors: Vec<AncestorStatus>,
}

/// What became of a policy at one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// The target.
    pub ancestor_ref: AncestorRef,
    /// Ours.
    pub controller_name: &'static str,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// A target of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorRef {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// One listener by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What became of one parentRef.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parentRef, verbatim.
    pub parent_ref: ParentRef,
    /// Ours.
    pub controller_name: &'static str,
    /// Conditions.
    pub conditions: Vec<Condition>,
}
