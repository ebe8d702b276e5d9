//! Forebay's TrafficPolicies: which VIP gets which, and what their status says.
//!
//! One for a listener (`sectionName`) counts before one for its Gateway, as a whole. Of several for one target the
//! oldest counts. The kernel knows ports and no hostnames, so listeners of one port share a policy: of different ones
//! the oldest counts there too. An invalid policy is not ignored: what of it can be read is carried out. An allow list
//! whose entries cannot be read thus lets in fewer, never more; else a typing error would open what it guards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::condition::{
    AncestorRef, AncestorStatus, Condition, Conditions, PolicyStatus, sentences,
};
use super::gateway::Gateways;
use super::inputs::Kind;
use super::listener::{Fault, GROUP};
use super::objects::{ClientAddressSpec, L4PolicySpec, PolicyTargetRef, TrafficPolicy};
use super::{Inputs, gateway_class};
use crate::snapshot::{
    ClientAddress, L4Policy, ObjectKey, Prefix, ReturnPath, Sources, Transport, UdpHash,
};

/// Most ancestors that a status may name.
const MAX_ANCESTORS: usize = 16;

/// Most proxies before this one that can be believed.
const MAX_HOPS: u8 = 16;

/// A port of a Gateway.
type Port = (u16, Transport);

/// Which VIP gets which policy.
#[derive(Default)]
pub(super) struct Policies {
    whole: BTreeMap<ObjectKey, Arc<L4Policy>>,
    ports: BTreeMap<(ObjectKey, Port), Arc<L4Policy>>,
    default: Arc<L4Policy>,
}

impl Policies {
    /// The policy of a port of a Gateway.
    pub(super) fn of(&self, gateway: &ObjectKey, port: Port) -> Arc<L4Policy> {
        let own = self.ports.get(&(gateway.clone(), port));
        let policy = own.or_else(|| self.whole.get(gateway));
        let policy = policy.unwrap_or(&self.default);
        // Datagrams carry neither a PROXY header nor hops.
        if port.1 == Transport::Udp && policy.client != ClientAddress::default() {
            return Arc::new(L4Policy {
                client: ClientAddress::default(),
                ..(**policy).clone()
            });
        }
        Arc::clone(policy)
    }
}

/// One policy as it was read.
struct Read<'a> {
    key: &'a ObjectKey,
    object: &'a TrafficPolicy,
    policy: Arc<L4Policy>,
    faults: Vec<String>,
}

/// What a targetRef names: a Gateway as a whole, or one of its ports by the listener's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Whole(ObjectKey),
    Port(ObjectKey, Port),
}

/// Reads all policies, the oldest first, and gives them to their targets.
pub(super) fn read(inputs: &Inputs, gateways: &Gateways, conditions: &mut Conditions) -> Policies {
    let mut all: Vec<Read<'_>> = inputs
        .traffic_policies
        .iter()
        .map(|(key, object)| Read::new(key, object))
        .collect();
    all.sort_by(|a, b| a.object.metadata.age().cmp(&b.object.metadata.age()));
    let mut winners: BTreeMap<Target, &Read<'_>> = BTreeMap::new();
    for policy in &all {
        if policy.object.spec.target_refs.is_empty() {
            let message = "spec.targetRefs names no Gateway".to_owned();
            conditions.warn(Kind::TrafficPolicy, policy.key, message);
            continue;
        }
        let mut seen = BTreeSet::new();
        let mut ancestors = Vec::new();
        for target in &policy.object.spec.target_refs {
            let ancestor = policy.ancestor(target);
            if !seen.insert(ancestor.clone()) {
                continue;
            }
            let judged = policy.judge(target, gateways, &mut winners);
            ancestors.push(AncestorStatus {
                ancestor_ref: ancestor,
                controller_name: gateway_class::CONTROLLER,
                conditions: policy.conditions(judged.err(), policy.meets_udp(target, gateways)),
            });
        }
        ancestors.truncate(MAX_ANCESTORS);
        let status = PolicyStatus { ancestors };
        conditions
            .traffic_policies
            .insert(policy.key.clone(), status);
    }
    let mut policies = Policies::default();
    for (target, winner) in winners {
        let policy = Arc::clone(&winner.policy);
        match target {
            Target::Whole(gateway) => policies.whole.insert(gateway, policy),
            Target::Port(gateway, port) => policies.ports.insert((gateway, port), policy),
        };
    }
    policies
}

impl<'a> Read<'a> {
    fn new(key: &'a ObjectKey, object: &'a TrafficPolicy) -> Self {
        let (policy, faults) = compile(&object.spec);
        Self {
            key,
            object,
            policy: Arc::new(policy),
            faults,
        }
    }

    fn ancestor(&self, target: &PolicyTargetRef) -> AncestorRef {
        AncestorRef {
            group: target.group.clone().unwrap_or_else(|| GROUP.to_owned()),
            kind: target.kind.clone().unwrap_or_else(|| "Gateway".to_owned()),
            namespace: self.key.namespace.to_string(),
            name: target.name.clone(),
            section_name: target.section_name.clone().filter(|name| !name.is_empty()),
        }
    }

