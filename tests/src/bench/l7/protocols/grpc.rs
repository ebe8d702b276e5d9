//! The gRPC endpoint of every proxy under test: hyper's HTTP/2 server on one thread, one fixed answer with trailers.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Poller, Poll};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;

use crate::bench::cpu;

/// Starts the thread on `core`; the counter holds the calls answered so far.
pub(super) fn start(address: SocketAddr, core: usize) -> Result<Arc<AtomicU64>> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("the gRPC endpoint cannot bind {address}"))?;
    listener.set_nonblocking(true)?;
    let called = Arc::<AtomicU64>::default();
    let counter = Arc::clone(&called);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("grpc-endpoint".to_owned())
        .spawn(move || {
            let served =
                cpu::pin(None, core).and_then(|()| runtime.block_on(serve(listener, &counter)));
            if let Err(error) = served {
                eprintln!("forebay-bench: the gRPC endpoint stopped: {error:#}");
            }
        })?;
    Ok(called)
}

async fn serve(listener: TcpListener, called: &Arc<AtomicU64>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let called = Arc::clone(called);
        let service =
            hyper::service::service_fn(move |request| answer(request, Arc::clone(&called)));
        let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        tokio::spawn(async move {
            // A proxy that goes away at the end of the run is no error.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    called: Arc<AtomicU64>,
) -> Result<Response<Reply>, Infallible> {
    let whole = request.into_body().collect().await.is_ok();
    if whole {
        called.fetch_add(1, Ordering::Relaxed);
    }
    let mut response = Response::new(Reply(0));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

/// One message and the status.
struct Reply(u8);

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Poller<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1;
        Poll::Ready(match self.0 {
            1 => Some(Ok(Frame::data(Bytes::from_static(
                b"\0\0\0\0\x10answeransweransw",
            )))),
            2 => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }
}
