//! One request from admission to its record: what it holds, and what is counted and logged when it ends.
//!
//! It ends exactly once: when the response body is complete, when it fails, or when it is dropped because the client
//! went away or was cut off. A client that closes its sending half counts as gone, as with Envoy: from here it cannot be
//! told from one that has closed both, and an abandoned request must not hold an endpoint. Whatever it holds is released then, permits before the connection.

use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use http::header::{HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::access_log::{self, Line};
use super::body::Progress;
use super::cluster::{LiveCluster, LiveEndpoint};
use super::downstream::{Cut, Downstream};
use super::http2::StreamNotes;
use super::pool::Lease;
use super::prepare::AnswerEdits;
use super::release::release;
use super::runtime::LiveRule;
use super::scan::Refusal;
use super::stats::{Event, Flag};
use super::upstream::Handed;
use super::worker::Worker;
use crate::l7::header::X_FORWARDED_FOR;
use crate::l7::outlier::Outcome;
use crate::snapshot::Filters;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What of the request head the access log shows; kept only if there is a log.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) authority: Option<HeaderValue>,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) forwarded_for: Option<HeaderValue>,
    pub(super) request_id: Option<HeaderValue>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Exchange {
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    /// Notes of its stream; HTTP/2.
    notes: Option<Rc<StreamNotes>>,
    /// Why it was refused, where the scanner does not know.
    refused: Option<Refusal>,
    head: Option<Head>,
    started: Instant,
    /// When the endpoint answered.
    responded: Option<Instant>,
    /// The rule, once one matched.
    pub(super) rule: Option<Arc<LiveRule>>,
    /// The cluster, once one was chosen.
    pub(super) cluster: Option<Arc<LiveCluster>>,
    /// The endpoint that was tried last.
    pub(super) endpoint: Option<Arc<LiveEndpoint>>,
    /// The connection while it is in use.
    pub(super) lease: Option<Lease>,
    /// The request body, if there is one.
    pub(super) body: Option<Arc<Progress>>,
    /// Response code; 0 until there is one.
    pub(super) status: u16,
    /// Why it ended otherwise than by a response of the endpoint.
    pub(super) flag: Option<Flag>,
    /// Body bytes of the response.
    pub(super) sent: u64,
    /// When the route's timeouts are over.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    /// The client speaks gRPC: so do the proxy's own answers.
    pub(super) grpc: bool,
    /// A WebSocket by HTTP/2.
    pub(super) websocket: bool,
    /// It asks for an upgrade that may be granted.
    pub(super) upgrade: bool,
    /// What the answer goes through.
    pub(super) edits: Option<Box<AnswerEdits>>,
    /// Where what is left of the connection comes from, once the endpoint has granted the upgrade.
    pub(super) handed: Option<oneshot::Receiver<Handed>>,
    /// The endpoint has granted it.
    pub(super) tunnel: Option<Handed>,
    /// The client's stream, once it is a tunnel; HTTP/2.
    pub(super) client_upgrade: Option<OnUpgrade>,
    /// Bytes from the client in a tunnel.
    pub(super) tunnelled: u64,
    ended: bool,
}

impl Exchange {
    /// A request has arrived.
    #[must_use]
    pub(super) fn begin(
        worker: &Rc<Worker>,
        downstream: &Rc<Downstream>,
        notes: Option<Rc<StreamNotes>>,
        request: &mut Request<Incoming>,
    ) -> Box<Self> {
        let started = Instant::now();
        downstream.request_begins();
        let client_upgrade = notes
            .as_ref()
            .and_then(|_| request.extensions_mut().remove::<OnUpgrade>());
        let headers = request.headers();
        let authority = || {
            let authority = request.uri().authority();
            let authority = authority.and_then(|a| HeaderValue::from_str(a.as_str()).ok());
            authority.or_else(|| headers.get(HOST).cloned())
        };
        let head = worker.logs().then(|| Head {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            authority: authority(),
            user_agent: headers.get(USER_AGENT).cloned(),
            forwarded_for: headers.get(X_FORWARDED_FOR).cloned(),
            request_id: headers.get(X_REQUEST_ID).cloned(),
        });
        Box::new(Self {
            worker: Rc::clone(worker),
            downstream: Rc::clone(downstream),
            notes,
            refused: None,
            head,
            started,
            responded: None,
            rule: None,
            cluster: None,
            endpoint: None,
            lease: None,
            body: None,
            status: 0,
            flag: None,
            sent: 0,
            deadline: None,
            grpc: false,
            websocket: false,
            upgrade: false,
            edits: None,
            handed: None,
            tunnel: None,
            client_upgrade,
            tunnelled: 0,
            ended: false,
        })
    }

    /// Notes of its stream, if it came by HTTP/2.
    pub(super) fn notes(&self) -> Option<&StreamNotes> {
        self.notes.as_deref()
    }

    /// Its worker and its connection.
    pub(super) fn ends(&self) -> (Rc<Worker>, Rc<Downstream>) {
        (Rc::clone(&self.worker), Rc::clone(&self.downstream))
    }

