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
use std::time::{Duration, Instant};

use http::header::{HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::access_log::{self, Line};
use super::body::Progress;
use super::cluster::{LiveCluster, LiveEndpoint};
use super::downstream::Downstream;
use super::permit;
use super::pool::Lease;
use super::runtime::LiveRule;
use super::stats::Flag;
use super::worker::Worker;
use crate::l7::header::X_FORWARDED_FOR;
use crate::l7::outlier::Outcome;

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
    head: Option<Head>,
    started: Instant,
    upstream_took: Option<Duration>,
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
    /// The route's timeout for the whole exchange.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Exchange {
    /// A request has arrived.
    #[must_use]
    pub(super) fn begin(
        worker: &Rc<Worker>,
        downstream: &Rc<Downstream>,
        request: &Request<Incoming>,
    ) -> Box<Self> {
        let started = Instant::now();
        downstream.request_begins();
        let headers = request.headers();
        let head = worker.logs().then(|| Head {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            authority: headers.get(HOST).cloned(),
            user_agent: headers.get(USER_AGENT).cloned(),
            forwarded_for: headers.get(X_FORWARDED_FOR).cloned(),
            request_id: headers.get(X_REQUEST_ID).cloned(),
        });
        Box::new(Self {
            worker: Rc::clone(worker),
            downstream: Rc::clone(downstream),
            head,
            started,
            upstream_took: None,
            rule: None,
            cluster: None,
            endpoint: None,
            lease: None,
            body: None,
            status: 0,
            flag: None,
            sent: 0,
            deadline: None,
            ended: false,
        })
    }

    /// The endpoint's response head is there.
    pub(super) fn responded(&mut self, status: u16) {
        self.status = status;
        self.upstream_took = Some(self.started.elapsed());
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
        let refusal = self.downstream.refusal().map(|r| r.reason.as_str());
        refusal.or_else(|| match (self.flag?, self.downstream.cut()) {
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
        self.downstream.request_ends();
        let took = self.started.elapsed();
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
                took,
                upstream_took: self.upstream_took,
                status: self.status,
                flag: self.flag,
                details: self.details(),
                received: self.body.as_ref().map_or(0, |b| b.bytes()),
                sent: self.sent,
                endpoint: self.endpoint.as_ref().map(|e| &*e.label),
                cluster: self.cluster.as_ref().map(|c| &*c.name),
                rule: self.rule.as_ref().map(|r| &*r.name),
                peer: self.downstream.peer,
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
            let flag = match (self.downstream.refusal(), self.downstream.cut()) {
                (Some(_), _) => Flag::DownstreamProtocol,
                (None, Some(cut)) => cut.told().0,
                (None, None) => Flag::DownstreamClosed,
            };
            self.flag.get_or_insert(flag);
            self.end();
        }
    }
}

/// Gives back what a request held.
fn release(lease: Lease, cluster: &Arc<LiveCluster>, body_taken: bool) {
    let Lease {
        mut connection,
        request,
    } = lease;
    connection.end();
    drop(request);
    let max = cluster.view().policy.pool.max_requests_per_connection;
    if max.is_some_and(|max| connection.served >= max) {
        return;
    }
    if connection.is_ready() {
        permit::hand_over(cluster, connection);
    } else if body_taken {
        // The response is complete, but the codec has not come round yet.
        let cluster = Arc::clone(cluster);
        tokio::task::spawn_local(async move {
            if connection.ready().await {
                permit::hand_over(&cluster, connection);
            }
        });
    }
}
