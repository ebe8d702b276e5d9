//! Requests by h2load (nghttp2): an exact number of them, all of which must be answered with 200.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::bench::l7::load::HOST;

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http1OverTls,
    Http2OverTls,
    Http2Clear,
    Grpc,
}

/// A message of gRPC: no compression, 16 bytes.
const CALL: [u8; 21] = [
    0, 0, 0, 0, 16, b'c', b'a', b'l', b'l', b'c', b'a', b'l', b'l', b'c', b'a', b'l', b'l', b'c',
    b'a', b'l', b'l',
];

/// Sends exactly `count` requests.
pub(super) fn run(
    kind: Kind,
    clear: SocketAddr,
    tls: SocketAddr,
    count: u64,
    core: usize,
) -> Result<()> {
    let (scheme, to) = match kind {
        Kind::Http2Clear => ("http", clear),
        _ => ("https", tls),
    };
    let path = match kind {
        Kind::Grpc => "/bench.Echo/Say",
        _ => "/bench/resource?id=42",
    };
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string(), "h2load", "--threads=1"]);
    command.arg(format!("--requests={count}"));
    command.arg(format!("--connect-to={to}"));
    match kind {
        Kind::Http1OverTls => command.args(["--clients=16", "--h1"]),
        _ => command.args(["--clients=4", "--max-concurrent-streams=32"]),
    };
    let call = tempfile::NamedTempFile::new()?;
    if kind == Kind::Grpc {
        std::fs::write(call.path(), CALL)?;
        command.arg(format!("--data={}", call.path().display()));
        command.args([
            "--header=content-type: application/grpc",
            "--header=te: trailers",
        ]);
    }
    command.arg(format!("{scheme}://{HOST}:{}{path}", to.port()));
    let output = command
        .output()
        .context("cannot run h2load: install nghttp2-client")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let wanted = format!(
        "requests: {count} total, {count} started, {count} done, {count} succeeded, 0 failed"
    );
    ensure!(
        output.status.success() && said.contains(&wanted) && said.contains(&format!("{count} 2xx")),
        "h2load did not get {count} good answers:\n{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
