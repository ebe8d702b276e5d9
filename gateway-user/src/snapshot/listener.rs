//! Listeners and the sockets' view of them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use super::hostname::Hostname;
use super::l4_policy::L4Policy;
use super::name::ObjectKey;
use super::tls::ListenerTls;
use crate::l7::router::Router;

/// Protocol of a listener; grows with what the proxy can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Protocol {
    /// HTTP in clear text.
    Http,
    /// HTTP over TLS.
    Https,
    /// Datagrams.
    Udp,
}

/// What carries a protocol. TCP and UDP have ports of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The transport of an IP protocol number.
    #[must_use]
    pub const fn of_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// As Services and EndpointSlices name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// What follows an address and port in texts: nothing for TCP.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Tcp => "",
            Self::Udp => "/udp",
        }
    }
}

/// Where clients connect to: a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BindKey {
    /// Address of the Gateway.
    pub address: IpAddr,
    /// Listener port.
    pub port: u16,
    /// Transport.
    pub transport: Transport,
}

impl BindKey {
    /// A VIP; IPv4 addresses in IPv6 form become IPv4.
    #[must_use]
    pub fn new(socket: SocketAddr, transport: Transport) -> Self {
        Self {
            address: socket.ip().to_canonical(),
            port: socket.port(),
            transport,
        }
    }
}

impl fmt::Display for BindKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", SocketAddr::from(*self), self.transport.suffix())
    }
}

impl From<BindKey> for SocketAddr {
    fn from(key: BindKey) -> Self {
        SocketAddr::new(key.address, key.port)
    }
}

impl From<SocketAddr> for BindKey {
    /// The VIP of TCP.
    fn from(address: SocketAddr) -> Self {
        Self::new(address, Transport::Tcp)
    }
}

impl Serialize for BindKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// All listeners of one VIP.
#[derive(Clone, Debug, Serialize)]
pub struct Bind {
    /// Address, port and transport.
    pub key: BindKey,
    /// The Gateway that holds the address.
    pub gateway: ObjectKey,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The built-in readiness listener (port 15021): answers by itself, has no routes.
    pub builtin_ready: bool,
    /// What its TrafficPolicy says.
    pub policy: Arc<L4Policy>,
    /// Listeners in the order in which they are tried: exact hostname, longer wildcard, shorter, none.
    pub listeners: Vec<Arc<Listener>>,
}

impl Bind {
    /// The one listener that `host` (lower case, no port) belongs to: listener isolation, GEP-3155's sibling
    /// rule "most specific wins and never falls back".
    #[must_use]
    pub fn listener(&self, host: &str) -> Option<&Arc<Listener>> {
        self.listeners
            .iter()
            .find(|l| l.hostname.as_ref().is_none_or(|name| name.matches(host)))
    }
}

/// One listener of one Gateway.
#[derive(Clone, Debug, Serialize)]
pub struct Listener {
    /// Gateway.
    pub gateway: ObjectKey,
    /// Section name.
    pub name: Arc<str>,
    /// Hostname, if the listener has one.
    pub hostname: Option<Hostname>,
    /// TLS, where it terminates it.
    pub tls: Option<Arc<ListenerTls>>,
    /// The compiled routes that attached to it.
    pub router: Router,
    /// Protocols without matches: the rule that takes everything, by position in the snapshot's rules. None:
    /// no route is attached.
    pub rule: Option<u32>,
}
