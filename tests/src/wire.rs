//! What is on the wire: frames as a namespace sees them, and exact counts of marked packets.

use std::{
    io::{ErrorKind, Read},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{eventually::throughout, netns::Netns, sustained::MARK};

/// How often a tap that sees nothing looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// A frame and when it was seen.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When it was read.
    pub at: Instant,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// What a tap takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// TCP over IPv4 without options: what accepts a connection.
    SynAck,
    /// ARP, and ICMPv6 without extension headers (neighbour discovery is part of it).
    Neighbours,
    /// ICMP of IPv4.
    Icmp,
}

/// Sees the frames of all interfaces of a namespace, in both directions.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Frame>>>,
}

impl Tap {
    /// Sees frames from when this returns.
    ///
    /// # Errors
    /// If there can be no such socket.
    pub fn start(netns: &Netns, kind: Kind) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, given) = (netns.clone(), Arc::clone(&stop));
        let (ready, started) = mpsc::channel();
        let thread = thread::Builder::new().name("tap".into()).spawn(move || {
            let socket = netns.enter().and_then(|()| listen(kind));
            let socket = match socket {
                Ok(socket) => socket,
                Err(error) => {
                    drop(ready.send(Err(error))); // who started this waits
                    return Ok(Vec::new());
                }
            };
            drop(ready.send(Ok(()))); // the same
            read(socket, &given)
        })?;
        started.recv().context("the tap's thread ended")??;
        Ok(Self { stop, thread })
    }

    /// Ends it; what was seen, in order.
    ///
    /// # Errors
    /// If it could not be read.
    pub fn stop(self) -> Result<Vec<Frame>> {
        // What is under way now is seen.
        throughout("the last frames", LOOK * 2, || Ok(()))?;
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the tap's thread panicked"))?
    }
}

fn listen(kind: Kind) -> Result<Socket> {
    const ALL: u16 = 3;
    let protocol = Protocol::from(i32::from(ALL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
        .context("a socket for all frames")?;
    socket.set_read_timeout(Some(LOOK))?;
    socket
        .attach_filter(&filter(kind))
        .context("a filter of frames")?;
    Ok(socket)
}

/// A classic BPF program that takes a whole frame or nothing.
fn filter(kind: Kind) -> Vec<SockFilter> {
    // As classic BPF encodes them.
    const HALF: u16 = 0x28;
    const BYTE: u16 = 0x30;
    const EQUAL: u16 = 0x15;
    const AND: u16 = 0x54;
    const RETURN: u16 = 0x06;
    let op = |code, yes, no, k| SockFilter::new(code, yes, no, k);
    let (take, leave) = (op(RETURN, 0, 0, u32::MAX), op(RETURN, 0, 0, 0));
    match kind {
        Kind::SynAck => vec![
            op(HALF, 0, 0, 12),
            op(EQUAL, 0, 6, 0x0800),
            op(BYTE, 0, 0, 14 + 9),
            op(EQUAL, 0, 4, 6),
            op(BYTE, 0, 0, 14 + 20 + 13),
            op(AND, 0, 0, 0x12),
            op(EQUAL, 0, 1, 0x12),
            take,
            leave,
        ],
        Kind::Neighbours => vec![
            op(HALF, 0, 0, 12),
            op(EQUAL, 3, 0, 0x0806),
            op(EQUAL, 0, 3, 0x86dd),
            op(BYTE, 0, 0, 14 + 6),
            op(EQUAL, 0, 1, 58),
            take,
            leave,
        ],
        Kind::Icmp => vec![
            op(HALF, 0, 0, 12),
            op(EQUAL, 0, 3, 0x0800),
            op(BYTE, 0, 0, 14 + 9),
            op(EQUAL, 0, 1, 1),
            take,
            leave,
        ],
    }
}

fn read(mut socket: Socket, stop: &AtomicBool) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut buffer = [0; 2_048];
    loop {
        match socket.read(&mut buffer) {
            Ok(length) => frames.push(Frame {
                at: Instant::now(),
                bytes: buffer[..length].to_vec(),
            }),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(frames);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading frames"),
        }
    }
}

/// Counts the plain packets of [`crate::sustained`] that come to the stack of a namespace. Any packet may happen to have
/// their [`MARK`]; none but they have their sequence numbers too.
///
/// # Errors
/// If `nft` is not installed or refuses.
pub fn count_marked(netns: &Netns) -> Result<()> {
    let rules = format!(
        "table ip count {{ counter marked {{ }}; chain in {{ type filter hook prerouting priority -300; \
         ip id {MARK:#x} tcp sequence 1 tcp ackseq 1 counter name marked; }}; }}"
    );
    nft(netns, &[&rules]).map(drop)
}

/// Packets counted since [`count_marked`].
///
/// # Errors
/// If nothing is counted there.
pub fn marked(netns: &Netns) -> Result<u64> {
    let said = nft(netns, &["list counter ip count marked"])?;
    let mut words = said
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    let count = words.nth(1).context("no number of packets")?;
    count.parse().context("not a number of packets")
}

fn nft(netns: &Netns, words: &[&str]) -> Result<String> {
    let done = netns
        .output(Command::new("nft").args(words))
        .context("is nftables installed? `cargo xtask setup` does it")?;
    ensure!(
        done.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Packets that the interfaces of a namespace had no room for, in both directions.
///
/// # Errors
/// If the kernel's list cannot be read.
pub fn dropped(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| {
        std::fs::read_to_string("/proc/thread-self/net/dev").context("cannot read net/dev")
    })?;
    Ok(drops(&text))
}

/// Fourth and twelfth number of each line.
fn drops(text: &str) -> u64 {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let of_line = |numbers: &str| -> u64 {
        let numbers: Vec<u64> = (numbers.split_whitespace())
            .filter_map(|number| number.parse().ok())
            .collect();
        [3, 11].iter().filter_map(|at| numbers.get(*at)).sum()
    };
    lines.map(|(_, numbers)| of_line(numbers)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_both_directions_are_summed() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0: 0 0 0 100 0 0 0 0 0 0 0 1000 0 0 0 0\n";
        assert_eq!(drops(text), 4 + 12 + 1_100);
    }
}
