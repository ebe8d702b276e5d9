//! What the data plane counts: closed sets of names, relaxed atomics, one shard per worker.
//!
//! Counting never allocates and never takes a lock; reading sums the shards. Per-cluster figures live with the
//! cluster (`proxy::cluster`) and use the types below.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use super::scan::Reason;

/// Declares a closed set of counter names: an enum, all its values, and the name of each.
macro_rules! closed_names {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Name in metrics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

closed_names! {
    /// Things that happen to a worker.
    Event {
        /// Client connections accepted.
        DownstreamConnections = "downstream_connections",
        /// Accepted connections whose local address is no VIP.
        DownstreamUnknownAddress = "downstream_unknown_address",
        /// `accept` failed (out of file descriptors, for example).
        AcceptErrors = "accept_errors",
        /// Times that no connection was accepted for a while, since descriptors or memory were used up.
        AcceptPauses = "accept_pauses",
        /// Idle client connections told to close since descriptors or memory were scarce.
        Shed = "shed",
        /// Idle client connections that gave their buffers back.
        DownstreamRests = "downstream_rests",
        /// Client connections closed since the request head took too long.
        HeaderTimeouts = "header_timeouts",
        /// Client connections closed, or HTTP/2 streams reset, since the request body stalled.
        BodyTimeouts = "body_timeouts",
        /// Client connections closed, or HTTP/2 streams reset, since the client took no response bytes.
        WriteTimeouts = "write_timeouts",
        /// Client connections closed since they were idle.
        IdleTimeouts = "idle_timeouts",
        /// Client connections closed since an exchange made no progress.
        StreamTimeouts = "stream_timeouts",
        /// Handshakes done with clients.
        TlsHandshakes = "tls_handshakes",
        /// Handshakes that a client broke off or that came to no agreement.
        TlsFailures = "tls_failures",
        /// Handshakes refused since no listener takes the server name.
        TlsUnknownNames = "tls_unknown_names",
        /// Handshakes refused since the listener has no usable certificate.
        TlsWithoutCertificate = "tls_without_certificate",
        /// Client connections closed since their handshake took too long.
        TlsTimeouts = "tls_timeouts",
        /// Client connections closed since too many handshakes were under way.
        TlsCrowded = "tls_crowded",
        /// Client connections closed since they began with no PROXY header where one is required.
        ProxyHeaderErrors = "proxy_header_errors",
        /// HTTP/2 connections closed since the client sent too many frames that bring nothing.
        Http2Floods = "http2_floods",
        /// Connections and streams that became tunnels.
        Upgrades = "upgrades",
        /// Copies of requests sent to mirrors.
        Mirrored = "mirrored",
        /// Copies of requests that mirrors did not get whole.
        MirrorsDropped = "mirrors_dropped",
        /// Client connections closed at their maximal age.
        MaxAge = "max_age",
        /// Client connections closed by draining.
        Drained = "drained",
        /// Client connections cut off with something under way since the time for draining was over.
        DrainCutOff = "drain_cut_off",
        /// Upstream connections opened.
        UpstreamConnects = "upstream_connects",
        /// Upstream connections that could not be opened.
        UpstreamConnectFailures = "upstream_connect_failures",
        /// Requests that moved to a fresh connection since the pooled one was closed.
        UpstreamStale = "upstream_stale",
        /// Requests tried again.
        UpstreamRetries = "upstream_retries",
        /// Connections and datagrams from sources that the VIP's TrafficPolicy does not admit.
        SourcesDenied = "sources_denied",
        /// UDP sessions begun.
        UdpSessions = "udp_sessions",
        /// UDP sessions ended since they were idle.
        UdpSessionsIdle = "udp_sessions_idle",
        /// UDP sessions ended since the endpoint's port was unreachable.
        UdpSessionsRefused = "udp_sessions_refused",
        /// UDP sessions ended since their endpoint or route was gone.
        UdpSessionsMoved = "udp_sessions_moved",
        /// UDP sessions ended since there was no room for another.
        UdpSessionsEvicted = "udp_sessions_evicted",
        /// UDP sessions without a tag since their set of tags was full: a node that takes their row over does not
        /// find them here.
        UdpTagsFull = "udp_tags_full",
        /// Datagrams that came from clients.
        UdpDatagramsReceived = "udp_datagrams_received",
        /// Datagrams that went to clients.
        UdpDatagramsSent = "udp_datagrams_sent",
        /// Datagrams of clients that no session could be made for.
        UdpDatagramsUnroutable = "udp_datagrams_unroutable",
        /// Datagrams dropped since a socket had no room or refused them.
        UdpDatagramsDropped = "udp_datagrams_dropped",
        /// Access log lines dropped since the writer was behind.
        LogLinesDropped = "access_log_lines_dropped",
    }
}

closed_names! {
    /// Why a response is what it is, or why a UDP session ended: Envoy's response flags.
    Flag {
        /// No route or no listener for the request.
        NoRoute = "NR",
        /// The route has no valid backend.
        NoCluster = "NC",
        /// No endpoint may be used.
        NoHealthyUpstream = "UH",
        /// A limit was reached.
        Overflow = "UO",
        /// The endpoint could not be connected to.
        ConnectFailure = "UF",
        /// The endpoint closed the connection before the response was complete.
        UpstreamClosed = "UC",
        /// The endpoint sent what is no HTTP.
        UpstreamProtocol = "UPE",
        /// A timeout of the route passed.
        Timeout = "UT",
        /// The client went away, or we closed its connection at the end of a limit or of draining.
        DownstreamClosed = "DC",
        /// No byte went either way for too long.
        StreamIdle = "SI",
        /// The client sent what is no acceptable request.
        DownstreamProtocol = "DPE",
        /// There was no room for it beside others.
        Overload = "OM",
    }
}

const EVENTS: usize = Event::ALL.len();
const FLAGS: usize = Flag::ALL.len();
const REFUSALS: usize = Reason::ALL.len();
/// Response codes by first digit; 0 = no response was sent.
pub const CLASSES: usize = 6;

/// Upper bounds of the latency buckets, in microseconds; a last bucket holds the rest.
pub const BUCKETS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// One worker's counters, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    events: [AtomicU64; EVENTS],
    flags: [AtomicU64; FLAGS],
    classes: [AtomicU64; CLASSES],
    refusals: [AtomicU64; REFUSALS],
    open: AtomicUsize,
    sessions: AtomicUsize,
}

