//! A load that lasts: many connections that are kept open, and plain packets between their segments.
//!
//! Each connection sends one small request after another at its own pace, some of which the backend holds for a while
//! (see [`crate::backend::HOLD`]). A connection that the other side ends in order, which it says in an answer or does
//! between two answers, is opened again. Everything else that ends one is counted by kind.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime,
};

use crate::{backend::HOLD, client::Tally, netns::Netns, packet::TcpPacket};

/// Longest time for a connection to open or for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of so many requests of a connection one is held.
const HELD_ONE_OF: usize = 8;

/// How long it is held.
const HELD_FOR: Duration = Duration::from_millis(1_500);

/// IP identification of the plain packets, by which they are told from all others.
pub const MARK: u16 = 0x4242;

/// What the load has seen since it was last asked.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Answers, and what was broken.
    pub tally: Tally,
    /// What was broken, one by one: the local port and how.
    pub broken: Vec<(u16, String)>,
    /// Connections opened.
    pub opened: usize,
    /// Connections that the other side ended in order.
    pub ended: usize,
    /// Longest time from a request's first byte to its whole answer, without those that were held.
    pub slowest: Duration,
    /// Longest time to open a connection.
    pub slowest_open: Duration,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Where to.
    pub target: SocketAddrV4,
    /// `Host` header.
    pub host: &'static str,
    /// Connections.
    pub connections: usize,
    /// Requests a second, of all connections.
    pub rate: u32,
}

#[derive(Debug)]
struct Shared {
    shape: Shape,
    from: Ipv4Addr,
    stop: AtomicBool,
    seen: Mutex<Seen>,
    /// Local port of each connection while it is open, else 0.
    ports: Vec<AtomicU16>,
}

/// The running connections.
#[derive(Debug)]
pub struct Sustained {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<()>>,
}

impl Sustained {
    /// Opens the connections, spread over the time in which each sends one request.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn start(netns: &Netns, from: Ipv4Addr, shape: Shape) -> Result<Self> {
        let shared = Arc::new(Shared {
            shape,
            from,
            stop: AtomicBool::new(false),
            seen: Mutex::default(),
            ports: (0..shape.connections).map(|_| AtomicU16::new(0)).collect(),
        });
        let (netns, given) = (netns.clone(), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("sustained".into())
            .spawn(move || {
                netns.enter()?;
                let runtime = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(keep_all(given))
            })?;
        Ok(Self { shared, thread })
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        let open = |port: &&AtomicU16| port.load(Ordering::Relaxed) != 0;
        self.shared.ports.iter().filter(open).count()
    }

    /// What was seen since this was last asked.
    #[must_use]
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *lock(&self.shared.seen))
    }

    /// Ends all connections after their present request.
    ///
    /// # Errors
    /// If the client itself failed.
    pub fn stop(self) -> Result<Seen> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.map_err(|_| anyhow!("the thread of the load panicked"))??;
        Ok(std::mem::take(&mut *lock(&self.shared.seen)))
    }

    /// Sends plain packets (an acknowledgment of nothing, marked with [`MARK`]) of the open connections in turn, `rate`
    /// a second.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn packets(&self, netns: &Netns, rate: u32) -> Result<Packets> {
        self.packets_of(netns, rate, |_| true)
    }

    /// The same, only of connections whose local port is one for which `which` is true.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn packets_of(
        &self,
        netns: &Netns,
        rate: u32,
        which: impl Fn(u16) -> bool + Send + 'static,
    ) -> Result<Packets> {
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (netns, shared) = (netns.clone(), Arc::clone(&self.shared));
        let state = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::Builder::new()
            .name("packets".into())
            .spawn(move || {
                netns.enter()?;
                send_packets(&shared, rate, &which, &state.0, &state.1)
            })?;
        Ok(Packets {
            stop,
            sent,
            started: Instant::now(),
            thread,
        })
    }
}

/// The running stream of plain packets.
#[derive(Debug)]
pub struct Packets {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    started: Instant,
    thread: JoinHandle<Result<()>>,
}

impl Packets {
    /// Packets sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the stream; packets sent in all, and the rate a second.
    ///
    /// # Errors
    /// If a packet could not be sent.
    pub fn stop(self) -> Result<(u64, f64)> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.map_err(|_| anyhow!("the thread of the packets panicked"))??;
        let sent = self.sent.load(Ordering::Relaxed);
        let seconds = self.started.elapsed().as_secs_f64();
        Ok((sent, sent as f64 / seconds))
    }
}

