//! What connections cost that do nothing: each has made one request, and then waits.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{TLS_PORT, handshake};
use crate::bench::cpu;
use crate::bench::l7::load::HOST;
use crate::bench::l7::proxies::{Proxy, wait_for};
use crate::bench::report::{Bar, Table};
use crate::bench::stats::number;

/// KiB of one idle connection.
pub(super) struct Memory {
    connections: usize,
    http1: f64,
    tls: f64,
}

/// Makes room for the connections, here and in the proxies that are started from here on; how many there can be.
pub(super) fn make_room(connections: usize) -> Result<usize> {
    /// For everything else.
    const REST: usize = 4_096;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit on open files")?;
    // None is no limit at all. Twice: by HTTP/1.1 and over TLS.
    let most = limit.current.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    });
    Ok(connections.min(most.saturating_sub(REST) / 2))
}

/// Opens the connections, and looks at the proxy's resident memory before and after.
pub(super) fn measure(proxy: &Proxy, connections: usize) -> Result<Memory> {
    // All stay open to the end: what the first give back would be taken by the second.
    let mut held = Vec::with_capacity(2 * connections);
    let mut grown = |open: &dyn Fn() -> Result<TcpStream>| -> Result<f64> {
        let before = cpu::resident_kib(proxy.pid())?;
        for _ in 0..connections {
            held.push(open()?);
        }
        let after = settled(proxy)?;
        Ok(after.saturating_sub(before) as f64 / connections as f64)
    };
    let http1 = grown(&|| {
        let mut stream = TcpStream::connect(proxy.address)?;
        ask(&mut stream)?;
        Ok(stream)
    })?;
    let secure = SocketAddr::new(proxy.address.ip(), TLS_PORT);
    let tls = grown(&|| {
        let (stream, tls) = handshake::open(secure, HOST)?;
        let mut stream = rustls::StreamOwned::new(tls, stream);
        ask(&mut stream)?;
        // The client's own half is large; the socket keeps the connection open.
        Ok(stream.sock)
    })?;
    Ok(Memory {
        connections,
        http1,
        tls,
    })
}

/// Resident KiB once they fall no more: an idle connection may give back what it needs no longer.
fn settled(proxy: &Proxy) -> Result<u64> {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    wait_for(Duration::from_secs(20), || {
        let now = cpu::resident_kib(proxy.pid())?;
        if now < least {
            (least, since) = (now, Instant::now());
        }
        Ok(since.elapsed() >= Duration::from_secs(3))
    })?;
    Ok(least)
}

/// One request, and its whole answer.
fn ask(stream: &mut (impl Read + Write)) -> Result<()> {
    let request = format!("GET /idle HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(&[b'x'; 64]) || answer.len() < super::backend::BODY {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the proxy closed an idle connection");
        answer.extend_from_slice(&buffer[..read]);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "an answer was not 200");
    Ok(())
}

impl Memory {
    /// What is judged.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let bar = |what: &str, measured, limit| Bar {
            what: what.to_owned(),
            measured,
            limit,
            at_most: true,
            unit: "KiB".to_owned(),
        };
        vec![
            bar("idle connection by HTTP/1.1", self.http1, 12.0),
            bar("idle connection over TLS", self.tls, 40.0),
        ]
    }

    /// For the report.
    pub(super) fn table(&self) -> Table {
        let row =
            |what: &str, kib: f64| vec![what.to_owned(), self.connections.to_string(), number(kib)];
        Table {
            title: "Memory of idle connections of Forebay".to_owned(),
            columns: ["connection", "open", "KiB each"]
                .map(str::to_owned)
                .to_vec(),
            rows: vec![
                row("HTTP/1.1", self.http1),
                row("HTTP/1.1 over TLS", self.tls),
            ],
        }
    }
}