/// All counters that belong to no cluster.
#[derive(Debug)]
pub struct Stats {
    shards: Box<[Shard]>,
}

/// A reading of [`Stats`].
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// By event.
    pub events: Vec<(&'static str, u64)>,
    /// Requests by response flag.
    pub flags: Vec<(&'static str, u64)>,
    /// Requests by first digit of the response code; the first is "no response".
    pub classes: [u64; CLASSES],
    /// Requests refused at the door, by reason.
    pub refusals: Vec<(&'static str, u64)>,
    /// Client connections open now.
    pub open_connections: usize,
    /// UDP sessions open now.
    pub open_sessions: usize,
}

impl Stats {
    /// Counters for `workers` workers (at least one).
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let shard = |_| Shard {
            events: [const { AtomicU64::new(0) }; EVENTS],
            flags: [const { AtomicU64::new(0) }; FLAGS],
            classes: [const { AtomicU64::new(0) }; CLASSES],
            refusals: [const { AtomicU64::new(0) }; REFUSALS],
            open: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
        };
        Self {
            shards: (0..workers.max(1)).map(shard).collect(),
        }
    }

    fn shard(&self, worker: usize) -> &Shard {
        &self.shards[worker % self.shards.len()]
    }

    /// Counts an event of a worker.
    pub fn count(&self, worker: usize, event: Event) {
        self.add(worker, event, 1);
    }

    /// Counts `n` events of a worker.
    pub fn add(&self, worker: usize, event: Event, n: u64) {
        self.shard(worker).events[event as usize].fetch_add(n, Relaxed);
    }

    /// Counts an ended request.
    pub fn request(&self, worker: usize, status: u16, flag: Option<Flag>) {
        let shard = self.shard(worker);
        shard.classes[class(status)].fetch_add(1, Relaxed);
        if let Some(flag) = flag {
            shard.flags[flag as usize].fetch_add(1, Relaxed);
        }
    }

    /// Counts what was dropped without having become a request.
    pub(super) fn flagged(&self, worker: usize, flag: Flag) {
        self.shard(worker).flags[flag as usize].fetch_add(1, Relaxed);
    }

    /// Counts a refused request.
    pub(super) fn refused(&self, worker: usize, reason: Reason) {
        self.shard(worker).refusals[reason as usize].fetch_add(1, Relaxed);
    }

    /// A client connection was opened.
    pub fn opened(&self, worker: usize) {
        self.shard(worker).open.fetch_add(1, Relaxed);
    }

    /// A client connection was closed.
    pub fn closed(&self, worker: usize) {
        self.shard(worker).open.fetch_sub(1, Relaxed);
    }

    /// Client connections open now.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.shards.iter().map(|s| s.open.load(Relaxed)).sum()
    }

    /// A UDP session has begun.
    pub(super) fn session_opened(&self, worker: usize) {
        self.shard(worker).sessions.fetch_add(1, Relaxed);
    }

    /// A UDP session has ended.
    pub(super) fn session_closed(&self, worker: usize) {
        self.shard(worker).sessions.fetch_sub(1, Relaxed);
    }

    /// UDP sessions open now.
    #[must_use]
    pub fn open_sessions(&self) -> usize {
        self.shards.iter().map(|s| s.sessions.load(Relaxed)).sum()
    }

    /// One event, over all workers.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.sum(|s| &s.events[event as usize])
    }

    /// All counters, over all workers.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            events: Event::ALL
                .iter()
                .map(|e| (e.name(), self.event(*e)))
                .collect(),
            flags: Flag::ALL
                .iter()
                .map(|f| (f.name(), self.sum(|s| &s.flags[*f as usize])))
                .collect(),
            classes: std::array::from_fn(|c| self.sum(|s| &s.classes[c])),
            refusals: Reason::ALL
                .iter()
                .map(|r| (r.as_str(), self.sum(|s| &s.refusals[*r as usize])))
                .collect(),
            open_connections: self.open_connections(),
            open_sessions: self.open_sessions(),
        }
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|s| counter(s).load(Relaxed)).sum()
    }
}

