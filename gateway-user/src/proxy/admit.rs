//! Admission: the checks that need the whole head, and the form in which everybody after this sees a request.

use std::borrow::Cow;

use http::header::HOST;
use http::{HeaderValue, Request, Uri};
use hyper::body::Incoming;

use super::downstream::Downstream;
use super::exchange::Exchange;
use super::http2;
use super::reply::Reply;
use crate::l7::{grpc, path};

/// Checks a request and brings it into the common form: a target in origin form with a normal path, and one `Host`.
///
/// # Errors
/// The answer to a request that is refused.
pub(super) fn admit(
    downstream: &Downstream,
    request: &mut Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<(), Reply> {
    if exchange.notes().is_some() {
        let kind = http2::admit(request).map_err(|refusal| {
            exchange.refuse(refusal);
            Reply::Refused(refusal)
        })?;
        exchange.websocket = kind.websocket;
    } else if let Some(refusal) = downstream.refusal_for(request) {
        return Err(Reply::Refused(refusal));
    }
    exchange.grpc = grpc::is_grpc(request.headers());
    origin_form(request)
}

/// The authority of an absolute target replaces `Host` (RFC 9112, 3.2.2), and the path gets its normal form. What is
/// matched from here on is what is forwarded.
fn origin_form(request: &mut Request<Incoming>) -> Result<(), Reply> {
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Reply::BadRequest)?;
        let path = request.uri().path_and_query().cloned();
        request.headers_mut().insert(HOST, host);
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    if let Cow::Owned(path) = path::normalise(request.uri().path())
        && request.uri() != "*"
    {
        set_path(request, path)?;
    }
    Ok(())
}

/// Gives a request another path; its query stays.
///
/// # Errors
/// If there is no such path.
pub(super) fn set_path<B>(request: &mut Request<B>, mut path: String) -> Result<(), Reply> {
    if let Some(query) = request.uri().query() {
        path.push('?');
        path.push_str(query);
    }
    *request.uri_mut() = path.parse().map_err(|_| Reply::BadRequest)?;
    Ok(())
}
