//! A request's way: admit → match → filters → pick → limits → send → answer, one module for each.
//!
//! HTTP/1 and HTTP/2 differ before ([`super::http1`], [`super::http2`]) and in how a request is admitted and an answer
//! framed; from there on all requests are alike.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Instant;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;

use super::admit::admit;
use super::answer::{self, Stop};
use super::body::ResponseBody;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::http2::StreamNotes;
use super::reply::Reply;
use super::worker::Worker;
use super::{matching, prepare, send, tunnel};

/// Answers one request; `notes` are those of its stream, if it came by HTTP/2.
pub(super) async fn handle(
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    notes: Option<Rc<StreamNotes>>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let http2 = notes.is_some();
    // HTTP/1.0 knows no upgrades, so nothing is held behind them.
    let held = request.version() == Version::HTTP_11 && request.headers().contains_key(UPGRADE);
    let mut exchange = Exchange::begin(&worker, &downstream, notes, &mut request);
    let method = request.method().clone();
    let answered = match admit(&downstream, &mut request, &mut exchange) {
        Ok(()) => forward(&worker, &downstream, request, &mut exchange).await,
        Err(reply) => Err(reply.into()),
    };
    // A body whose framing broke is answered with the status of what was wrong with it.
    let answered = answered.map_err(|stop| match (stop, downstream.refusal()) {
        (Stop::Reply(Reply::BadRequest | Reply::BodyAborted), Some(refusal)) => {
            Stop::Reply(Reply::Refused(refusal))
        }
        (stop, _) => stop,
    });
    let mut switched = false;
    let mut response = match answered {
        Ok(response) if exchange.tunnel.is_some() => {
            switched = true;
            tunnel::switch(response, exchange)
        }
        Ok(response) => answer::finish(response, exchange),
        Err(stop) => {
            let method = if matches!(stop, Stop::Reply(Reply::Refused(_))) {
                Method::GET
            } else {
                method
            };
            answer::local(stop, &method, exchange)
        }
    };
    if held && !switched {
        downstream.no_upgrade();
    }
    if !switched && (worker.is_draining() || downstream.should_close(Instant::now())) {
        if http2 {
            downstream.answers_last();
        } else {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
    }
    Ok(response)
}

async fn forward(
    worker: &Rc<Worker>,
    downstream: &Rc<Downstream>,
    mut request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Response<super::body::UpstreamBody>, Stop> {
    let rule = matching::find(worker, downstream, &request)?;
    exchange.matched(&rule);
    if let Some(filters) = &rule.rule.filters {
        matching::answer_by_filter(filters, downstream, &request, exchange)?;
    }
    let way = matching::pick(&rule, exchange)?;
    prepare::edit(&rule, way.backend, downstream, &mut request, exchange)?;
    let sending = prepare::body(worker, downstream, &rule, &way, request, exchange);
    send::with_timeouts(worker, &rule.rule, &way, sending, exchange)
        .await
        .map_err(Stop::from)
}
