//! Makes a request fit to be sent on: hop-by-hop fields end here, filters do their edits, copies go to mirrors.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;

use super::admit::set_path;
use super::body::{Progress, Replay, RequestBody};
use super::cluster::LiveCluster;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::matching::Chosen;
use super::mirror::{self, Tap};
use super::pool::Demand;
use super::reply::Reply;
use super::runtime::{LiveMirror, LiveRule};
use super::upstream::{Origin, Way};
use super::worker::Worker;
use crate::l7::filter::{edit as edit_headers, rewritten_path};
use crate::l7::header::{self, Hop, X_FORWARDED_HOST};
use crate::snapshot::{BindKey, Filters, Rewrite, Scheme};

/// A request that is ready to be sent, as often as it takes.
#[derive(Debug)]
pub(super) struct Sending {
    /// The rule that it belongs to.
    pub(super) rule: Arc<LiveRule>,
    /// Where it goes.
    pub(super) cluster: Arc<LiveCluster>,
    /// The request, for the next try; `None` while it is under way.
    pub(super) request: Option<Request<RequestBody>>,
    /// What is needed for another try; `None`: it can only be sent once.
    pub(super) again: Option<Again>,
    /// What it needs of its connection.
    pub(super) demand: Demand,
    /// It asks for an upgrade that may be granted.
    pub(super) upgrade: bool,
}

/// A request as it is sent once more.
#[derive(Debug)]
pub(super) struct Again {
    head: request::Parts,
    body: Option<Arc<Replay>>,
}

impl Again {
    /// The request once more; `None` if too much of its body is gone.
    pub(super) fn request(&self) -> Option<Request<RequestBody>> {
        let body = match &self.body {
            None => RequestBody::Empty,
            Some(replay) => replay.again()?,
        };
        Some(Request::from_parts(self.head.clone(), body))
    }
}

