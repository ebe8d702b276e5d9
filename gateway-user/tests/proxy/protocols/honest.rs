//! Peers that keep to the rules, by the libraries that others use: an HTTP/2 client, and an HTTP/2 endpoint that notes what it
//! sees.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use gateway_user::proxy::stats::Event;
use gateway_user::snapshot::{AppProtocol, Cluster, TrafficPolicy};
use http::{HeaderMap, Request, Response, request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// Frames from a channel.
pub(crate) fn channel() -> (tokio::sync::mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Frame<Bytes>>(4);
    let stream = Receiver(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
    (sender, BodyExt::boxed(Frames(Mutex::new(stream))))
}

struct Receiver<F>(F);
struct Frames<F>(Mutex<Receiver<F>>);

impl<F: Future<Output = Option<Frame<Bytes>>> + Unpin> hyper::body::Body for Frames<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut inner = self.0.lock().unwrap();
        std::pin::Pin::new(&mut inner.0).poll(cx).map(|f| f.map(Ok))
    }
}

pub(crate) async fn client(at: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) fn to(path: &str) -> request::Builder {
    Request::builder().uri(format!("http://test.example{path}"))
}

/// Status, body and trailers.
pub(crate) async fn ask(
    sender: &mut SendRequest<Body>,
    request: Request<Body>,
) -> (u16, HeaderMap, Bytes, Option<HeaderMap>) {
    let answered = async {
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned();
        (
            parts.status.as_u16(),
            parts.headers,
            body.to_bytes(),
            trailers,
        )
    };
    tokio::time::timeout(BOUND, answered)
        .await
        .expect("in time")
}

/// An HTTP/2 endpoint in clear text.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) heads: Arc<Mutex<Vec<request::Parts>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) open: Arc<AtomicUsize>,
}

pub(crate) async fn endpoint<F, Fut>(handler: F) -> Endpoint
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        address: listener.local_addr().unwrap(),
        heads: Arc::default(),
        connections: Arc::default(),
        open: Arc::default(),
    };
    let shared = endpoint.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            shared.connections.fetch_add(1, SeqCst);
            shared.open.fetch_add(1, SeqCst);
            let (shared, handler) = (shared.clone(), handler.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request: Request<Incoming>| {
                    let (parts, body) = request.into_parts();
                    shared.heads.lock().unwrap().push(parts.clone());
                    let answer = handler(Request::from_parts(parts, body));
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ended = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                shared.open.fetch_sub(1, SeqCst);
            });
        }
    });
    endpoint
}

pub(crate) fn h2_cluster(policy: &TrafficPolicy, endpoints: &[SocketAddr]) -> Arc<Cluster> {
    let mut made = (*cluster("a", policy, endpoints)).clone();
    made.protocol = AppProtocol::Http2;
    Arc::new(made)
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let body = request.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned();
    let (sender, response) = channel();
    sender.send(Frame::data(body.to_bytes())).await.unwrap();
    if let Some(trailers) = trailers {
        sender.send(Frame::trailers(trailers)).await.unwrap();
    }
    Response::new(response)
}

