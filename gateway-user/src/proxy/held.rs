//! How many client connections and UDP sessions are open in each steering row.
//!
//! The proxy knows its sockets exactly, so it can tell the other nodes when it holds none of their rows any more. Each
//! connection adds one to its row's word and takes it away at its end; nothing here is locked, and only who asks sums.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use gateway_common::abi::ROWS;
use gateway_common::hash::{Key, flow_v4, flow_v6, row_of};

use crate::snapshot::{BindKey, UdpHash};

/// Rows of a block. They are summed ten times a second, and most of them hold nothing.
const BLOCK: usize = 64;

/// Open connections by row.
#[derive(Debug)]
pub struct Held {
    key: Key,
    rows: Box<[AtomicU32]>,
    /// Their sums by block: only what is not zero need be looked at.
    blocks: Box<[AtomicU32]>,
}

impl Held {
    /// None is open. `key` is the one that the nodes hash flows with.
    #[must_use]
    pub fn new(key: Key) -> Arc<Self> {
        Arc::new(Self {
            key,
            // Zero pages of the system: only rows with connections cost memory.
            rows: bytemuck::zeroed_slice_box(ROWS as usize),
            blocks: bytemuck::zeroed_slice_box((ROWS as usize).div_ceil(BLOCK)),
        })
    }

    /// Counts a connection until the guard is dropped.
    #[must_use]
    pub fn connection(self: &Arc<Self>, client: SocketAddr, vip: BindKey) -> Holding {
        self.hold(self.row(client, vip, UdpHash::FiveTuple))
    }

    /// Counts a UDP session, whose VIP is hashed `by` that, until the guard is dropped.
    #[must_use]
    pub fn session(self: &Arc<Self>, client: SocketAddr, vip: BindKey, by: UdpHash) -> Holding {
        self.hold(self.row(client, vip, by))
    }

    fn hold(self: &Arc<Self>, row: Option<u32>) -> Holding {
        if let Some((word, block)) = row.and_then(|row| self.words(row)) {
            block.fetch_add(1, Relaxed);
            word.fetch_add(1, Relaxed);
        }
        Holding {
            held: Arc::clone(self),
            row,
        }
    }

    /// The words that count for a row.
    fn words(&self, row: u32) -> Option<(&AtomicU32, &AtomicU32)> {
        let row = row as usize;
        Some((self.rows.get(row)?, self.blocks.get(row / BLOCK)?))
    }

    /// Open connections of the rows for which `own` is false.
    pub fn foreign(&self, own: impl Fn(u32) -> bool) -> u32 {
        let blocks = self.blocks.iter().zip(self.rows.chunks(BLOCK));
        let rows = (0..ROWS).step_by(BLOCK).zip(blocks);
        let open = rows
            .filter(|(_, (block, _))| block.load(Relaxed) > 0)
            .flat_map(|(first, (_, rows))| (first..).zip(rows));
        open.map(|(row, word)| (row, word.load(Relaxed)))
            .filter(|(row, count)| *count > 0 && !own(*row))
            .fold(0, |sum, (_, count)| sum.saturating_add(count))
    }

    fn row(&self, client: SocketAddr, vip: BindKey, by: UdpHash) -> Option<u32> {
        let [a, b] = client.port().to_be_bytes();
        let [c, d] = vip.port.to_be_bytes();
        let ports = match by {
            UdpHash::FiveTuple => [a, b, c, d],
            UdpHash::Addresses => [0; 4],
        };
        let protocol = vip.transport.number();
        let flow = match (client.ip().to_canonical(), vip.address) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                flow_v4(self.key, from.octets(), to.octets(), ports, protocol)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                flow_v6(self.key, from.octets(), to.octets(), ports, protocol)
            }
            _ => return None,
        };
        Some(row_of(flow))
    }
}

/// One open connection or session.
#[derive(Debug)]
pub struct Holding {
    held: Arc<Held>,
    row: Option<u32>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some((word, block)) = self.row.and_then(|row| self.held.words(row)) {
            word.fetch_sub(1, Relaxed);
            block.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Transport;

    const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn a_connection_counts_for_the_row_that_the_kernel_steers_it_by() {
        let held = Held::new(KEY);
        let vip = BindKey {
            address: [203, 0, 113, 10].into(),
            transport: Transport::Tcp,
            port: 80,
        };
        // The golden vector of the flow hash: row 36,267.
        let client = SocketAddr::from(([192, 0, 2, 1], 0xc001));
        let first = held.connection(client, vip);
        let second = held.connection(client, vip);
        assert_eq!(held.foreign(|row| row != 36_267), 2);
        assert_eq!(held.foreign(|row| row == 36_267), 0);
        drop(first);
        assert_eq!(held.foreign(|_| false), 1);
        drop(second);
        assert_eq!(held.foreign(|_| false), 0);
        let (client, vip) = ("[2001:db8::7]:40000", "[2001:db8::1]:80");
        let vip: SocketAddr = vip.parse().unwrap();
        let client: SocketAddr = client.parse().unwrap();
        let _third = held.connection(client, vip.into());
        assert_eq!(held.foreign(|_| false), 1);
        // Hashed by addresses, all sessions of a client are in one row, and not in that of its connections.
        let four = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let udp = BindKey::new(([203, 0, 113, 10], 53).into(), Transport::Udp);
        let sessions = [1, 2].map(|port| held.session(four(port), udp, UdpHash::Addresses));
        let rows: Vec<_> = sessions.iter().map(|session| session.row).collect();
        assert!(rows[0].is_some() && rows[0] == rows[1]);
        let apart = [1, 2].map(|port| held.row(four(port), udp, UdpHash::FiveTuple));
        assert_ne!(apart[0], apart[1]);
        assert_eq!(held.foreign(|_| false), 3);
    }

    #[test]
    fn every_row_is_summed() {
        let held = Held::new(KEY);
        let rows = [0, 1, 63, 64, 127, 4_096, ROWS - 1];
        let holding: Vec<_> = rows.iter().map(|row| held.hold(Some(*row))).collect();
        let again = held.hold(Some(64));
        for row in rows {
            let own = if row == 64 { 2 } else { 1 };
            assert_eq!(held.foreign(|r| r != row), own, "{row}");
        }
        assert_eq!(held.foreign(|_| false), 8);
        drop(again);
        assert_eq!(held.foreign(|r| r != 64), 1);
        drop(holding);
        assert_eq!(held.foreign(|_| false), 0);
        let _none = held.hold(None);
        let _beyond = held.hold(Some(ROWS));
        assert_eq!(held.foreign(|_| false), 0);
    }
}