fn send_packets(
    shared: &Shared,
    rate: u32,
    which: &dyn Fn(u16) -> bool,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let socket = Socket::new(
        Domain::IPV4,
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )?;
    let target = shared.shape.target;
    let to = SocketAddr::from((*target.ip(), 0)).into();
    let started = Instant::now();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        // What could not be sent in time is not made up for by a burst.
        let wanted = due
            .saturating_sub(sent.load(Ordering::Relaxed))
            .min(u64::from(rate) / 100);
        for _ in 0..wanted {
            turn = (turn + 1) % shared.ports.len();
            let port = shared.ports[turn].load(Ordering::Relaxed);
            if port == 0 || !which(port) {
                continue;
            }
            match socket.send_to(&plain(shared.from, port, target), &to) {
                Ok(_) => {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => break,
                Err(error) => return Err(error.into()),
            }
        }
        thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}

/// An IPv4 packet that belongs to a connection and carries nothing that it waits for.
fn plain(from: Ipv4Addr, port: u16, to: SocketAddrV4) -> Vec<u8> {
    let packet = TcpPacket {
        source: from.octets(),
        destination: to.ip().octets(),
        source_port: port,
        destination_port: to.port(),
        ..TcpPacket::default()
    };
    let mut bytes = packet.build().split_off(14);
    // The kernel writes the sum of the header of a packet that is sent with it.
    bytes[4..6].copy_from_slice(&MARK.to_be_bytes());
    bytes
}

async fn keep_all(shared: Arc<Shared>) -> Result<()> {
    let count = shared.shape.connections;
    let pause = Duration::from_secs_f64(count as f64 / f64::from(shared.shape.rate));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..count {
        let shared = Arc::clone(&shared);
        let first = pause.mul_f64(number as f64 / count as f64);
        tasks.spawn(async move {
            tokio::time::sleep_until(tokio::time::Instant::now() + first).await;
            keep(&shared, number, pause).await;
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

/// One place: a connection, and the next when it has ended.
async fn keep(shared: &Shared, number: usize, pause: Duration) {
    // Not all connections have their held requests at the same time.
    let mut request = number;
    while !shared.stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let (port, opened) = match bound(shared) {
            Ok((socket, port)) => {
                let opens = socket.connect(shared.shape.target.into());
                (port, tokio::time::timeout(PATIENCE, opens).await)
            }
            Err(error) => (0, Ok(Err(error))),
        };
        match opened {
            Ok(Ok(mut stream)) => {
                shared.opened(begun.elapsed());
                shared.ports[number].store(port, Ordering::Relaxed);
                let end = talk(shared, &mut stream, &mut request, pause).await;
                shared.ports[number].store(0, Ordering::Relaxed);
                shared.note(port, end);
            }
            Ok(Err(error)) => shared.note(port, End::Failed(error)),
            Err(_) => shared.note(port, End::TimedOut),
        }
        if begun.elapsed() < pause {
            tokio::time::sleep_until((begun + pause).into()).await;
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// As it was announced, or between two answers.
    InOrder,
    /// The load ends.
    Stopped,
    TimedOut,
    CutOff,
    Failed(io::Error),
}

impl Shared {
    fn opened(&self, took: Duration) {
        let mut seen = lock(&self.seen);
        seen.opened += 1;
        seen.slowest_open = seen.slowest_open.max(took);
    }

    fn answered(&self, status: u16, took: Duration, held: bool) {
        let mut seen = lock(&self.seen);
        *seen.tally.answers.entry(status).or_default() += 1;
        if !held {
            seen.slowest = seen.slowest.max(took);
        }
    }

    fn note(&self, port: u16, end: End) {
        let mut seen = lock(&self.seen);
        if !matches!(end, End::Stopped | End::InOrder) {
            seen.broken.push((port, format!("{end:?}")));
        }
        let tally = &mut seen.tally;
        match end {
            End::Stopped => {}
            End::InOrder => seen.ended += 1,
            End::TimedOut => tally.timed_out += 1,
            End::CutOff => tally.cut_off += 1,
            End::Failed(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => tally.refused += 1,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => tally.reset += 1,
                io::ErrorKind::TimedOut => tally.timed_out += 1,
                _ => *tally.other.entry(error.to_string()).or_default() += 1,
            },
        }
    }
}

/// A socket and the port that it is bound to.
fn bound(shared: &Shared) -> io::Result<(TcpSocket, u16)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(shared.from, 0).into())?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

async fn talk(
    shared: &Shared,
    stream: &mut TcpStream,
    request: &mut usize,
    pause: Duration,
) -> End {
    let mut next = tokio::time::Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        *request += 1;
        let held = request.is_multiple_of(HELD_ONE_OF);
        let begun = Instant::now();
        let asked = tokio::time::timeout(PATIENCE, ask(stream, shared.shape.host, held)).await;
        let (status, closes) = match asked {
            Err(_) => return End::TimedOut,
            Ok(Err(error)) => return End::Failed(error),
            Ok(Ok(None)) => return End::CutOff,
            Ok(Ok(Some(answer))) => answer,
        };
        shared.answered(status, begun.elapsed(), held);
        if closes {
            return End::InOrder;
        }
        next = (next + pause).max(tokio::time::Instant::now());
        // The other side may end the connection meanwhile.
        let mut byte = [0];
        match tokio::time::timeout_at(next, stream.read(&mut byte)).await {
            Err(_) => {}
            Ok(Ok(0)) => return End::InOrder,
            Ok(Ok(_)) => return End::Failed(io::Error::other("bytes that nobody asked for")),
            Ok(Err(error)) => return End::Failed(error),
        }
    }
    End::Stopped
}

/// Status of the whole answer and whether it is the connection's last; none if it ends early.
async fn ask(stream: &mut TcpStream, host: &str, held: bool) -> io::Result<Option<(u16, bool)>> {
    let path = match held {
        true => format!("{HOLD}{}", HELD_FOR.as_millis()),
        false => "/".to_owned(),
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        if let Some(answer) = whole(&bytes) {
            return Ok(Some(answer));
        }
    }
}

/// Status of an answer that is whole, and whether it says that the connection ends.
fn whole(bytes: &[u8]) -> Option<(u16, bool)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let (mut length, mut closes) = (0, false);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.eq_ignore_ascii_case("close");
        }
    }
    (body.len() >= length).then_some((status, closes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_body() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        for end in 0..text.len() {
            assert_eq!(whole(&text[..end]), None, "cut at {end}");
        }
        assert_eq!(whole(text), Some((200, true)));
        let goes_on = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(whole(goes_on), Some((503, false)));
    }

    #[test]
    fn plain_packets_carry_the_mark() {
        let vip = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 100), 80);
        let packet = plain(Ipv4Addr::new(192, 0, 2, 1), 40_000, vip);
        assert_eq!(packet.len(), 40);
        assert_eq!(packet[4..6], MARK.to_be_bytes());
        assert_eq!(packet[16..24], [192, 0, 2, 100, 0x9c, 0x40, 0, 80]);
    }
}