/// Edits the head: hop-by-hop fields, claims, then the filters of the rule, then those of the backend.
///
/// # Errors
/// What a request is answered with that cannot be made fit.
pub(super) fn edit(
    rule: &LiveRule,
    backend: usize,
    downstream: &Downstream,
    request: &mut Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<(), Reply> {
    let asks = exchange.websocket || asks_for_websocket(request);
    let trusted_hops = downstream.believed().trusted_hops;
    let hop = Hop {
        peer: downstream.client().ip(),
        proto: downstream.scheme().as_str(),
        trusted_hops,
        via: header::via(request.version()),
        upgrade: asks,
    };
    exchange.upgrade = asks;
    header::prepare_request(request.headers_mut(), &hop).map_err(|_| Reply::BadRequest)?;
    if exchange.websocket {
        // By HTTP/2 there is no key; by HTTP/1.1 the endpoint needs one to prove that it has understood.
        let key = websocket_key(exchange.random());
        request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
    }
    *request.version_mut() = Version::HTTP_11;
    if !request.headers().contains_key(HOST) {
        // HTTP/1.0: what goes on is HTTP/1.1 and has to name a host, so the address that the client asked (RFC 9112, 3.3).
        let host = HeaderValue::from_maybe_shared(Bytes::from(authority_of(
            downstream.bind,
            downstream.scheme(),
        )));
        let host = host.map_err(|_| Reply::BadRequest)?;
        request.headers_mut().insert(HOST, host);
    }
    let own = rule
        .rule
        .backends
        .get(backend)
        .and_then(|b| b.filters.as_ref());
    for filters in [rule.rule.filters.as_ref(), own].into_iter().flatten() {
        apply(filters, request)?;
        exchange.answer_through(filters);
    }
    Ok(())
}

/// Whether an HTTP/1.1 request asks for a WebSocket (RFC 6455, 4.1). Nothing else is upgraded.
fn asks_for_websocket(request: &Request<Incoming>) -> bool {
    let Some(upgrade) = request.headers().get(UPGRADE) else {
        return false;
    };
    upgrade.as_bytes().eq_ignore_ascii_case(b"websocket")
        && request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && names_upgrade(request.headers())
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// `Sec-WebSocket-Key` of a request that came by HTTP/2, which has none: sixteen bytes in base64.
fn websocket_key(random: [u64; 2]) -> HeaderValue {
    use base64::Engine as _;
    let bytes: [u8; 16] = std::array::from_fn(|at| random[at / 8].to_le_bytes()[at % 8]);
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("base64 is a valid field value")
}

/// An address as the authority of a URL.
fn authority_of(bind: BindKey, scheme: Scheme) -> String {
    match bind.address {
        IpAddr::V4(address) if bind.port == scheme.port() => address.to_string(),
        IpAddr::V6(address) if bind.port == scheme.port() => format!("[{address}]"),
        _ => SocketAddr::from(bind).to_string(),
    }
}

fn apply(filters: &Filters, request: &mut Request<Incoming>) -> Result<(), Reply> {
    edit_headers(request.headers_mut(), &filters.request_headers);
    if let Some(Rewrite { hostname, path }) = &filters.rewrite {
        if let Some(hostname) = hostname {
            let headers = request.headers_mut();
            let value = HeaderValue::from_maybe_shared(Bytes::copy_from_slice(hostname.as_bytes()));
            let before = headers.insert(HOST, value.map_err(|_| Reply::BadRequest)?);
            if let Some(before) = before.filter(|_| !headers.contains_key(X_FORWARDED_HOST)) {
                headers.insert(X_FORWARDED_HOST, before);
            }
        }
        if let Some(path) = path {
            let path = rewritten_path(path, request.uri().path());
            set_path(request, path)?;
        }
    }
    Ok(())
}

/// Decides how the request is sent, and gives mirrors their copies.
pub(super) fn body(
    worker: &Rc<Worker>,
    downstream: &Downstream,
    rule: Arc<LiveRule>,
    chosen: Chosen,
    request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Box<Sending> {
    let origin = Origin {
        source: downstream.client(),
        destination: downstream.bind.into(),
    };
    let backend = rule.rule.backends.get(chosen.backend);
    let http2 = backend.is_some_and(|backend| backend.http2);
    let transport = Arc::clone(&chosen.cluster.view().transport);
    let demand = Demand {
        way: transport.way(http2, exchange.upgrade),
        origin: transport.origin(origin),
        transport,
    };
    let mirrors: Vec<&LiveMirror> = rule
        .mirrors(chosen.backend)
        .filter(|mirror| mirror.takes(worker.random()))
        .collect();
    let may_repeat = (rule.rule.retry.is_some() || demand.way != Way::Http1) && !exchange.upgrade;
    let (head, incoming) = request.into_parts();
    let length = incoming.size_hint().exact();
    let has_body = !incoming.is_end_stream();
    let mut taps = Vec::new();
    for mirror in &mirrors {
        let tap = has_body.then(|| {
            let (give, take) = Tap::pair(length);
            taps.push(give);
            take
        });
        mirror::spawn(worker, &mirror.cluster, mirror.demand(origin), &head, tap);
    }
    let (body, replay) = match has_body {
        false => (RequestBody::Empty, None),
        true => client_body(incoming, may_repeat, taps, downstream, exchange),
    };
    let again = may_repeat.then(|| Again {
        head: head.clone(),
        body: replay,
    });
    // In a box: it is large, and what holds it is moved.
    Box::new(Sending {
        rule,
        cluster: chosen.cluster,
        request: Some(Request::from_parts(head, body)),
        again,
        demand,
        upgrade: exchange.upgrade,
    })
}

fn client_body(
    incoming: Incoming,
    may_repeat: bool,
    taps: Vec<Tap>,
    downstream: &Downstream,
    exchange: &mut Exchange,
) -> (RequestBody, Option<Arc<Replay>>) {
    let progress = Arc::<Progress>::default();
    match exchange.notes() {
        Some(notes) => notes.watch_body(&progress),
        None => downstream.watch_body(&progress),
    }
    exchange.body = Some(Arc::clone(&progress));
    if !may_repeat && taps.is_empty() {
        return (RequestBody::Client(incoming, progress), None);
    }
    let replay = Replay::new(incoming, progress, taps);
    let first = replay.again().unwrap_or(RequestBody::Empty);
    (first, Some(replay))
}

/// What the answer to a request goes through on its way back, in the order in which it does.
#[derive(Debug, Default)]
pub(super) struct AnswerEdits {
    /// Filters with edits.
    pub(super) filters: Vec<Arc<Filters>>,
    /// CORS fields for an admitted origin.
    pub(super) cors: Option<HeaderMap>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_authorities() {
        let table = [
            ("192.0.2.1:80", Scheme::Http, "192.0.2.1"),
            ("192.0.2.1:443", Scheme::Https, "192.0.2.1"),
            ("192.0.2.1:443", Scheme::Http, "192.0.2.1:443"),
            ("192.0.2.1:8080", Scheme::Http, "192.0.2.1:8080"),
            ("[2001:db8::1]:80", Scheme::Http, "[2001:db8::1]"),
            ("[2001:db8::1]:8080", Scheme::Https, "[2001:db8::1]:8080"),
        ];
        for (bind, scheme, want) in table {
            let bind: SocketAddr = bind.parse().unwrap();
            assert_eq!(authority_of(bind.into(), scheme), want);
        }
    }

    #[test]
    fn a_websocket_key_is_sixteen_bytes() {
        assert_eq!(websocket_key([0, 0]), "AAAAAAAAAAAAAAAAAAAAAA==");
        assert_eq!(websocket_key([u64::MAX, 1]), "//////////8BAAAAAAAAAA==");
    }
}
