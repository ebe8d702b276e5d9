//! Clusters: one for each (Service, port, DestinationRule) that a rule leads to, with the endpoints of its slices.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::backend_ref::app_protocol;
use super::condition::Conditions;
use super::destination_rule::Rules;
use super::inputs::Kind;
use super::listener::Fault;
use super::objects::{self, EndpointSlice, ServicePort};
use super::upstream_tls::{PortPolicy, ServicePortKey};
use super::{Context, SERVICE_NAME, pack, replica};
use crate::snapshot::{
    AppProtocol, BindKey, Cluster, ClusterKey, Endpoint, EndpointKey, ObjectKey, Slots,
    TrafficPolicy, Transport,
};

/// What is wrong with slices, in the order in which it was found.
type Warnings = Vec<(ObjectKey, String)>;

/// The clusters that rules lead to, by places that they keep. Kept from one translation to the next.
#[derive(Default)]
pub(super) struct Clusters {
    pub(super) rules: Rules,
    /// Slices by Service, in the order of their keys.
    slices: BTreeMap<ObjectKey, Vec<(ObjectKey, Arc<EndpointSlice>)>>,
    positions: BTreeMap<ClusterKey, u32>,
    wanted: Vec<Option<Box<Wanted>>>,
    /// The policy of clusters about which nothing is said: one for all of them.
    default_policy: Arc<TrafficPolicy>,
    free: BTreeSet<u32>,
    /// Clusters as snapshots have them.
    made: Slots<Cluster>,
    /// Those whose users or endpoints may have changed since they were made.
    changed: BTreeSet<u32>,
    /// Clusters with slices that something is wrong with.
    warned: BTreeMap<ClusterKey, Warnings>,
    refusal: Refusal,
    zone: Option<String>,
}

struct Wanted {
    key: ClusterKey,
    port_name: Box<str>,
    policy: Arc<TrafficPolicy>,
    protocol: AppProtocol,
    /// References of rules that are attached somewhere.
    uses: u32,
    /// The Service's port or the rule has changed since it was last asked for.
    stale: bool,
}

