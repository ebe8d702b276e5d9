//! The same plain path in C, built by clang for this run: what the compiler of the Rust program costs or saves.

use std::fmt::Write;
use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gateway_common::abi::{
    ABI_VERSION, COUNTERS_PER_CPU, Config, Counter, MAX_CPUS, MAX_NODES, NodeEntry, PATHS,
    Path as NodePath, ROWS, VIP_PROBES, VIP_SLOTS, VipCell, VipEntry, config::flag, node_flag,
    vip_flag,
};
use gateway_common::probe::view;

use crate::bench::report::output;

/// The compilers that will do, in the order in which they are tried.
const COMPILERS: [&str; 2] = ["clang-22", "clang"];

/// Programs of the object.
pub(super) const PROGRAMS: [&str; 4] = ["c_stub", "c_push", "c_decide", "c_forward"];

/// What stands in the way of the comparison, or the compiler's name and the object.
pub(super) type Peer = Result<(String, PathBuf)>;

/// Builds `forward.c` from `sources` in `work`.
pub(super) fn build(sources: &Path, work: &Path) -> Peer {
    let found = COMPILERS
        .iter()
        .map(|name| (name, output(name, &["--version"])))
        .find(|(_, version)| !version.is_empty());
    let (compiler, version) = found.context("no clang on this machine")?;
    fs::write(work.join("layout.h"), layout()).context("cannot write the layout for C")?;
    let object = work.join("forward.o");
    let built = Command::new(compiler)
        .args([
            "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror",
        ])
        .arg("-I")
        .arg(work)
        .arg("-c")
        .arg(sources.join("forward.c"))
        .arg("-o")
        .arg(&object)
        .output()
        .with_context(|| format!("cannot run {compiler}"))?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success(),
        "{compiler} refuses forward.c: {}",
        said.trim()
    );
    Ok((version, object))
}

/// Sizes, offsets, flags and counters of the tables, as the C source includes them.
fn layout() -> String {
    let sizes = [
        ("ABI_VERSION", ABI_VERSION),
        ("ROW_COUNT", ROWS),
        ("VIP_SLOTS", VIP_SLOTS),
        ("VIP_PROBES", VIP_PROBES),
        ("MAX_NODES", MAX_NODES),
        ("MAX_CPUS", MAX_CPUS),
        ("COUNTERS_PER_CPU", COUNTERS_PER_CPU),
        ("PATHS", PATHS),
        ("CELL_L2", NodePath::L2.cell(0)),
        ("CELL_UDP", NodePath::Udp.cell(0)),
        ("CELL_VIP_OWNED", VipCell::Owned.cell(0)),
        ("CELL_VIP_OTHER", VipCell::Other.cell(0)),
        ("VIP_USED", vip_flag::USED),
        ("VIP_SHARED", vip_flag::SHARED),
        ("VIP_DRAINING", vip_flag::DRAINING),
        ("VIP_LOCAL_ONLY", vip_flag::LOCAL_ONLY),
        ("VIP_BY_ADDRESSES", vip_flag::BY_ADDRESSES),
        ("NODE_LISTED", node_flag::LISTED),
        ("NODE_RESOLVED", node_flag::RESOLVED),
        ("NODE_ON_LINK", node_flag::ON_LINK),
        ("NODE_ENCAPSULATE", node_flag::ENCAPSULATE),
        ("VIEW_SUSPECT", u32::from(view::SUSPECT)),
        ("ENCAP_ALWAYS", flag::ENCAP_ALWAYS),
        ("DRAINING", flag::DRAINING),
    ];
    let places = [
        ("CONFIG_SIZE", size_of::<Config>()),
        ("CONFIG_HASH_KEY", offset_of!(Config, hash_key)),
        ("CONFIG_TUNNEL_SOURCE", offset_of!(Config, tunnel_source)),
        ("VIP_SIZE", size_of::<VipEntry>()),
        ("VIP_FLAGS", offset_of!(VipEntry, flags)),
        ("VIP_NUMBER", offset_of!(VipEntry, number)),
        ("VIP_SOURCES", offset_of!(VipEntry, sources)),
        ("NODE_SIZE", size_of::<NodeEntry>()),
        ("NODE_MAC", offset_of!(NodeEntry, mac)),
        ("NODE_FLAGS", offset_of!(NodeEntry, flags)),
        ("NODE_BY_MAC", offset_of!(NodeEntry, by_mac)),
    ];
    let mut text = String::from("// Written by the benchmark.\n");
    for (name, value) in sizes {
        let _ = writeln!(text, "#define {name} {value}u");
    }
    for (name, value) in places {
        let _ = writeln!(text, "#define {name} {value}");
    }
    for counter in Counter::ALL {
        let name = counter.name().to_uppercase();
        let _ = writeln!(text, "#define COUNTER_{name} {}", counter.slot());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_names_all_that_the_source_uses() {
        let (text, source) = (layout(), include_str!("../../../bench-peers/forward.c"));
        let defined: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("#define ")?.split(' ').next())
            .collect();
        let used = source
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("COUNTER_") || word.starts_with("NODE_"));
        for word in used {
            assert!(defined.contains(&word), "{word}");
        }
        assert!(text.contains("#define VIP_SIZE 32\n"), "{text}");
        assert!(text.contains("#define COUNTER_NOT_OURS 0\n"), "{text}");
    }
}
