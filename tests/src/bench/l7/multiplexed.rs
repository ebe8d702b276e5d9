//! A connection of HTTP/2 by prior knowledge, on which one request follows another. One thread.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::load::HOST;
use super::{CELL_LIMIT, backend};

/// An open connection.
pub(super) struct Multiplexed {
    runtime: Runtime,
    sender: SendRequest<Empty<Bytes>>,
}

impl Multiplexed {
    /// Connects.
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let connected = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let io = TokioIo::new(stream);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            // How it ended the next request is told.
            tokio::spawn(async { drop(connection.await) });
            anyhow::Ok(sender)
        };
        let sender = runtime
            .block_on(connected)
            .with_context(|| format!("cannot connect to {address} by HTTP/2"))?;
        Ok(Self { runtime, sender })
    }

    /// Sends exactly `requests` requests, each after the answer to the one before, and fails unless every answer is a good one.
    pub(super) fn ask(&mut self, requests: u32) -> Result<()> {
        let Self { runtime, sender } = self;
        let all = async {
            for done in 0..requests {
                let request = Request::get(format!("http://{HOST}/bench/resource?id=42"))
                    .body(Empty::new())?;
                let answer = sender.send_request(request).await?;
                let status = answer.status();
                let body = answer.into_body().collect().await?.to_bytes();
                ensure!(
                    status == StatusCode::OK && body.len() == backend::BODY,
                    "the run is void: after {done} good answers one is {status} with {} bytes",
                    body.len()
                );
            }
            Ok(())
        };
        let in_time = runtime.block_on(async { timeout(CELL_LIMIT, all).await });
        in_time.with_context(|| format!("not all answers came within {CELL_LIMIT:?}"))?
    }
}
