//! HTTP/2 with a client: hyper's server, a budget for frames that bring nothing, and a watch on each stream.

mod admit;
mod streams;

use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

pub(super) use self::admit::admit;
use self::streams::Budgeted;
pub(super) use self::streams::{StreamNotes, Streams};
use super::clock::{Clock, Expired};
use super::downstream::{Cut, Downstream};
use super::forward;
use super::stats::Event;
use super::stream::ClientStream;
use super::worker::Worker;

/// Requests at once on one connection.
const STREAMS_MAX: u32 = 100;
/// Bytes of one request body that a client may send before they are taken on.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all bodies of a connection together.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Response bytes of one stream that are kept while the client has no room for them.
const SEND_BUFFER: usize = 64 * 1024;
/// Longest list of header fields, as HPACK counts it.
const HEADER_LIST_MAX: u32 = 32 * 1024;
/// Streams that a client may reset before they were looked at.
const PENDING_RESETS: usize = 20;
/// Streams that we reset for a client's errors before the connection goes.
const ERROR_RESETS: usize = 200;

fn builder(streams: &Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .enable_connect_protocol();
    builder
}

/// Serves a connection until it is closed.
pub(super) async fn drive(worker: &Rc<Worker>, downstream: &Rc<Downstream>, stream: ClientStream) {
    let streams = Streams::default();
    downstream.watch_streams(&streams);
    let (io, flooded) = Budgeted::new(stream, &streams, downstream.accepted);
    let service = service_fn(|request| {
        let notes = streams.next();
        forward::handle(
            Rc::clone(worker),
            Rc::clone(downstream),
            Some(notes),
            request,
        )
    });
    let connection = builder(&streams).serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let mut clock = pin!(Clock::new(downstream, worker.timers()));
    let mut closing = false;
    std::future::poll_fn(|cx| {
        downstream.register(cx.waker());
        loop {
            if !closing && downstream.goes_away() {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // How a connection ended is known to its exchanges.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let expired = clock.as_mut().poll_expired(cx);
            for event in streams.take_stalled() {
                worker.count(event);
            }
            match ready!(expired) {
                Expired::Rest => {}
                Expired::Retire(event) => {
                    worker.count(event);
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Expired::Hangs(event) => {
                    downstream.cut_off(Cut::Limit(event));
                    return Poll::Ready(());
                }
                Expired::Abort(event) => {
                    worker.count(event);
                    downstream.cut_off(Cut::Limit(event));
                    return Poll::Ready(());
                }
            }
        }
    })
    .await;
    if flooded.get() {
        worker.count(Event::Http2Floods);
        downstream.cut_off(Cut::Limit(Event::Http2Floods));
    }
    // Streams are tasks of their own: those that are left have nobody to answer to.
    streams.end();
}