    /// Counts an event.
    pub(super) fn count(&self, event: Event) {
        self.worker.count(event);
    }

    /// Random numbers.
    pub(super) fn random(&self) -> [u64; 2] {
        [self.worker.random(), self.worker.random()]
    }

    /// The request is refused for a reason that the scanner does not know of.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.worker
            .stats()
            .refused(self.worker.index, refusal.reason);
        self.refused = Some(refusal);
    }

    /// The rule is found.
    pub(super) fn matched(&mut self, rule: &Arc<LiveRule>) {
        self.rule = Some(Arc::clone(rule));
    }

    /// What the answer goes through.
    pub(super) fn edits(&mut self) -> &mut AnswerEdits {
        self.edits.get_or_insert_default()
    }

    /// The answer goes through these filters, if they do anything to it.
    pub(super) fn answer_through(&mut self, filters: &Arc<Filters>) {
        if !filters.response_headers.is_empty() {
            self.edits().filters.push(Arc::clone(filters));
        }
    }

    /// Whether the client broke off its body or framed it badly.
    pub(super) fn body_broke(&self) -> bool {
        self.body.is_some() && self.downstream.refusal().is_some()
    }

    fn cut(&self) -> Option<Cut> {
        let stream = self.notes.as_ref().and_then(|notes| notes.cut());
        stream.or_else(|| self.downstream.cut())
    }

    fn refusal(&self) -> Option<Refusal> {
        self.refused.or_else(|| self.downstream.refusal())
    }

    /// The endpoint's response head is there.
    pub(super) fn responded(&mut self, status: u16) {
        self.status = status;
        self.responded = Some(Instant::now());
    }

    /// A moment of its life that is not long ago, for which the clock need not be asked.
    pub(super) fn latest(&self) -> Instant {
        self.responded.unwrap_or(self.started)
    }

    /// Whether the route's timeout has passed; if not, the task is woken when it does.
    pub(super) fn timed_out(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline
            .as_mut()
            .is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready())
    }

    /// The response is complete: the connection may be used again.
    pub(super) fn complete(&mut self) {
        if self.ended {
            return;
        }
        if let (Some(lease), Some(cluster)) = (self.lease.take(), &self.cluster) {
            let body_taken = self.body.as_ref().is_none_or(|b| b.ended());
            release(lease, cluster, body_taken);
        }
        self.end();
    }

    /// The exchange broke off after the response head was sent.
    pub(super) fn fail(&mut self, flag: Flag) {
        self.flag = Some(flag);
        let outcome = match flag {
            Flag::Timeout => Outcome::Timeout,
            Flag::UpstreamProtocol => Outcome::ProtocolError,
            _ => Outcome::ConnectFailure,
        };
        self.judge(outcome);
        self.lease = None;
        self.end();
    }

    /// Counts for the endpoint's health how the try ended.
    pub(super) fn judge(&self, outcome: Outcome) {
        if let (Some(cluster), Some(endpoint)) = (&self.cluster, &self.endpoint) {
            cluster.record(endpoint, outcome);
        }
    }

    /// What the flag leaves open: why the scanner refused the request, or who closed the client's connection.
    fn details(&self) -> Option<&'static str> {
        let refusal = self.refusal().map(|r| r.reason.as_str());
        refusal.or_else(|| match (self.flag?, self.cut()) {
            (Flag::DownstreamClosed | Flag::StreamIdle, Some(cut)) => Some(cut.told().1),
            (Flag::DownstreamClosed, None) => Some("downstream_remote_disconnect"),
            _ => None,
        })
    }

    /// Counts and logs; once.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(body) = &self.body {
            body.abandon();
        }
        if self.responded.is_some() {
            self.downstream.answered();
        }
        let now = Instant::now();
        self.downstream.request_ends(now);
        let took = now - self.started;
        let worker = &self.worker;
        worker.stats().request(worker.index, self.status, self.flag);
        if let Some(cluster) = &self.cluster {
            cluster
                .shard(worker.index)
                .request(self.status, self.flag, took);
        }
        if let Some(head) = &self.head {
            let line = Line {
                head,
                started: self.started,
                took,
                upstream_took: self.responded.map(|at| at - self.started),
                status: self.status,
                flag: self.flag,
                details: self.details(),
                received: self.tunnelled + self.body.as_ref().map_or(0, |b| b.bytes()),
                sent: self.sent,
                endpoint: self.endpoint.as_ref().map(|e| e.key.address),
                cluster: self.cluster.as_ref().map(|c| &*c.name),
                rule: self.rule.as_ref().map(|r| &*r.name),
                peer: self.downstream.client(),
                local: self.downstream.bind.into(),
            };
            worker.log(|buffer, clock| access_log::write(buffer, clock, &line));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            // Closes the upstream connection: its response is of no use to anyone.
            self.lease = None;
            let flag = match (self.refusal(), self.cut()) {
                (Some(_), _) => Flag::DownstreamProtocol,
                (None, Some(cut)) => cut.told().0,
                (None, None) => Flag::DownstreamClosed,
            };
            self.flag.get_or_insert(flag);
            self.end();
        }
    }
}
