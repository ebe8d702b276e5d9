//! A flood of SYNs from addresses that are nobody's, some of them cut off.

use std::io::Result;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::packet::{SYN, TcpPacket};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// What sends it: opened in the network namespace that it is to come from.
///
/// # Errors
/// If this is not root.
pub fn sender() -> Result<Socket> {
    Socket::new(
        Domain::IPV4,
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )
}

/// Packets a second of a flood that leaves room for everything else.
pub const LITTLE: u32 = 1_000;

/// About so many packets a second to port 80 of these VIPs: SYNs that nobody answers further, every fourth cut off within its header.
/// How many were sent.
pub fn flood(sender: &Socket, vips: [[u8; 4]; 2], rate: u32, hold: Duration, seed: u64) -> u64 {
    let begun = Instant::now();
    let (mut sent, mut refused) = (0_u64, 0_u64);
    let mut number = u32::try_from(seed).unwrap_or(0);
    while begun.elapsed() < hold {
        let due = begun.elapsed().as_millis() as u64 * u64::from(rate) / 1_000;
        while sent + refused < due {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [a, b, c, d] = number.to_be_bytes();
            let vip = vips[usize::from(a & 1)];
            let packet = TcpPacket {
                source: [10, 78, a, b],
                destination: vip,
                source_port: u16::from_be_bytes([b | 4, c]),
                sequence: number,
                flags: SYN,
                ..TcpPacket::default()
            };
            let built = packet.build();
            let whole = &built[ETHERNET..];
            let cut = if number.is_multiple_of(4) {
                usize::from(d % 20)
            } else {
                0
            };
            let to: SocketAddr = (vip, 0).into();
            // The queue of the client's own interface may be full.
            match sender.send_to(&whole[..whole.len() - cut], &SockAddr::from(to)) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
        thread::park_timeout(Duration::from_millis(1));
    }
    sent
}
