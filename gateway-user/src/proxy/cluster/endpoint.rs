//! The live state of one endpoint of one cluster.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::l7::outlier::Counters;
use crate::snapshot::EndpointKey;

/// One endpoint of one cluster.
#[derive(Debug)]
pub(in crate::proxy) struct LiveEndpoint {
    /// Identity.
    pub(in crate::proxy) key: EndpointKey,
    pub(super) counters: Counters,
    pub(super) active: AtomicU32,
    /// Listed and not ejected: requests may go to it and idle connections be kept.
    pub(super) usable_now: AtomicBool,
    opening: OnceLock<Arc<tokio::sync::Mutex<()>>>,
    /// Connections that could not be opened; who waited for one of them need not try again.
    pub(in crate::proxy) failures: AtomicU32,
    /// Given the choice, it spoke HTTP/1.
    pub(in crate::proxy) chose_http1: AtomicBool,
}

impl LiveEndpoint {
    pub(super) fn new(key: EndpointKey) -> Self {
        Self {
            key,
            counters: Counters::default(),
            active: AtomicU32::new(0),
            usable_now: AtomicBool::new(true),
            opening: OnceLock::new(),
            failures: AtomicU32::new(0),
            chose_http1: AtomicBool::new(false),
        }
    }

    /// Held while a connection is opened that many can share: the others wait for that one.
    pub(in crate::proxy) fn opening(&self) -> &Arc<tokio::sync::Mutex<()>> {
        self.opening.get_or_init(Arc::default)
    }

    /// Whether it is listed and not ejected.
    pub(in crate::proxy) fn is_usable(&self) -> bool {
        self.usable_now.load(Relaxed)
    }

    /// A try at this endpoint begins.
    pub(in crate::proxy) fn enter(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    /// A try at this endpoint has ended.
    pub(in crate::proxy) fn leave(&self) {
        self.active.fetch_sub(1, Relaxed);
    }
}