/// One worker's counters of one cluster.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ClusterShard {
    classes: [AtomicU64; CLASSES],
    flags: [AtomicU64; FLAGS],
    latency: [AtomicU64; BUCKETS_US.len() + 1],
    latency_sum_us: AtomicU64,
    connects: AtomicU64,
}

/// A reading of one cluster's counters.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterReading {
    /// Requests by first digit of the response code; the first is "no response".
    pub classes: [u64; CLASSES],
    /// Requests by response flag; only flags that were set.
    pub flags: Vec<(&'static str, u64)>,
    /// Requests by latency bucket ([`BUCKETS_US`] and one more), not cumulated.
    pub latency: [u64; BUCKETS_US.len() + 1],
    /// Sum of latencies in microseconds.
    pub latency_sum_us: u64,
    /// Connections opened.
    pub connects: u64,
}

impl ClusterShard {
    /// Counts an ended request.
    pub fn request(&self, status: u16, flag: Option<Flag>, took: Duration) {
        self.classes[class(status)].fetch_add(1, Relaxed);
        if let Some(flag) = flag {
            self.flags[flag as usize].fetch_add(1, Relaxed);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        self.latency[bucket].fetch_add(1, Relaxed);
        self.latency_sum_us.fetch_add(us, Relaxed);
    }

    /// Counts an opened connection.
    pub fn connected(&self) {
        self.connects.fetch_add(1, Relaxed);
    }

    /// Sums the shards of one cluster.
    #[must_use]
    pub fn read<'a>(shards: &(impl Iterator<Item = &'a Self> + Clone)) -> ClusterReading {
        let sum = |counter: &dyn Fn(&Self) -> &AtomicU64| -> u64 {
            let shards = shards.clone();
            shards.map(|s| counter(s).load(Relaxed)).sum()
        };
        ClusterReading {
            classes: std::array::from_fn(|i| sum(&|s| &s.classes[i])),
            flags: Flag::ALL
                .iter()
                .map(|f| (f.name(), sum(&|s| &s.flags[*f as usize])))
                .filter(|(_, n)| *n > 0)
                .collect(),
            latency: std::array::from_fn(|i| sum(&|s| &s.latency[i])),
            latency_sum_us: sum(&|s| &s.latency_sum_us),
            connects: sum(&|s| &s.connects),
        }
    }
}

fn class(status: u16) -> usize {
    usize::from(status / 100).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up() {
        let stats = Stats::new(2);
        stats.count(0, Event::UpstreamConnects);
        stats.add(1, Event::UpstreamConnects, 2);
        stats.request(0, 200, None);
        stats.request(1, 503, Some(Flag::Overflow));
        stats.request(1, 0, Some(Flag::DownstreamClosed));
        stats.opened(1);
        let reading = stats.read();
        assert_eq!(stats.event(Event::UpstreamConnects), 3);
        assert_eq!(reading.classes, [1, 0, 1, 0, 0, 1]);
        assert!(reading.flags.contains(&("UO", 1)) && reading.flags.contains(&("UF", 0)));
        assert_eq!(reading.open_connections, 1);
    }

    #[test]
    fn latencies_fall_into_their_buckets() {
        let shard = ClusterShard::default();
        for us in [500, 501, 20_000_000] {
            shard.request(200, None, Duration::from_micros(us));
        }
        let reading = ClusterShard::read(&[&shard].into_iter());
        assert_eq!((reading.latency[0], reading.latency[1]), (1, 1));
        assert_eq!(reading.latency[BUCKETS_US.len()], 1);
        assert_eq!(reading.latency_sum_us, 20_001_001);
    }
}
