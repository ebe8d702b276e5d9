//! Clusters: one for each (Service, port, DestinationRule) that a rule leads to, with the endpoints of its slices.

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
use super::{Context, Inputs, SERVICE_NAME, replica};
use crate::snapshot::{
    AppProtocol, BindKey, Cluster, ClusterKey, Endpoint, EndpointKey, ObjectKey, TrafficPolicy,
    Transport,
};

/// Slices of one Service, with their keys.
type Slices<'a> = Vec<(&'a ObjectKey, &'a EndpointSlice)>;

/// The clusters that rules lead to, in the order in which they were first met.
pub(super) struct Clusters<'a> {
    pub(super) rules: Rules<'a>,
    slices: BTreeMap<(&'a str, &'a str), Slices<'a>>,
    positions: BTreeMap<ClusterKey, u32>,
    wanted: Vec<Wanted<'a>>,
}

struct Wanted<'a> {
    key: ClusterKey,
    port_name: &'a str,
    policy: TrafficPolicy,
    protocol: AppProtocol,
    /// Whether a rule that is attached somewhere leads to it.
    used: bool,
}

impl<'a> Clusters<'a> {
    pub(super) fn new(inputs: &'a Inputs) -> Self {
        let mut slices: BTreeMap<_, Slices<'a>> = BTreeMap::new();
        for (key, slice) in &inputs.endpoint_slices {
            if let Some(service) = slice.metadata.labels.get(SERVICE_NAME)
                && !replica::is_ours(slice)
            {
                let of = (slice.metadata.namespace.as_str(), service.as_str());
                slices.entry(of).or_default().push((key, slice));
            }
        }
        Self {
            rules: Rules::new(inputs),
            slices,
            positions: BTreeMap::new(),
            wanted: Vec::new(),
        }
    }

    /// Position of the cluster of a Service port as Gateways of a namespace see it.
    pub(super) fn intern(
        &mut self,
        gateway_namespace: &str,
        service: &ObjectKey,
        port: &'a ServicePort,
        transport: Transport,
    ) -> Result<u32, Fault> {
        let rule = self.rules.lookup(gateway_namespace, service);
        let key = ClusterKey {
            service: service.clone(),
            port: port.port,
            transport,
            destination_rule: rule.map(|rule| rule.key.clone()),
        };
        if let Some(&position) = self.positions.get(&key) {
            return Ok(position);
        }
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
        let position =
            u32::try_from(self.wanted.len()).expect("fewer than 2^32 clusters fit in memory");
        self.positions.insert(key.clone(), position);
        self.wanted.push(Wanted {
            key,
            port_name: &port.name,
            policy,
            protocol,
            used: false,
        });
        Ok(position)
    }

    /// Notes that a rule of the snapshot leads to the cluster.
    pub(super) fn mark_used(&mut self, position: u32) {
        self.wanted[position as usize].used = true;
    }

    /// The used clusters sorted by key, and the final position for each interned one.
    pub(super) fn finish(
        &self,
        context: &Context<'_>,
        vips: &BTreeMap<BindKey, Arc<crate::snapshot::Bind>>,
        conditions: &mut Conditions,
    ) -> (Vec<Arc<Cluster>>, Vec<u32>) {
        let refusal = Refusal::new(context, vips);
        let mut moved = vec![0; self.wanted.len()];
        let mut clusters = Vec::with_capacity(self.wanted.len());
        let used = self
            .positions
            .values()
            .filter(|&&p| self.wanted[p as usize].used);
        for (at, &position) in (0u32..).zip(used) {
            moved[position as usize] = at;
            let wanted = &self.wanted[position as usize];
            clusters.push(Arc::new(Cluster {
                key: wanted.key.clone(),
                policy: wanted.policy.clone(),
                protocol: wanted.protocol,
                endpoints: self.endpoints(wanted, context.zone, &refusal, conditions),
            }));
        }
        (clusters, moved)
    }

    /// Ready endpoints, those for this zone if they are divided up, or, if there is none that is ready, those that still
    /// serve while they terminate.
    fn endpoints(
        &self,
        wanted: &Wanted<'_>,
        zone: Option<&str>,
        refusal: &Refusal,
        conditions: &mut Conditions,
    ) -> Arc<[Endpoint]> {
        let service = &wanted.key.service;
        let slices = self.slices.get(&(&*service.namespace, &*service.name));
        let mut ready: BTreeMap<SocketAddr, Seen<'_>> = BTreeMap::new();
        let mut terminating = ready.clone();
        for (key, slice) in slices.into_iter().flatten() {
            let port = slice.ports.iter().find(|port| {
                port.name == wanted.port_name && carried_by(&port.protocol, wanted.key.transport)
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
                match refusal.judge(endpoint, port, wanted.key.transport) {
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
                    Err(message) => conditions.warn(Kind::EndpointSlice, key, message),
                }
            }
        }
        let (group, terminating) = if ready.is_empty() {
            (terminating, true)
        } else {
            (in_zone(ready, zone), false)
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