    /// Takes a target unless an older policy has it; why the policy is not accepted there, if it is not.
    fn judge<'p>(
        &'p self,
        reference: &PolicyTargetRef,
        gateways: &Gateways,
        winners: &mut BTreeMap<Target, &'p Read<'a>>,
    ) -> Result<(), Fault> {
        let target = self.find(reference, gateways)?;
        let place = match &target {
            Target::Whole(_) => "Gateway".to_owned(),
            Target::Port(_, (port, transport)) => format!("port {port}{}", transport.suffix()),
        };
        let winner = winners.entry(target).or_insert(self);
        if winner.key != self.key {
            let message = format!(
                "TrafficPolicy {} is for the same {place} and counts there: it is older, or as old and first by name",
                winner.key
            );
            return Err(("Conflicted", message));
        }
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(("Invalid", sentences(&self.faults)))
        }
    }

    fn find(&self, reference: &PolicyTargetRef, gateways: &Gateways) -> Result<Target, Fault> {
        let ancestor = self.ancestor(reference);
        if (ancestor.group.as_str(), ancestor.kind.as_str()) != (GROUP, "Gateway") {
            let message = format!(
                "spec.targetRefs names kind {} of group {:?}, only Gateway of {GROUP} can be a target",
                ancestor.kind, ancestor.group
            );
            return Err(("Invalid", message));
        }
        let key = ObjectKey::new(self.key.namespace.clone(), ancestor.name.as_str());
        let Some(gateway) = gateways.get(&key) else {
            let message = format!("Gateway {key} does not exist or is not served by Forebay");
            return Err(("TargetNotFound", message));
        };
        let Some(section) = ancestor.section_name else {
            return Ok(Target::Whole(key));
        };
        let listener = gateway.listeners.iter().find(|l| l.spec.name == section);
        match listener {
            Some(listener) => {
                let port = (listener.spec.port, listener.transport());
                Ok(Target::Port(key, port))
            }
            None => {
                let message = format!("Gateway {key} has no listener {section}");
                Err(("TargetNotFound", message))
            }
        }
    }

    /// Whether the target is or has a listener whose datagrams nothing can go before.
    fn meets_udp(&self, reference: &PolicyTargetRef, gateways: &Gateways) -> bool {
        match self.find(reference, gateways) {
            Ok(Target::Port(_, (_, transport))) => transport == Transport::Udp,
            Ok(Target::Whole(key)) => gateways.get(&key).is_some_and(|gateway| {
                let mut listeners = gateway.listeners.iter();
                listeners.any(|listener| listener.transport() == Transport::Udp)
            }),
            Err(_) => false,
        }
    }

    fn conditions(&self, fault: Option<Fault>, udp: bool) -> Vec<Condition> {
        let accepted = match fault {
            None => Condition::yes("Accepted", "Accepted", "the policy is applied"),
            Some((reason, message)) => Condition::no("Accepted", reason, message),
        };
        let spec = &self.object.spec;
        let fields = |prefix: &str, unread: &super::objects::Unread| -> Vec<String> {
            let names = unread.keys();
            names.map(|name| format!("{prefix}.{name}")).collect()
        };
        let mut unsupported = fields("spec", &spec.unread);
        unsupported.extend(fields("spec.sources", &spec.sources.unread));
        unsupported.extend(fields("spec.udp", &spec.udp.unread));
        let client = &spec.client_address;
        unsupported.extend(fields("spec.clientAddress", &client.unread));
        if udp && client.proxy_protocol {
            unsupported.push("spec.clientAddress.proxyProtocol (UDP)".to_owned());
        }
        let generation = self.object.metadata.generation();
        std::iter::once(accepted)
            .chain(Condition::unsupported_fields(&unsupported))
            .map(|condition| condition.at(generation))
            .collect()
    }
}

/// What a policy says, as far as it can be read, and what cannot.
fn compile(spec: &L4PolicySpec) -> (L4Policy, Vec<String>) {
    let mut faults = Vec::new();
    let mut choice = |field: &str, given: Option<&str>, options: [&str; 2]| {
        let Some(given) = given else { return false };
        if !options.contains(&given) {
            let [first, second] = options;
            faults.push(format!("{field} {given:?} is neither {first} nor {second}"));
        }
        given == options[1]
    };
    let path = spec.return_path.as_deref();
    let local_only = choice("spec.returnPath", path, ["Direct", "LocalOnly"]);
    let hash = spec.udp.hash.as_deref();
    let addresses = choice("spec.udp.hash", hash, ["FiveTuple", "Addresses"]);
    let mut list = |field: &str, given: &[String]| -> Vec<Prefix> {
        let mut prefixes = BTreeSet::new();
        for (at, text) in given.iter().enumerate() {
            match text.parse() {
                Ok(prefix) => drop(prefixes.insert(prefix)),
                Err(error) => faults.push(format!("{field}[{at}]: {error}")),
            }
        }
        prefixes.into_iter().collect()
    };
    let sources = Sources {
        allow: spec
            .sources
            .allow
            .as_deref()
            .map(|given| list("spec.sources.allow", given)),
        deny: list("spec.sources.deny", &spec.sources.deny),
    };
    if spec.sources.allow.as_ref().is_some_and(Vec::is_empty) {
        faults.push(
            "spec.sources.allow is empty and shuts everybody out: name a CIDR or leave it away"
                .to_owned(),
        );
    }
    let client = client_address(&spec.client_address, &mut faults);
    let policy = L4Policy {
        return_path: if local_only {
            ReturnPath::LocalOnly
        } else {
            ReturnPath::Direct
        },
        sources,
        udp_hash: if addresses {
            UdpHash::Addresses
        } else {
            UdpHash::FiveTuple
        },
        client,
    };
    (policy, faults)
}

fn client_address(spec: &ClientAddressSpec, faults: &mut Vec<String>) -> ClientAddress {
    let hops = spec.trusted_hops;
    let trusted_hops = u8::try_from(hops).ok().filter(|hops| *hops <= MAX_HOPS);
    if trusted_hops.is_none() {
        faults.push(format!(
            "spec.clientAddress.trustedHops {hops} is not 0 to {MAX_HOPS}"
        ));
    }
    ClientAddress {
        proxy_protocol: spec.proxy_protocol,
        // Whoever is to be believed cannot be read: nobody is.
        trusted_hops: trusted_hops.unwrap_or(0),
    }
}
