//! Which rule a request belongs to, what its filters answer at once, and which backend has its turn.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::LOCATION;
use http::{HeaderMap, Request, Response, StatusCode};

use super::answer::Stop;
use super::body::ResponseBody;
use super::cluster::LiveCluster;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::reply::{self, Reply};
use super::runtime::{Live, LiveRule};
use super::scan::routing_authority;
use super::worker::Worker;
use crate::l7::filter::{CorsVerdict, RedirectView, cors, location};
use crate::l7::router::RequestView;
use crate::snapshot::{Bind, Cors, Filters, Listener, Redirect};

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Chosen {
    /// Position among the rule's backends.
    pub(super) backend: usize,
    /// Its cluster.
    pub(super) cluster: Arc<LiveCluster>,
}

/// The rule that a request belongs to.
///
/// # Errors
/// What a request without one is answered with.
pub(super) fn find<B>(
    worker: &Worker,
    downstream: &Downstream,
    request: &Request<B>,
) -> Result<Arc<LiveRule>, Stop> {
    let live = worker.live();
    let bind = live.binds.get(&downstream.bind).ok_or(Reply::NoListener)?;
    if bind.builtin_ready {
        return Err(worker.readiness(request.uri().path()).into());
    }
    Ok(rule(&live, bind, downstream, request)?)
}

fn rule<B>(
    live: &Live,
    bind: &Bind,
    downstream: &Downstream,
    request: &Request<B>,
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
    let listener = bind.listener(&host).ok_or(Reply::NoRoute)?;
    if let Some(name) = downstream.server_name()
        && !is_for(bind, listener, name, &host)
    {
        return Err(Reply::Misdirected);
    }
    let rule = listener.router.pick(&view).ok_or(Reply::NoRoute)?;
    live.rules.get(rule as usize).cloned().ok_or(Reply::NoRoute)
}

/// Whether the listener that the host belongs to is the one that the handshake was for (GEP-3567): a browser may use a
/// connection for every name of its certificate, but another listener may ask more of its clients.
fn is_for(bind: &Bind, listener: &Arc<Listener>, name: Option<&str>, host: &str) -> bool {
    let shaken = match name {
        Some(name) if name == host => return true,
        Some(name) => bind.listener(name),
        None => bind.listeners.iter().find(|l| l.hostname.is_none()),
    };
    shaken.is_some_and(|shaken| Arc::ptr_eq(shaken, listener))
}

pub(super) fn lower(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// What the rule's filters answer by themselves: preflight requests and redirects.
///
/// # Errors
/// The answer, if there is one.
pub(super) fn answer_by_filter<B>(
    filters: &Filters,
    downstream: &Downstream,
    request: &Request<B>,
    exchange: &mut Exchange,
) -> Result<(), Stop> {
    if let Some(filter) = &filters.cors {
        judge_origin(filter, request, exchange)?;
    }
    match &filters.redirect {
        Some(redirect) => Err(redirected(redirect, downstream, request)),
        None => Ok(()),
    }
}

fn judge_origin<B>(
    filter: &Cors,
    request: &Request<B>,
    exchange: &mut Exchange,
) -> Result<(), Stop> {
    match cors(filter, request.method(), request.headers()) {
        CorsVerdict::NotCors => Ok(()),
        CorsVerdict::Actual(fields) => {
            exchange.edits().cors = Some(fields);
            Ok(())
        }
        CorsVerdict::Preflight(fields) => Err(made(StatusCode::NO_CONTENT, fields)),
    }
}

fn redirected<B>(redirect: &Redirect, downstream: &Downstream, request: &Request<B>) -> Stop {
    let authority = routing_authority(request.uri(), request.headers());
    let view = RedirectView {
        scheme: downstream.scheme(),
        host: authority.map_or("", |a| a.host),
        listener_port: downstream.bind.port,
        path: request.uri().path(),
        query: request.uri().query(),
    };
    let status = StatusCode::from_u16(redirect.status).ok();
    match (location(redirect, &view), status) {
        (Some(location), Some(status)) => {
            let mut fields = HeaderMap::with_capacity(2);
            fields.insert(LOCATION, location);
            made(status, fields)
        }
        _ => Reply::NoBackend.into(),
    }
}

fn made(status: StatusCode, fields: HeaderMap) -> Stop {
    let mut response = Response::new(ResponseBody::Local(None));
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    reply::sign(response.headers_mut());
    Stop::Made(Box::new(response))
}

/// The backend that has its turn.
///
/// # Errors
/// There is none, or an invalid one has it.
pub(super) fn pick(rule: &LiveRule, exchange: &mut Exchange) -> Result<Chosen, Reply> {
    let backend = rule.next().ok_or(Reply::NoBackend)?;
    let cluster = rule.target(backend).ok_or(Reply::NoBackend)?;
    exchange.cluster = Some(Arc::clone(cluster));
    Ok(Chosen {
        backend,
        cluster: Arc::clone(cluster),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_compare_in_lower_case() {
        assert_eq!(lower("A.com"), "a.com");
        assert!(matches!(lower("a.com"), Cow::Borrowed("a.com")));
    }
}
