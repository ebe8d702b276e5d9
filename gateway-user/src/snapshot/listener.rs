//! Listeners and the sockets' view of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use super::hostname::Hostname;
use super::name::ObjectKey;
use crate::l7::router::Router;

/// Protocol of a listener; grows with what the proxy can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Protocol {
    /// HTTP in clear text.
    Http,
}

/// Where clients connect to: a VIP. The transport is TCP for all current protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BindKey {
    /// Address of the Gateway.
    pub address: IpAddr,
    /// Listener port.
    pub port: u16,
}

impl From<BindKey> for SocketAddr {
    fn from(key: BindKey) -> Self {
        SocketAddr::new(key.address, key.port)
    }
}

impl From<SocketAddr> for BindKey {
    fn from(address: SocketAddr) -> Self {
        Self {
            address: address.ip().to_canonical(),
            port: address.port(),
        }
    }
}

impl Serialize for BindKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&SocketAddr::from(*self))
    }
}

/// All listeners of one address and port.
#[derive(Clone, Debug, Serialize)]
pub struct Bind {
    /// Address and port.
    pub key: BindKey,
    /// The Gateway that holds the address.
    pub gateway: ObjectKey,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The built-in readiness listener (port 15021): answers by itself, has no routes.
    pub builtin_ready: bool,
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
    /// The compiled routes that attached to it.
    pub router: Router,
}