impl Clusters {
    /// Takes over changed slices.
    pub(super) fn update_slices(
        &mut self,
        before: Option<&Arc<EndpointSlice>>,
        now: Option<&Arc<EndpointSlice>>,
    ) {
        if let Some((service, key)) = before.and_then(|slice| belongs_to(slice)) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.retain(|(other, _)| *other != key);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.endpoints_changed(&service);
        }
        if let Some((slice, (service, key))) =
            now.and_then(|slice| Some((slice, belongs_to(slice)?)))
        {
            self.endpoints_changed(&service);
            match self.slices.entry(service) {
                // Most Services have one, and a list that grows begins with room for four.
                Entry::Vacant(vacant) => drop(vacant.insert(vec![(key, Arc::clone(slice))])),
                Entry::Occupied(mut known) => {
                    let slices = known.get_mut();
                    let at = slices.partition_point(|(other, _)| *other < key);
                    slices.insert(at, (key, Arc::clone(slice)));
                }
            }
        }
    }

    fn endpoints_changed(&mut self, service: &ObjectKey) {
        let of_service = of_service(&self.positions, service);
        self.changed.extend(of_service);
    }

    /// Has the clusters of a Service asked for anew: its ports, or the rule that applies to it, may have changed.
    pub(super) fn service_changed(&mut self, service: &ObjectKey) {
        for position in of_service(&self.positions, service) {
            self.changed.insert(position);
            if let Some(wanted) = &mut self.wanted[position as usize] {
                wanted.stale = true;
            }
        }
    }

    /// Position of the cluster of a Service port as Gateways of a namespace see it.
    pub(super) fn intern(
        &mut self,
        gateway_namespace: &str,
        service: &ObjectKey,
        port: &ServicePort,
        transport: Transport,
    ) -> Result<u32, Fault> {
        let rule = self.rules.lookup(gateway_namespace, service);
        let key = ClusterKey {
            service: service.clone(),
            port: port.port,
            transport,
            destination_rule: rule.map(|rule| rule.key.clone()),
        };
        let known = self.positions.get(&key).copied();
        let uses = match known.and_then(|at| Some((at, self.wanted[at as usize].as_ref()?))) {
            Some((position, wanted)) if !wanted.stale => return Ok(position),
            Some((_, wanted)) => wanted.uses,
            None => 0,
        };
        let to = ServicePortKey {
            service,
            port: port.port,
            transport,
            said: app_protocol(port).unwrap_or_default(),
        };
        let (policy, protocol) = match rule {
            None => PortPolicy::default().settle(to)?,
            Some(rule) => rule.policy(to)?,
        };
        let position = known.unwrap_or_else(|| free_place(&mut self.free, self.wanted.len()));
        let at = position as usize;
        if self.wanted.len() <= at {
            self.wanted.resize_with(at + 1, || None);
        }
        self.positions.insert(key.clone(), position);
        self.changed.insert(position);
        self.wanted[at] = Some(Box::new(Wanted {
            key,
            port_name: port.name.clone(),
            policy: self.shared(policy),
            protocol,
            uses,
            stale: false,
        }));
        Ok(position)
    }

    fn shared(&self, policy: TrafficPolicy) -> Arc<TrafficPolicy> {
        if policy == *self.default_policy {
            Arc::clone(&self.default_policy)
        } else {
            Arc::new(policy)
        }
    }

    /// Counts a reference of a rule.
    pub(super) fn hold(&mut self, position: u32) {
        if let Some(Some(wanted)) = self.wanted.get_mut(position as usize) {
            wanted.uses += 1;
        }
    }

    /// Takes a reference of a rule back.
    pub(super) fn release(&mut self, position: u32) {
        if let Some(Some(wanted)) = self.wanted.get_mut(position as usize) {
            wanted.uses = wanted.uses.saturating_sub(1);
            if wanted.uses == 0 {
                self.changed.insert(position);
            }
        }
    }

    /// Makes what has changed anew, and gives all clusters that are in use.
    pub(super) fn settle(
        &mut self,
        context: &Context<'_>,
        vips: &BTreeMap<BindKey, Arc<crate::snapshot::Bind>>,
    ) -> Slots<Cluster> {
        let refusal = Refusal::new(context, vips);
        if refusal != self.refusal || context.zone != self.zone.as_deref() {
            self.refusal = refusal;
            self.zone = context.zone.map(ToOwned::to_owned);
            self.changed.extend(self.positions.values());
        }
        for position in std::mem::take(&mut self.changed) {
            self.make(position);
        }
        self.made.clone()
    }

    fn make(&mut self, position: u32) {
        let at = position as usize;
        let Some(Some(wanted)) = self.wanted.get(at) else {
            return;
        };
        let before = self.made.get(at).cloned();
        if wanted.uses == 0 {
            self.warned.remove(&wanted.key);
            self.positions.remove(&wanted.key);
            self.wanted[at] = None;
            self.free.insert(position);
            self.made.set(at, None);
            return self.rules.cluster(before.as_ref(), None);
        }
        let mut warnings = Warnings::new();
        let mut cluster = Cluster {
            key: wanted.key.clone(),
            policy: Arc::clone(&wanted.policy),
            protocol: wanted.protocol,
            endpoints: self.endpoints(wanted, &mut warnings),
        };
        if warnings.is_empty() {
            self.warned.remove(&cluster.key);
        } else {
            self.warned.insert(cluster.key.clone(), warnings);
        }
        if let Some(before) = &before {
            if **before == cluster {
                return;
            }
            if before.endpoints == cluster.endpoints {
                cluster.endpoints = Arc::clone(&before.endpoints);
            }
        }
        let cluster = Arc::new(cluster);
        self.rules.cluster(before.as_ref(), Some(&cluster));
        self.made.set(at, Some(cluster));
    }

    /// Has its maps take no more room than they need.
    pub(super) fn pack(&mut self) {
        pack(&mut self.slices);
        pack(&mut self.positions);
        self.wanted.shrink_to_fit();
    }

    /// Notes what is wrong with slices of clusters.
    pub(super) fn warn(&self, conditions: &mut Conditions) {
        for (key, message) in self.warned.values().flatten() {
            conditions.warn(Kind::EndpointSlice, key, message.clone());
        }
    }

    /// Ready endpoints, those for this zone if they are divided up, or, if there is none that is ready, those that still
    /// serve while they terminate.
    fn endpoints(&self, wanted: &Wanted, warnings: &mut Warnings) -> Arc<[Endpoint]> {
        let slices = self.slices.get(&wanted.key.service);
        let mut ready: BTreeMap<SocketAddr, Seen<'_>> = BTreeMap::new();
        let mut terminating = ready.clone();
        for (key, slice) in slices.into_iter().flatten() {
            let port = slice.ports.iter().find(|port| {
                *port.name == *wanted.port_name && carried_by(&port.protocol, wanted.key.transport)
            });
            let Some(port) = port.and_then(|port| port.port) else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let state = &endpoint.conditions;
                let group = if state.ready.unwrap_or(true) {
                    &mut ready
                } else if state.serving == Some(true) && state.terminating == Some(true) {
                    &mut terminating
                } else {
                    continue;
                };
                match self.refusal.judge(endpoint, port, wanted.key.transport) {
                    Ok(address) => {
                        let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref());
                        // Two slices may list one pod while Kubernetes moves it between them.
                        let seen = group.entry(address).or_default();
                        seen.uid = seen.uid.max(uid);
                        let hints = endpoint.hints.as_ref();
                        let zones = hints.map_or(&[][..], |hints| &hints.for_zones);
                        seen.zones
                            .extend(zones.iter().map(|zone| zone.name.as_str()));
                    }
                    Err(message) => warnings.push((key.clone(), message)),
                }
            }
        }
        let (group, terminating) = if ready.is_empty() {
            (terminating, true)
        } else {
            (in_zone(ready, self.zone.as_deref()), false)
        };
        group
            .into_iter()
            .map(|(address, seen)| Endpoint {
                key: EndpointKey {
                    address,
                    pod_uid: seen.uid.map(Into::into),
                },
                terminating,
            })
            .collect()
    }
}

