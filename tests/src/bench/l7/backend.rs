//! The backend of every proxy under test: one thread, epoll, HTTP/1.1 keep-alive, one fixed answer.
//!
//! It understands requests without a body only, which is all that the load generator sends. It counts the requests.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::event::epoll;

use crate::bench::cpu;

/// Bytes of the answer's body.
pub(super) const BODY: usize = 1024;

const LISTENER: u64 = u64::MAX;

/// Starts the thread on `core`; the counter holds the requests answered so far.
pub(super) fn start(address: SocketAddr, core: usize) -> Result<Arc<AtomicU64>> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("the backend cannot bind {address}"))?;
    listener.set_nonblocking(true)?;
    let served = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&served);
    std::thread::Builder::new()
        .name("backend".to_owned())
        .spawn(move || {
            if let Err(error) = cpu::pin(None, core).and_then(|()| serve(&listener, &counter)) {
                eprintln!("forebay-bench: the backend stopped: {error:#}");
            }
        })?;
    Ok(served)
}

fn answer() -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n");
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + BODY, b'x');
    bytes
}

fn serve(listener: &TcpListener, served: &AtomicU64) -> Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &poll,
        listener,
        epoll::EventData::new_u64(LISTENER),
        epoll::EventFlags::IN,
    )?;
    let answer = answer();
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                accept(listener, &poll, &mut connections)?;
                continue;
            }
            let slot = &mut connections[key as usize];
            let open = slot
                .as_mut()
                .is_some_and(|c| c.turn(&answer, served).is_ok());
            if !open {
                *slot = None;
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &impl std::os::fd::AsFd,
    connections: &mut Vec<Option<Connection>>,
) -> Result<()> {
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let slot = connections
            .iter()
            .position(Option::is_none)
            .unwrap_or(connections.len());
        epoll::add(
            poll,
            &stream,
            epoll::EventData::new_u64(slot as u64),
            epoll::EventFlags::IN,
        )?;
        let connection = Some(Connection { stream, ending: 0 });
        if slot == connections.len() {
            connections.push(connection);
        } else {
            connections[slot] = connection;
        }
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    /// Bytes of `\r\n\r\n` that the input so far ends with.
    ending: usize,
}

impl Connection {
    /// Answers what has arrived; an error or the end closes the connection.
    fn turn(&mut self, answer: &[u8], served: &AtomicU64) -> std::io::Result<()> {
        let mut buffer = [0u8; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                for _ in 0..heads(&mut self.ending, &buffer[..n]) {
                    // Before the answer: who has it may ask for the count.
                    served.fetch_add(1, Ordering::Relaxed);
                    self.stream.write_all(answer)?;
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// How many request heads end in `bytes`, given how much of an end came before.
fn heads(ending: &mut usize, bytes: &[u8]) -> usize {
    const END: &[u8; 4] = b"\r\n\r\n";
    let mut count = 0;
    for &byte in bytes {
        *ending = if byte == END[*ending] {
            *ending + 1
        } else {
            usize::from(byte == b'\r')
        };
        if *ending == END.len() {
            *ending = 0;
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_counted_across_reads() {
        let mut ending = 0;
        assert_eq!(heads(&mut ending, b"GET / HTTP/1.1\r\nhost: a\r\n\r"), 0);
        assert_eq!(heads(&mut ending, b"\nGET / HTTP/1.1\r\n\r\nGET"), 2);
        assert_eq!(heads(&mut ending, b" / HTTP/1.1\r\r\n\r\n"), 1);
    }
}
