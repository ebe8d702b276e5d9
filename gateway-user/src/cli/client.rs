//! Asks a running daemon over its admin endpoint.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::cluster;
use crate::args::{Endpoint, Whom};
use crate::file::read::phrase;

/// Longest wait for a whole answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error(
        "no daemon answers at {at}: {why}; start one with `forebay run`, or name its admin endpoint with --admin"
    )]
    Connect {
        /// Where it was looked for.
        at: String,
        /// What the system says.
        why: String,
    },
    /// Its socket is not ours to open.
    #[error("{0} may not be opened by this user; run as root or as the user of the daemon")]
    NotAllowed(String),
    /// It is there but does not answer as a daemon does.
    #[error("{at} does not answer like a Forebay daemon: {why}; check --admin")]
    Answer {
        /// Where it was asked.
        at: String,
        /// What was wrong.
        why: String,
    },
    /// The daemon refuses.
    #[error("{0}")]
    Refused(String),
    /// There is no way to the node that was named.
    #[error("{0}")]
    Node(String),
    /// `--admin off`.
    #[error("--admin off names no daemon; give ADDR:PORT or unix:PATH")]
    Off,
}

/// Sends one request and reads the JSON answer.
///
/// # Errors
/// See [`ClientError`].
pub fn ask(whom: &Whom, method: Method, path: &str) -> Result<Value, ClientError> {
    let at = match &whom.node {
        Some(node) => format!("Forebay on node {node}"),
        None => whom.admin.to_string(),
    };
    let answer = |why: String| ClientError::Answer {
        at: at.clone(),
        why,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| answer(phrase(&error)))?;
    let (status, body) = runtime.block_on(async {
        tokio::time::timeout(TIMEOUT, exchange(whom, method, path))
            .await
            .unwrap_or_else(|_| Err(answer(format!("no answer within {} s", TIMEOUT.as_secs()))))
    })?;
    if status == StatusCode::OK {
        serde_json::from_slice(&body).map_err(|_| answer("its answer is not JSON".into()))
    } else {
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        Err(match serde_json::from_str::<Value>(&text) {
            Ok(value) if value["error"].is_string() => {
                ClientError::Refused(value["error"].as_str().unwrap_or_default().to_owned())
            }
            _ => answer(format!("status {status}")),
        })
    }
}

async fn exchange(
    whom: &Whom,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), ClientError> {
    let at = whom.admin.to_string();
    let connect = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => ClientError::NotAllowed(at.clone()),
        std::io::ErrorKind::ConnectionRefused => ClientError::Connect {
            at: at.clone(),
            why: "connection refused".into(),
        },
        _ => ClientError::Connect {
            at: at.clone(),
            why: phrase(&error),
        },
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "forebay")
        .body(Empty::new())
        .map_err(|error| ClientError::Answer {
            at: at.clone(),
            why: error.to_string(),
        })?;
    if let Some(node) = &whom.node {
        return by_node(node, request).await;
    }
    let result = match &whom.admin {
        Endpoint::Off => return Err(ClientError::Off),
        Endpoint::Tcp(address) => {
            let stream = tokio::net::TcpStream::connect(address)
                .await
                .map_err(connect)?;
            send(stream, request).await
        }
        Endpoint::Unix(socket) => {
            let stream = tokio::net::UnixStream::connect(socket)
                .await
                .map_err(connect)?;
            send(stream, request).await
        }
    };
    result.map_err(|error| ClientError::Answer {
        at: at.clone(),
        why: error.to_string(),
    })
}

/// By way of the API server.
async fn by_node(
    node: &str,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let (stream, reached) = cluster::reach(node).await.map_err(ClientError::Node)?;
    match send(stream, request).await {
        Ok(answer) => Ok(answer),
        Err(error) => {
            let at = reached.at.clone();
            let why = reached.why().await.unwrap_or_else(|| error.to_string());
            Err(ClientError::Node(format!(
                "{at} does not answer: {}; see the log of that pod",
                why.trim()
            )))
        }
    }
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> hyper::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