/// The Service that a slice belongs to, and the slice's own key; none if no cluster reads it.
fn belongs_to(slice: &EndpointSlice) -> Option<(ObjectKey, ObjectKey)> {
    if replica::is_ours(slice) {
        return None;
    }
    let metadata = &slice.metadata;
    let service = metadata.labels.get(SERVICE_NAME)?;
    let service = ObjectKey::new(Arc::clone(&metadata.namespace), service);
    Some((service, metadata.key()))
}

/// Positions of the clusters of a Service.
fn of_service(positions: &BTreeMap<ClusterKey, u32>, service: &ObjectKey) -> Vec<u32> {
    let first = ClusterKey {
        service: service.clone(),
        port: 0,
        transport: Transport::Tcp,
        destination_rule: None,
    };
    let clusters = positions.range(first..);
    let own = clusters.take_while(|(key, _)| key.service == *service);
    own.map(|(_, position)| *position).collect()
}

/// The first place that is free, else the one behind the last of `places`.
pub(super) fn free_place(free: &mut BTreeSet<u32>, places: usize) -> u32 {
    let end = || u32::try_from(places).expect("fewer than 2^32 values fit in memory");
    free.pop_first().unwrap_or_else(end)
}

/// What the slices say about one address.
#[derive(Clone, Default)]
struct Seen<'a> {
    uid: Option<&'a str>,
    /// Zones that shall use it.
    zones: BTreeSet<&'a str>,
}

/// Those for a zone, if every endpoint says for which zones it is and one is for this one; else all. As kube-proxy does it:
/// a division that does not cover everything would leave endpoints without requests.
fn in_zone<'a>(
    mut ready: BTreeMap<SocketAddr, Seen<'a>>,
    zone: Option<&str>,
) -> BTreeMap<SocketAddr, Seen<'a>> {
    let Some(zone) = zone else { return ready };
    let divided = ready.values().all(|seen| !seen.zones.is_empty());
    if divided && ready.values().any(|seen| seen.zones.contains(zone)) {
        ready.retain(|_, seen| seen.zones.contains(zone));
    }
    ready
}

/// Whether a port with this `protocol` is one of the transport; none named is TCP.
pub(super) fn carried_by(protocol: &str, transport: Transport) -> bool {
    protocol == transport.as_str() || (protocol.is_empty() && transport == Transport::Tcp)
}

/// Addresses that must not be upstreams: a request to them would leave the pods' network or come back to Forebay.
#[derive(Debug, Default, PartialEq, Eq)]
struct Refusal {
    on_cluster: bool,
    addresses: BTreeSet<IpAddr>,
    /// Loopback VIPs of file mode: beside them other ports of the laptop remain usable.
    sockets: BTreeSet<BindKey>,
}

impl Refusal {
    fn new(context: &Context<'_>, vips: &BTreeMap<BindKey, Arc<crate::snapshot::Bind>>) -> Self {
        let lenient = |key: &&BindKey| !context.on_cluster && key.address.is_loopback();
        Self {
            on_cluster: context.on_cluster,
            addresses: vips
                .keys()
                .filter(|key| !lenient(key))
                .map(|key| key.address)
                .collect(),
            sockets: vips.keys().filter(lenient).copied().collect(),
        }
    }

    fn judge(
        &self,
        endpoint: &objects::Endpoint,
        port: u16,
        transport: Transport,
    ) -> Result<SocketAddr, String> {
        let text = endpoint.addresses.first().map_or("", String::as_str);
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("endpoint address {text:?} is not an IP address"))?;
        let address = address.to_canonical();
        let socket = SocketAddr::new(address, port);
        let why = if address.is_unspecified() || address.is_multicast() || is_broadcast(address) {
            "not the address of one host"
        } else if is_link_local(address) {
            "link-local"
        } else if address == METADATA {
            "a cloud's metadata service"
        } else if self.on_cluster && address.is_loopback() {
            "a loopback address"
        } else if self.addresses.contains(&address)
            || self.sockets.contains(&BindKey::new(socket, transport))
        {
            "an address of a Gateway"
        } else {
            return Ok(socket);
        };
        Err(format!("endpoint {socket} is refused: {address} is {why}"))
    }
}

/// The one metadata address that is not link-local.
const METADATA: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254));

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}
