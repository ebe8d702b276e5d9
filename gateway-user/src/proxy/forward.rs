//! A request's way: admit → match → filters → pick → limits → send → answer, one module for each.
//!
//! HTTP/1 and HTTP/2 differ before ([`super::http1`], [`super::http2`]) and in how a request is admitted and an answer
//! framed; from there on all requests are alike.

use std::convert::Infallible;
use std::rc::Rc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;

use super::admit::admit;
use super::answer::{self, Stop};
use super::body::{ResponseBody, UpstreamBody};
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::headroom::Scarcity;
use super::http2::StreamNotes;
use super::prepare::Sending;
use super::reply::Reply;
use super::worker::Worker;
use super::{matching, prepare, send, tunnel};

/// What is left to do once a request is answered.
struct Ending {
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    method: Method,
    http2: bool,
    /// It asked for an upgrade, so what follows it on the connection waits.
    held: bool,
}

/// Answers one request; `notes` are those of its stream, if it came by HTTP/2.
///
/// All that needs no waiting is done before the future is made: codecs move it, and it lives as long as the request.
pub(super) fn handle(
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    notes: Option<Rc<StreamNotes>>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    let http2 = notes.is_some();
    // HTTP/1.0 knows no upgrades, so nothing is held behind them.
    let held = request.version() == Version::HTTP_11 && request.headers().contains_key(UPGRADE);
    let mut exchange = Exchange::begin(&worker, &downstream, notes, &mut request);
    let method = request.method().clone();
    let prepared = match admit(&downstream, &mut request, &mut exchange) {
        Ok(()) => prepare(&worker, &downstream, request, &mut exchange),
        Err(reply) => Err(reply.into()),
    };
    let ending = Ending {
        worker,
        downstream,
        method,
        http2,
        held,
    };
    async move {
        let answered = match prepared {
            Ok(sending) => {
                let sent = send::with_timeouts(&ending.worker, sending, &mut exchange);
                sent.await.map_err(Stop::from)
            }
            Err(stop) => Err(stop),
        };
        Ok(ending.answer(answered, exchange))
    }
}

/// Decides where a request goes and makes it fit to be sent.
fn prepare(
    worker: &Rc<Worker>,
    downstream: &Downstream,
    mut request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Box<Sending>, Stop> {
    let rule = matching::find(worker, downstream, &request)?;
    if worker.scarcity() == Scarcity::Exhausted {
        return Err(Reply::Overloaded.into());
    }
    exchange.matched(&rule);
    if let Some(filters) = &rule.rule.filters {
        matching::answer_by_filter(filters, downstream, &request, exchange)?;
    }
    let way = matching::pick(&rule, exchange)?;
    prepare::edit(&rule, way.backend, downstream, &mut request, exchange)?;
    Ok(prepare::body(
        worker, downstream, rule, way, request, exchange,
    ))
}

impl Ending {
    fn answer(
        self,
        answered: Result<Response<UpstreamBody>, Stop>,
        exchange: Box<Exchange>,
    ) -> Response<ResponseBody> {
        let downstream = &self.downstream;
        // A body whose framing broke is answered with the status of what was wrong with it.
        let answered = answered.map_err(|stop| match (stop, downstream.refusal()) {
            (Stop::Reply(Reply::BadRequest | Reply::BodyAborted), Some(refusal)) => {
                Stop::Reply(Reply::Refused(refusal))
            }
            (stop, _) => stop,
        });
        let now = exchange.latest();
        let mut switched = false;
        let mut response = match answered {
            Ok(response) if exchange.tunnel.is_some() => {
                switched = true;
                tunnel::switch(response, exchange)
            }
            Ok(response) => answer::finish(response, exchange),
            Err(stop) => {
                let method = if matches!(stop, Stop::Reply(Reply::Refused(_))) {
                    &Method::GET
                } else {
                    &self.method
                };
                answer::local(stop, method, exchange)
            }
        };
        if self.held && !switched {
            downstream.no_upgrade();
        }
        let ends = self.worker.is_draining() || self.worker.scarcity() > Scarcity::None;
        if !switched && (ends || downstream.should_close(now)) {
            if self.http2 {
                downstream.answers_last();
            } else {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
        }
        response
    }
}
