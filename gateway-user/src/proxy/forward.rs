//! A request's way: admit → match → split → limits → balance → connection → send → record.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use super::body::{Progress, RequestBody, ResponseBody, UpstreamBody, is_malformed};
use super::cluster::{LiveCluster, LiveEndpoint};
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::pool::{self, Refusal};
use super::reply::Reply;
use super::runtime::{Live, LiveRule};
use super::scan::{response, routing_authority};
use super::stats::Event;
use super::worker::Worker;
use crate::l7::header::Hop;
use crate::l7::outlier::Outcome;
use crate::l7::router::RequestView;
use crate::l7::{header, path};
use crate::snapshot::BindKey;

/// Pooled connections in a row that may turn out to be closed before a request gives up.
const MAX_STALE: u32 = 8;

/// What this hop is called in `Via`.
const VIA: &str = "1.1 forebay";

/// Answers one request.
pub(super) async fn handle(
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut exchange = Exchange::begin(&worker, &downstream, &request);
    let method = request.method().clone();
    if let Some(refusal) = downstream.refusal_for(&request) {
        return Ok(local(Reply::Refused(refusal), &Method::GET, exchange));
    }
    let answer = match admit(&worker, &downstream, request, &mut exchange) {
        Ok((request, cluster)) => with_timeouts(&worker, &cluster, request, &mut exchange).await,
        Err(reply) => Err(reply),
    };
    // A body whose framing broke is answered with the status of what was wrong with it.
    let answer = answer.map_err(|reply| match (reply, downstream.refusal()) {
        (Reply::BadRequest | Reply::BodyAborted, Some(refusal)) => Reply::Refused(refusal),
        _ => reply,
    });
    let mut response = match answer {
        Ok(response) => finish(response, exchange),
        Err(reply) => local(reply, &method, exchange),
    };
    if worker.is_draining() || downstream.should_close(Instant::now()) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Ok(response)
}

/// The answer that the proxy gives by itself.
fn local(reply: Reply, method: &Method, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    let response = reply.response(method);
    exchange.status = response.status().as_u16();
    exchange.flag = reply.flag();
    exchange.sent = response.body().size_hint().exact().unwrap_or(0);
    exchange.lease = None;
    exchange.complete();
    response
}

/// The endpoint's answer; its exchange ends with its body.
fn finish(response: Response<UpstreamBody>, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    let (mut parts, body) = response.into_parts();
    header::prepare_response(parts.status, &mut parts.headers, VIA);
    parts.version = Version::HTTP_11;
    let body = if body.is_end_stream() {
        exchange.complete();
        ResponseBody::Local(None)
    } else {
        ResponseBody::Upstream(body, exchange)
    };
    Response::from_parts(parts, body)
}

