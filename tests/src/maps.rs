//! A look into a node's pinned maps: counters and rows, read by system calls, nothing written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, Map, MapData};
use gateway_common::abi::{Config, Counter, NodeEntry, ROWS, Row, VipEntry, map};
use gateway_user::datapath::look::Look;

/// A counter's sum over all CPUs.
///
/// # Errors
/// If the node's maps are not pinned below `bpffs`.
pub fn counter(bpffs: &Path, counter: Counter) -> Result<u64> {
    let look = Look::open(bpffs)?;
    let counts = look.counters()?;
    let sum = counts.reasons.get(counter.name());
    sum.copied()
        .with_context(|| format!("no counter {}", counter.name()))
}

/// Rows that are in transition.
///
/// # Errors
/// If the node's maps are not pinned below `bpffs`.
pub fn rows_in_transition(bpffs: &Path) -> Result<usize> {
    let rows = words(bpffs, map::ROWS)?;
    let mut count = 0;
    for row in 0..ROWS {
        let bits = rows
            .get(&row, 0)
            .with_context(|| format!("cannot read row {row}"))?;
        count += usize::from(Row(bits).in_transition());
    }
    Ok(count)
}

fn words(bpffs: &Path, name: &str) -> Result<Array<MapData, u64>> {
    let Some(path) = find(bpffs, name) else {
        bail!("no map {name} is pinned below {}", bpffs.display())
    };
    let data =
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Array::try_from(Map::Array(data))
        .with_context(|| format!("{} is no array of words", path.display()))
}

/// The pin with this name; it may lie in a directory of its ABI version.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let here = entries
        .iter()
        .find(|path| path.file_name().is_some_and(|file| file == name) && !path.is_dir());
    here.cloned().or_else(|| {
        entries
            .iter()
            .filter(|path| path.is_dir())
            .find_map(|path| find(path, name))
    })
}

/// What the agent alone writes: configuration, nodes, VIPs, loopback ports, as bytes one after the other.
///
/// # Errors
/// If the node's maps are not pinned below `bpffs`.
pub fn guarded(bpffs: &Path) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    all.extend(bytes::<{ size_of::<Config>() }>(bpffs, map::CONFIG)?);
    all.extend(bytes::<{ size_of::<NodeEntry>() }>(bpffs, map::NODES)?);
    all.extend(bytes::<{ size_of::<VipEntry>() }>(bpffs, map::VIPS)?);
    all.extend(bytes::<8>(bpffs, map::PORTS)?);
    Ok(all)
}

fn bytes<const SIZE: usize>(bpffs: &Path, name: &str) -> Result<Vec<u8>> {
    let Some(path) = find(bpffs, name) else {
        bail!("no map {name} is pinned below {}", bpffs.display())
    };
    let data =
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let array: Array<MapData, [u8; SIZE]> = Array::try_from(Map::Array(data))
        .with_context(|| format!("{} is no array of {SIZE} bytes", path.display()))?;
    let mut all = Vec::new();
    for value in array.iter() {
        all.extend(value.with_context(|| format!("cannot read {name}"))?);
    }
    Ok(all)
}