#[tokio::test]
async fn big_transfers_over_many_streams_are_no_flood() {
    let up = endpoint(|request| async move {
        let size: usize = request.uri().path()[1..].parse().unwrap();
        let mut body = request.into_body();
        let mut got = 0;
        while let Some(frame) = body.frame().await {
            got += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(got, size);
        Response::new(full(vec![b'd'; size]))
    })
    .await;
    let at = free_address();
    let proxy = start(
        2,
        &snapshot(
            at,
            &[(1, h2_cluster(&TrafficPolicy::default(), &[up.address]))],
            |_| {},
        ),
    );
    const SIZE: usize = 2 << 20;
    let sender = client(at).await;
    let mut tasks = Vec::new();
    for _ in 0..32 {
        let mut sender = sender.clone();
        tasks.push(tokio::spawn(async move {
            let request = to(&format!("/{SIZE}"))
                .method("POST")
                .body(full(vec![b'u'; SIZE]))
                .unwrap();
            let (status, _, body, _) = ask(&mut sender, request).await;
            assert_eq!((status, body.len()), (200, SIZE));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let stats = proxy.stats();
    assert_eq!(
        (
            stats.event(Event::Http2Floods),
            stats.event(Event::WriteTimeouts),
            stats.event(Event::BodyTimeouts)
        ),
        (0, 0, 0)
    );
    assert_eq!(up.connections.load(SeqCst), 1);
    drop(sender);
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(proxy.endpoints()[0].in_use.requests, 0);
}

#[tokio::test]
async fn four_workers_share_one_connection_and_what_goes_over_it_is_whole() {
    let up = endpoint(echo).await;
    let at = free_address();
    let proxy = start(
        4,
        &snapshot(
            at,
            &[(1, h2_cluster(&TrafficPolicy::default(), &[up.address]))],
            |_| {},
        ),
    );
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(client(at).await);
    }
    let tasks = clients.into_iter().enumerate().map(|(n, mut sender)| {
        tokio::spawn(async move {
            for m in 0..20 {
                let (frames, body) = channel();
                let text = format!("{n}/{m}");
                frames.send(Frame::data(text.clone().into())).await.unwrap();
                let trailers: HeaderMap = [("x-sum".parse().unwrap(), text.parse().unwrap())]
                    .into_iter()
                    .collect();
                frames
                    .send(Frame::trailers(trailers.clone()))
                    .await
                    .unwrap();
                drop(frames);
                let request = to("/")
                    .method("POST")
                    .header("te", "trailers")
                    .header("content-type", "application/grpc")
                    .body(body)
                    .unwrap();
                let (status, headers, got, back) = ask(&mut sender, request).await;
                assert_eq!(
                    (status, &*got, back),
                    (200, text.as_bytes(), Some(trailers))
                );
                assert_eq!(headers["via"], "2.0 forebay");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(up.connections.load(SeqCst), 1);
    {
        let heads = up.heads.lock().unwrap();
        assert_eq!(heads.len(), 240);
        let head = &heads[0];
        assert_eq!(head.uri, "http://test.example/");
        for (name, value) in [
            ("te", "trailers"),
            ("via", "2.0 forebay"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "http"),
        ] {
            assert_eq!(head.headers[name], value);
        }
        for name in ["host", "connection", "transfer-encoding"] {
            assert!(!head.headers.contains_key(name), "{name}");
        }
    }
    until(|| proxy.stats().open_connections() == 0).await;
    let status = &proxy.endpoints()[0];
    assert_eq!(
        (
            status.in_use.requests,
            status.in_use.connections,
            status.endpoints[0].active
        ),
        (0, 1, 0)
    );
}

#[tokio::test]
async fn answers_without_a_body_and_heads_go_both_ways() {
    let up = endpoint(|request| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        let answer = Response::builder().status(status);
        match status {
            204 | 304 => answer.body(full("")).unwrap(),
            _ if request.method() == "HEAD" => {
                answer.header("content-length", "7").body(full("")).unwrap()
            }
            _ => answer.body(full("seven!!")).unwrap(),
        }
    })
    .await;
    let at = free_address();
    let _proxy = start(
        1,
        &snapshot(
            at,
            &[(1, h2_cluster(&TrafficPolicy::default(), &[up.address]))],
            |_| {},
        ),
    );
    let mut sender = client(at).await;
    for (method, path, length) in [
        ("GET", "/204", None),
        ("GET", "/304", None),
        ("HEAD", "/200", Some("7")),
        ("GET", "/200", Some("7")),
        ("GET", "/500", Some("7")),
    ] {
        let request = to(path).method(method).body(full("")).unwrap();
        let (status, headers, body, _) = ask(&mut sender, request).await;
        assert_eq!(format!("/{status}"), path);
        assert_eq!(
            headers.get("content-length").map(|v| v.to_str().unwrap()),
            length,
            "{method} {path}"
        );
        assert_eq!(
            body.len(),
            if method == "GET" && length.is_some() {
                7
            } else {
                0
            },
            "{method} {path}"
        );
        let mut one = Client::connect(at).await;
        one.send(&format!(
            "{method} {path} HTTP/1.1\r\nhost: test.example\r\nconnection: close\r\n\r\n"
        ))
        .await;
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut one.stream, &mut text)
            .await
            .unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
        assert_eq!(
            text.ends_with("seven!!"),
            method == "GET" && length.is_some(),
            "{text}"
        );
    }
}

#[tokio::test]
async fn grpc_calls_get_the_proxys_answers_in_their_own_form() {
    let at = free_address();
    let dead = free_address();
    let proxy = start(
        1,
        &snapshot(
            at,
            &[(1, h2_cluster(&TrafficPolicy::default(), &[dead]))],
            |_| {},
        ),
    );
    let mut sender = client(at).await;
    let call = |host: &str| {
        Request::builder()
            .method("POST")
            .uri(format!("http://{host}/a.B/C"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(full("\0\0\0\0\0"))
            .unwrap()
    };
    for (host, status, message) in [
        ("test.example", "14", "upstream connect failure"),
        ("other.example", "12", "no route"),
    ] {
        let (code, headers, body, trailers) = ask(&mut sender, call(host)).await;
        assert_eq!((code, body.len(), trailers), (200, 0, None));
        assert_eq!(
            (&headers["grpc-status"], &headers["grpc-message"]),
            (&status.parse().unwrap(), &message.parse().unwrap())
        );
    }
    assert_eq!(proxy.endpoints()[0].in_use.requests, 0);
}
