//! Sends a request, as often as its rule's retries allow, within its timeouts.

use std::future::Future;
use std::sync::Arc;

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, uri};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::body::{RequestBody, UpstreamBody, is_malformed};
use super::cluster::LiveEndpoint;
use super::exchange::Exchange;
use super::pool::{self, Lease, Leased, Refusal};
use super::prepare::{Again, Sending};
use super::reply::Reply;
use super::scan::response;
use super::stats::Event;
use super::upstream::Transport;
use super::worker::Worker;
use crate::l7::outlier::Outcome;
use crate::l7::retry;
use crate::snapshot::{Retry, Rule};

/// Pooled connections in a row that may turn out to be closed before a request gives up.
const MAX_STALE: u32 = 8;

/// How one try failed.
struct Failed {
    reply: Reply,
    /// Nothing came back, for no fault of the request: another try may do better.
    again: bool,
    /// The endpoint refused it unseen (HTTP/2 REFUSED_STREAM): another try is no repetition.
    unseen: bool,
}

impl Failed {
    fn last(reply: Reply) -> Self {
        Self {
            reply,
            again: false,
            unseen: false,
        }
    }

    fn once_more(reply: Reply) -> Self {
        Self {
            reply,
            again: true,
            unseen: false,
        }
    }
}

/// Runs the exchange under the rule's timeouts and retries.
///
/// # Errors
/// The answer that the client gets instead of an endpoint's.
pub(super) async fn with_timeouts(
    worker: &Worker,
    mut sending: Box<Sending>,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, Reply> {
    let rule = &sending.rule.rule;
    if (rule.request_timeout, rule.backend_timeout) == (None, None) && sending.again.is_none() {
        let tried = one(worker, &mut sending, exchange).await;
        return tried.map_err(|failed| failed.reply);
    }
    // In a box, so that a request that is tried once carries nothing of it along.
    let rule = Arc::clone(rule);
    let whole = rule.request_timeout.map(|limit| Instant::now() + limit);
    let tries = Tries {
        worker,
        rule: &rule,
        whole,
        number: 0,
    };
    Box::pin(tries.run(&mut sending, exchange)).await
}

/// The tries of one request.
struct Tries<'a> {
    worker: &'a Worker,
    rule: &'a Rule,
    /// When the time for all of them is over.
    whole: Option<Instant>,
    /// Tries beyond the first so far.
    number: u32,
}

impl Tries<'_> {
    async fn run(
        mut self,
        sending: &mut Sending,
        exchange: &mut Exchange,
    ) -> Result<Response<UpstreamBody>, Reply> {
        let cluster = Arc::clone(&sending.cluster);
        let mut outstanding = None;
        loop {
            let end = self.end_of_try();
            let result = within(end, one(self.worker, sending, exchange)).await;
            drop(outstanding.take());
            let result = result.unwrap_or_else(|| Err(self.timed_out(exchange)));
            if let Some(more) = self.more(&result, sending.again.as_ref()) {
                let Some(permit) = cluster.try_retry() else {
                    return self.settle(result, end, exchange);
                };
                outstanding = Some(permit);
                self.worker.count(Event::UpstreamRetries);
                // The answer that is not wanted goes before its place does.
                drop(result);
                exchange.lease = None;
                self.pause().await?;
                sending.request = Some(more);
                continue;
            }
            return self.settle(result, end, exchange);
        }
    }

    /// When the try that begins now has to be over.
    fn end_of_try(&self) -> Option<Instant> {
        let one = self
            .rule
            .backend_timeout
            .map(|limit| Instant::now() + limit);
        [one, self.whole].into_iter().flatten().min()
    }

    fn timed_out(&self, exchange: &mut Exchange) -> Failed {
        if exchange.lease.is_some() {
            exchange.judge(Outcome::Timeout);
        }
        let over = self.whole.is_some_and(|whole| Instant::now() >= whole);
        if over {
            Failed::last(Reply::Timeout)
        } else {
            Failed::once_more(Reply::Timeout)
        }
    }

    /// The request for another try, if there is to be one.
    fn more(
        &mut self,
        result: &Result<Response<UpstreamBody>, Failed>,
        again: Option<&Again>,
    ) -> Option<Request<RequestBody>> {
        let again = again?;
        let wanted = match (result, &self.rule.retry) {
            (Ok(response), Some(rule)) => {
                self.number < rule.attempts
                    && retry::retries_status(rule, response.status().as_u16())
            }
            (Err(failed), Some(rule)) => self.number < rule.attempts && failed.again,
            (Err(failed), None) => self.number == 0 && failed.unseen,
            (Ok(_), None) => false,
        };
        let request = if wanted { again.request() } else { None };
        self.number += u32::from(request.is_some());
        request
    }

    /// Waits before another try.
    async fn pause(&self) -> Result<(), Reply> {
        let Some(rule) = &self.rule.retry else {
            return Ok(());
        };
        let wait = backoff(rule, self.number, self.worker);
        let at = Instant::now() + wait;
        if self.whole.is_some_and(|whole| at >= whole) {
            sleep_until(self.whole.unwrap_or(at)).await;
            return Err(Reply::Timeout);
        }
        if !wait.is_zero() {
            sleep_until(at).await;
        }
        Ok(())
    }

    /// The outcome of the last try; the rest of its time is for the body.
    fn settle(
        &self,
        result: Result<Response<UpstreamBody>, Failed>,
        end: Option<Instant>,
        exchange: &mut Exchange,
    ) -> Result<Response<UpstreamBody>, Reply> {
        if result.is_ok() {
            exchange.deadline = end.map(|end| Box::pin(sleep_until(end)));
        }
        result.map_err(|failed| failed.reply)
    }
}

