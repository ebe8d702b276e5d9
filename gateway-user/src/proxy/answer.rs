//! Answers on their way to the client: the endpoint's, edited, or the proxy's own.

use http::{Method, Response, Version};
use http_body::Body as _;

use super::body::{ResponseBody, UpstreamBody};
use super::exchange::Exchange;
use super::reply::Reply;
use crate::l7::filter::{answer as answer_origin, edit};
use crate::l7::header;

/// How a request ends without an endpoint.
#[derive(Debug)]
pub(super) enum Stop {
    /// By one of the fixed answers.
    Reply(Reply),
    /// By an answer that a filter made.
    Made(Box<Response<ResponseBody>>),
}

impl From<Reply> for Stop {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// The answer that the proxy gives by itself.
pub(super) fn local(
    stop: Stop,
    method: &Method,
    mut exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let mut response = match stop {
        Stop::Reply(reply) => {
            exchange.flag = reply.flag();
            if exchange.grpc {
                reply.grpc_response()
            } else {
                reply.response(method)
            }
        }
        Stop::Made(response) => *response,
    };
    if let Some(cors) = exchange.edits.as_mut().and_then(|edits| edits.cors.take()) {
        // The page may read why its request failed.
        answer_origin(response.headers_mut(), &cors);
    }
    exchange.status = response.status().as_u16();
    exchange.sent = response.body().size_hint().exact().unwrap_or(0);
    exchange.lease = None;
    exchange.complete();
    response
}

/// The endpoint's answer; its exchange ends with its body.
pub(super) fn finish(
    response: Response<UpstreamBody>,
    mut exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let (mut parts, body) = response.into_parts();
    header::prepare_response(parts.status, &mut parts.headers, header::via(parts.version));
    if let Some(edits) = exchange.edits.take() {
        for filters in edits.filters {
            edit(&mut parts.headers, &filters.response_headers);
        }
        if let Some(cors) = edits.cors {
            answer_origin(&mut parts.headers, &cors);
        }
    }
    parts.version = Version::HTTP_11;
    let body = if body.is_end_stream() {
        exchange.complete();
        ResponseBody::Local(None)
    } else {
        ResponseBody::Upstream(body, exchange)
    };
    Response::from_parts(parts, body)
}
