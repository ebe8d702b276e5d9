//! What stands beside the path of packets: rows computed and swapped, VIPs placed, memory of the maps.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use gateway_common::abi::{MAX_SOURCES, NodeIndex, ROWS, SOURCE_ALLOWED, SourceKey, VipKey, map};
use gateway_common::rendezvous::name_hash;
use gateway_user::l4::ranks::{Ranked, Ranks, Standing};
use gateway_user::l4::tables::vip_half;
use serde::Serialize;

use super::kernel::{Kernel, Verified};
use super::tables::{MANY, OTHER, SELF, Tables, vips};

/// Nodes of the largest membership that is promised.
const NODES: NodeIndex = 256;

/// Milliseconds of each round, bytes, and what the verifier said.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Beside {
    pub(super) verified: BTreeMap<String, Verified>,
    pub(super) rows_from_scratch_ms: Vec<f64>,
    pub(super) node_comes_ms: Vec<f64>,
    pub(super) node_goes_ms: Vec<f64>,
    pub(super) node_drains_ms: Vec<f64>,
    pub(super) swap_ms: Vec<f64>,
    pub(super) vips_placed_ms: Vec<f64>,
    pub(super) vips_placed: usize,
    pub(super) map_bytes: BTreeMap<String, u64>,
}

/// Measures all of it, on this thread.
pub(super) fn run(kernel: &mut Kernel, tables: &Tables, rounds: usize) -> Result<Beside> {
    let mut beside = Beside {
        verified: kernel.verified.clone(),
        ..Beside::default()
    };
    // One round more, which warms caches and takes the page faults.
    for round in 0..=rounds {
        let ranked = ranks(round);
        let swapped = swap(kernel, tables, round)?;
        let placed = place(&mut beside.vips_placed)?;
        if round > 0 {
            let [scratch, comes, goes, drains] = ranked;
            beside.rows_from_scratch_ms.push(scratch);
            beside.node_comes_ms.push(comes);
            beside.node_goes_ms.push(goes);
            beside.node_drains_ms.push(drains);
            beside.swap_ms.push(swapped);
            beside.vips_placed_ms.push(placed);
        }
    }
    fill_sources(kernel)?;
    beside.map_bytes = kernel.memory()?;
    Ok(beside)
}

fn elapsed(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0
}

/// Milliseconds until the rows are there: of 256 nodes from scratch, and after one came, went, or began to drain.
fn ranks(round: usize) -> [f64; 4] {
    let key = [round as u64, 7];
    let node = |index: NodeIndex| Ranked {
        name_hash: name_hash(key, &format!("node-{index}")),
        weight: 1,
    };
    let all: BTreeMap<NodeIndex, Ranked> = (1..=NODES).map(|index| (index, node(index))).collect();
    let ready = Standing {
        ready: true,
        ..Standing::default()
    };
    let mut standing: BTreeMap<NodeIndex, Standing> =
        (1..=NODES).map(|index| (index, ready)).collect();
    let mut ranks = Ranks::default();
    let start = Instant::now();
    ranks.update(&all);
    black_box(ranks.rows(&standing, false));
    let scratch = elapsed(start);

    let which = 1 + (round as NodeIndex * 37) % NODES;
    let mut fewer = all.clone();
    fewer.remove(&which);
    let start = Instant::now();
    ranks.update(&fewer);
    black_box(ranks.rows(&standing, false));
    let goes = elapsed(start);

    let start = Instant::now();
    ranks.update(&all);
    black_box(ranks.rows(&standing, false));
    let comes = elapsed(start);

    let draining = Standing {
        ready: false,
        holds: true,
        settling: false,
    };
    standing.insert(which, draining);
    let start = Instant::now();
    ranks.update(&all);
    black_box(ranks.rows(&standing, false));
    [scratch, comes, goes, elapsed(start)]
}

/// Milliseconds of storing every row through shared memory, as the daemon does; the table changes with each.
fn swap(kernel: &Kernel, tables: &Tables, round: usize) -> Result<f64> {
    let owner = u64::from(if round.is_multiple_of(2) { OTHER } else { SELF });
    let start = Instant::now();
    for row in tables.rows.words() {
        row.store(owner, Ordering::Release);
    }
    let taken = elapsed(start);
    ensure!(
        kernel.get::<u64>(map::ROWS, ROWS - 1)? == owner,
        "the run is void: the kernel does not see the stored rows"
    );
    Ok(taken)
}

/// Milliseconds of finding a slot for each of 2,000 VIPs and their addresses.
fn place(placed: &mut usize) -> Result<f64> {
    let entries = vips(MANY);
    let start = Instant::now();
    let half = vip_half(&entries);
    let taken = elapsed(start);
    let ports = half
        .slots
        .iter()
        .filter(|(_, entry)| entry.key.protocol != 0);
    *placed = ports.count();
    ensure!(
        half.slots.len() == entries.len(),
        "{} of {} VIP entries found no slot",
        entries.len() - half.slots.len(),
        entries.len()
    );
    Ok(taken)
}

/// Fills the lists of sources, which grow as they are used: memory is counted at its highest.
fn fill_sources(kernel: &mut Kernel) -> Result<()> {
    let mut trie: LpmTrie<_, [u8; 20], u32> = LpmTrie::try_from(kernel.map_mut(map::SOURCES)?)?;
    for source in 0..MAX_SOURCES {
        let address = VipKey::v4((0x0a00_0000 + source).to_be_bytes(), [0; 2], 0).address;
        let key = SourceKey::new(1, address);
        let bits = 8 * size_of::<SourceKey>() as u32;
        trie.insert(&Key::new(bits, bytemuck::cast(key)), SOURCE_ALLOWED, 0)
            .context("cannot fill the lists of sources")?;
    }
    Ok(())
}