/// Checks the request, makes it fit to be sent on, and finds its cluster.
fn admit(
    worker: &Worker,
    downstream: &Downstream,
    mut request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<(Request<RequestBody>, Arc<LiveCluster>), Reply> {
    let live = worker.live();
    let bind = live.binds.get(&downstream.bind).ok_or(Reply::NoListener)?;
    rewrite_target(&mut request)?;
    if bind.builtin_ready {
        return Err(worker.readiness(request.uri().path()));
    }
    let rule = route(&live, downstream, &request)?;
    let cluster = rule.next();
    exchange.rule = Some(rule);
    let cluster = cluster.ok_or(Reply::NoBackend)?;
    exchange.cluster = Some(Arc::clone(&cluster));
    let peer = downstream.peer.ip();
    let hop = Hop {
        peer,
        proto: "http",
        trusted_hops: 0,
        via: VIA,
        upgrade: false,
    };
    header::prepare_request(request.headers_mut(), &hop).map_err(|_| Reply::BadRequest)?;
    *request.version_mut() = Version::HTTP_11;
    if !request.headers().contains_key(HOST) {
        // HTTP/1.0: what goes on is HTTP/1.1 and has to name a host, so the address that the client asked (RFC 9112, 3.3).
        let host = HeaderValue::from_maybe_shared(Bytes::from(authority_of(downstream.bind)));
        request
            .headers_mut()
            .insert(HOST, host.map_err(|_| Reply::BadRequest)?);
    }
    let request = request.map(|body| {
        if body.is_end_stream() {
            return RequestBody::Empty;
        }
        let progress = Arc::<Progress>::default();
        downstream.watch_body(&progress);
        exchange.body = Some(Arc::clone(&progress));
        RequestBody::Client(body, progress)
    });
    Ok((frame(request), cluster))
}

/// Says how the body is framed where the codec would take a body of unknown length for none: in methods that rarely
/// have one (GET, HEAD).
fn frame(mut request: Request<RequestBody>) -> Request<RequestBody> {
    if request.body().size_hint().exact().is_none() {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
    request
}

/// An address as the authority of an `http` URL.
fn authority_of(bind: BindKey) -> String {
    match (bind.address, bind.port) {
        (IpAddr::V4(address), 80) => address.to_string(),
        (IpAddr::V6(address), 80) => format!("[{address}]"),
        _ => SocketAddr::from(bind).to_string(),
    }
}

/// Brings the target into origin form with a normal path; the authority of an absolute one replaces `Host` (RFC
/// 9112, 3.2.2). What is matched from here on is what is forwarded.
fn rewrite_target(request: &mut Request<Incoming>) -> Result<(), Reply> {
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Reply::BadRequest)?;
        let path = request.uri().path_and_query().cloned();
        request.headers_mut().insert(HOST, host);
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    if let Cow::Owned(mut path) = path::normalise(request.uri().path()) {
        if request.uri() == "*" {
            return Ok(());
        }
        if let Some(query) = request.uri().query() {
            path.push('?');
            path.push_str(query);
        }
        *request.uri_mut() = path.parse().map_err(|_| Reply::BadRequest)?;
    }
    Ok(())
}

/// The rule that the request belongs to.
fn route(
    live: &Live,
    downstream: &Downstream,
    request: &Request<Incoming>,
) -> Result<Arc<LiveRule>, Reply> {
    let authority = routing_authority(request.uri(), request.headers());
    // Only HTTP/1.0 may name no host; it then belongs to listeners and routes that take any.
    let host = lower(authority.map_or("", |a| a.host));
    let view = RequestView {
        host: &host,
        path: request.uri().path(),
        query: request.uri().query(),
        method: request.method().as_str(),
        headers: request.headers(),
    };
    let bind = live.binds.get(&downstream.bind).ok_or(Reply::NoListener)?;
    let listener = bind.listener(&host).ok_or(Reply::NoRoute)?;
    let rule = listener.router.pick(&view).ok_or(Reply::NoRoute)?;
    live.rules.get(rule as usize).cloned().ok_or(Reply::NoRoute)
}

fn lower(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Runs the exchange under the route's timeouts.
async fn with_timeouts(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    request: Request<RequestBody>,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, Reply> {
    let (whole, one) = exchange.rule.as_ref().map_or((None, None), |r| {
        (r.rule.request_timeout, r.rule.backend_timeout)
    });
    let Some(limit) = [whole, one].into_iter().flatten().min() else {
        return run(worker, cluster, request, exchange).await;
    };
    exchange.deadline = whole.map(|limit| Box::pin(tokio::time::sleep(limit)));
    match tokio::time::timeout(limit, run(worker, cluster, request, exchange)).await {
        Ok(answer) => answer,
        Err(_elapsed) => {
            if exchange.lease.is_some() {
                exchange.judge(Outcome::Timeout);
            }
            Err(Reply::Timeout)
        }
    }
}

/// Gets a connection, sends, and waits for the response head.
async fn run(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    mut request: Request<RequestBody>,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, Reply> {
    for _ in 0..MAX_STALE {
        let lease = exchange.lease.insert(connection(worker, cluster).await?);
        exchange.endpoint = Some(Arc::clone(&lease.connection.endpoint));
        let sent = lease.connection.send(request);
        let mut error = match sent.await {
            Ok(response) => return judge(response, exchange).await,
            Err(error) => error,
        };
        exchange.lease = None;
        match error.take_message() {
            // Never sent: the pooled connection was closed before. It moves to another one, uncounted.
            Some(unsent) => {
                worker.count(Event::UpstreamStale);
                request = unsent;
            }
            None => return Err(failure(error.error(), exchange)),
        }
    }
    Err(Reply::UpstreamClosed)
}

/// The endpoint's response, if it is one that may be passed on.
async fn judge(
    response: Response<Incoming>,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, Reply> {
    let (parts, body) = response.into_parts();
    let broken = match response::check(&parts, false) {
        Ok(()) => match UpstreamBody::begin(body).await {
            Ok(body) => {
                let status = parts.status.as_u16();
                exchange.responded(status);
                exchange.judge(Outcome::Status(status));
                return Ok(Response::from_parts(parts, body));
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
    Err(broken)
}

/// A connection; after a connect failure one more try, on another endpoint.
async fn connection(worker: &Worker, cluster: &Arc<LiveCluster>) -> Result<pool::Lease, Reply> {
    let failed: Arc<LiveEndpoint> = match pool::acquire(worker, cluster, None).await {
        Ok(lease) => return Ok(lease),
        Err(Refusal::ConnectFailure(endpoint)) => endpoint,
        Err(other) => return Err(refused(&other)),
    };
    let Some(_outstanding) = cluster.try_retry() else {
        return Err(Reply::ConnectFailure);
    };
    worker.count(Event::UpstreamRetries);
    match pool::acquire(worker, cluster, Some(&failed)).await {
        Ok(lease) => Ok(lease),
        // The first failure is what the client is told.
        Err(Refusal::NoEndpoint) => Err(Reply::ConnectFailure),
        Err(other) => Err(refused(&other)),
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
fn failure(error: &hyper::Error, exchange: &mut Exchange) -> Reply {
    if error.is_user() {
        // No fault of the endpoint.
        return Reply::BodyAborted;
    }
    if error.is_parse() {
        exchange.judge(Outcome::ProtocolError);
        Reply::UpstreamProtocol
    } else {
        exchange.judge(Outcome::ConnectFailure);
        Reply::UpstreamClosed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_authorities() {
        let table = [
            ("192.0.2.1:80", "192.0.2.1"),
            ("192.0.2.1:8080", "192.0.2.1:8080"),
            ("[2001:db8::1]:80", "[2001:db8::1]"),
            ("[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ];
        for (bind, want) in table {
            let bind: SocketAddr = bind.parse().unwrap();
            assert_eq!(authority_of(bind.into()), want);
        }
    }

    #[test]
    fn hosts_compare_in_lower_case() {
        assert_eq!(lower("A.com"), "a.com");
        assert!(matches!(lower("a.com"), Cow::Borrowed("a.com")));
    }
}