fn backoff(rule: &Retry, number: u32, worker: &Worker) -> std::time::Duration {
    retry::backoff(rule, number, worker.random())
}

async fn within<T>(end: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match end {
        None => Some(future.await),
        Some(end) => timeout_at(end, future).await.ok(),
    }
}

/// One try: gets a connection, sends, and waits for the response head.
async fn one(
    worker: &Worker,
    sending: &mut Sending,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, Failed> {
    for _ in 0..MAX_STALE {
        let lease = connection(worker, sending, &mut exchange.endpoint).await?;
        let lease = exchange.lease.insert(lease);
        exchange.endpoint = Some(Arc::clone(lease.connection.endpoint()));
        if sending.upgrade {
            let Leased::Http1(connection) = &mut lease.connection else {
                return Err(Failed::last(Reply::NoUpgrade));
            };
            exchange.handed = Some(connection.expect_upgrade());
        }
        let Some(mut request) = sending.request.take() else {
            return Err(Failed::last(Reply::UpstreamClosed));
        };
        fit(&mut request, &lease.connection, &sending.demand.transport);
        let mut error = match lease.connection.send(request).await {
            Ok(response) => return judge(response, sending.upgrade, exchange).await,
            Err(error) => error,
        };
        exchange.lease = None;
        exchange.handed = None;
        match error.take_message() {
            // Never sent: the pooled connection was closed before. It moves to another one, uncounted.
            Some(mut unsent) => {
                worker.count(Event::UpstreamStale);
                exchange.endpoint = None;
                unfit(&mut unsent);
                sending.request = Some(unsent);
            }
            None => return Err(failure(error.error(), exchange)),
        }
    }
    Err(Failed::once_more(Reply::UpstreamClosed))
}

/// Brings the request into the form of the connection that it is sent on.
pub(super) fn fit(request: &mut Request<RequestBody>, connection: &Leased, transport: &Transport) {
    if let Leased::Http1(_) = connection {
        // The codec would take a body of unknown length for none in methods that rarely have one (GET, HEAD).
        if request.body().size_hint().exact().is_none() {
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        return;
    }
    let headers = request.headers_mut();
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let host = headers.remove(HOST);
    let mut parts = uri::Parts::default();
    parts.scheme = Some(transport.scheme());
    parts.authority = host.and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
    parts.path_and_query = request.uri().path_and_query().cloned();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
}

/// Undoes [`fit`] for a request that was not sent.
fn unfit(request: &mut Request<RequestBody>) {
    request.headers_mut().remove(TRANSFER_ENCODING);
    if let Some(authority) = request.uri().authority().cloned() {
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
        *request.version_mut() = Version::HTTP_11;
    }
}

/// The endpoint's response, if it is one that may be passed on.
async fn judge(
    response: Response<Incoming>,
    upgrade: bool,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, Failed> {
    let (parts, body) = response.into_parts();
    if parts.status != StatusCode::SWITCHING_PROTOCOLS
        && exchange.handed.take().is_some()
        && let Some(Leased::Http1(connection)) = exchange.lease.as_ref().map(|l| &l.connection)
    {
        connection.no_upgrade();
    }
    // Over HTTP/2 any 2xx would tell the client that its WebSocket is open (RFC 8441, 5).
    let unswitched = exchange.websocket && parts.status.is_success();
    let broken = match response::check(&parts, upgrade) {
        Ok(()) if unswitched => Reply::UpstreamProtocol,
        Ok(()) => match UpstreamBody::begin(body).await {
            Ok(body) => {
                let status = parts.status.as_u16();
                exchange.responded(status);
                exchange.judge(Outcome::Status(status));
                let response = Response::from_parts(parts, body);
                return switched(response, exchange).await;
            }
            Err(error) if is_malformed(&error) => Reply::UpstreamProtocol,
            Err(_) => Reply::UpstreamClosed,
        },
        Err(_) => Reply::UpstreamProtocol,
    };
    exchange.lease = None;
    exchange.judge(match broken {
        Reply::UpstreamProtocol => Outcome::ProtocolError,
        _ => Outcome::ConnectFailure,
    });
    Err(Failed::once_more(broken))
}

/// Takes over what is left of the connection after a 101.
async fn switched(
    response: Response<UpstreamBody>,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, Failed> {
    if let Some(handed) = exchange.handed.take() {
        match handed.await {
            Ok(handed) => exchange.tunnel = Some(handed),
            Err(_) => {
                exchange.lease = None;
                return Err(Failed::last(Reply::UpstreamClosed));
            }
        }
    }
    Ok(response)
}

/// A connection; after a connect failure one more try, on another endpoint, unless the rule has retries of its own. `tried` is
/// the endpoint that failed before, if one did, and afterwards the one that cannot be connected to.
async fn connection(
    worker: &Worker,
    sending: &Sending,
    tried: &mut Option<Arc<LiveEndpoint>>,
) -> Result<Lease, Failed> {
    let (cluster, demand) = (&sending.cluster, &sending.demand);
    let except = tried.take();
    // Nearly every request finds a connection that is open; only what waits is in a box.
    let acquired = match pool::at_once(worker, cluster, demand, except.as_deref()) {
        Ok(acquired) => acquired,
        Err(endpoint) => {
            let acquired = pool::acquire(worker, cluster, demand, except.as_deref(), endpoint);
            Box::pin(acquired).await
        }
    };
    match acquired {
        Ok(lease) => Ok(lease),
        Err(Refusal::ConnectFailure(failed)) => {
            *tried = Some(failed);
            Box::pin(another(worker, sending, tried)).await
        }
        Err(other) => Err(Failed::last(refused(&other))),
    }
}

/// The further try after a connect failure.
async fn another(
    worker: &Worker,
    sending: &Sending,
    tried: &mut Option<Arc<LiveEndpoint>>,
) -> Result<Lease, Failed> {
    if sending.rule.rule.retry.is_some() {
        return Err(Failed::once_more(Reply::ConnectFailure));
    }
    let cluster = &sending.cluster;
    let Some(_outstanding) = cluster.try_retry() else {
        return Err(Failed::last(Reply::ConnectFailure));
    };
    worker.count(Event::UpstreamRetries);
    match pool::lease(worker, cluster, &sending.demand, tried.as_deref()).await {
        Ok(lease) => Ok(lease),
        // The first failure is what the client is told.
        Err(Refusal::NoEndpoint) => Err(Failed::last(Reply::ConnectFailure)),
        Err(Refusal::ConnectFailure(endpoint)) => {
            *tried = Some(endpoint);
            Err(Failed::last(Reply::ConnectFailure))
        }
        Err(other) => {
            *tried = None;
            Err(Failed::last(refused(&other)))
        }
    }
}

fn refused(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::NoEndpoint => Reply::NoHealthyUpstream,
        Refusal::Overflow => Reply::Overflow,
        Refusal::ConnectFailure(_) => Reply::ConnectFailure,
    }
}

/// The request was sent and no response came.
fn failure(error: &hyper::Error, exchange: &mut Exchange) -> Failed {
    if error.is_user() || exchange.body_broke() {
        // No fault of the endpoint.
        return Failed::last(Reply::BodyAborted);
    }
    if error.is_parse() {
        exchange.judge(Outcome::ProtocolError);
        return Failed::once_more(Reply::UpstreamProtocol);
    }
    exchange.judge(Outcome::ConnectFailure);
    Failed {
        unseen: is_unseen(error),
        ..Failed::once_more(Reply::UpstreamClosed)
    }
}

/// Whether an HTTP/2 endpoint says that it has not looked at the request (RFC 9113, 8.7): by REFUSED_STREAM, or by a GOAWAY
/// whose last stream comes before it. The codec fails streams with the endpoint's GOAWAY for no other reason.
fn is_unseen(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let Some(error) = source.and_then(|source| source.downcast_ref::<h2::Error>()) else {
        return false;
    };
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}
