//! The modules that the tests need of a kernel, with all that these need, in the order in which they are loaded.
//!
//! Packages bring no `modules.dep`: what a module needs is in itself (`depends=` of its section `.modinfo`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{cmd, source};

/// What the tests need. A kernel may have any of them built in, and some have other names for none at all: what is in no
/// kernel is missed by the tests that use it.
const WANTED: [&str; 14] = [
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "veth",
    "bridge",
    "8021q",
    "dummy",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_fq_codel",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
];

/// Without these there are no results, and nothing to attach to.
const NEEDED: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_net", "veth"];

/// A module ready to be loaded: its name and its bytes.
pub(super) type Module = (String, Vec<u8>);

/// All modules to load, from the directory of a kernel's modules (`lib/modules/RELEASE`).
pub(super) fn closure(directory: &Path) -> Result<Vec<Module>> {
    let built_in = fs::read_to_string(directory.join("modules.builtin")).with_context(|| {
        format!(
            "there is no modules.builtin in {}: give a kernel's lib/modules/RELEASE",
            directory.display()
        )
    })?;
    let files: BTreeMap<String, PathBuf> = source::files(directory)?
        .into_iter()
        .filter_map(|path| Some((name_of(path.file_name()?.to_str()?)?, path)))
        .collect();
    let mut order = Order {
        built_in: built_in.lines().filter_map(of_line).collect(),
        files,
        seen: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in WANTED {
        let found = order.add(name)?;
        if !found && NEEDED.contains(&name) {
            bail!(
                "the kernel has no {name}, neither built in nor in {}",
                directory.display()
            );
        }
    }
    Ok(order.modules)
}

struct Order {
    built_in: BTreeSet<String>,
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order {
    /// Adds a module after those that it needs; whether the kernel has it.
    fn add(&mut self, name: &str) -> Result<bool> {
        if self.built_in.contains(name) || self.seen.contains(name) {
            return Ok(true);
        }
        let Some(path) = self.files.get(name) else {
            return Ok(false);
        };
        self.seen.insert(name.to_owned());
        let bytes = unpacked(path)?;
        for needed in depends(&bytes) {
            if !self.add(&needed)? {
                bail!("the module {name} needs {needed}, which the kernel has not");
            }
        }
        self.modules.push((name.to_owned(), bytes));
        Ok(true)
    }
}

/// A line of `modules.builtin`: a path.
fn of_line(line: &str) -> Option<String> {
    name_of(line.rsplit('/').next()?)
}

/// The module in a file of this name. `-` and `_` are the same in names of modules.
fn name_of(file: &str) -> Option<String> {
    let (name, end) = file.split_once(".ko")?;
    matches!(end, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

/// What a module says that it needs.
fn depends(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let found = module.windows(FIELD.len()).position(|at| at == FIELD);
    let Some(at) = found else {
        return Vec::new();
    };
    let rest = &module[at + FIELD.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&rest[..end]);
    text.split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut command = Command::new(program);
    cmd::bytes(command.arg("-dc").arg(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=net_failover,virtio-ring\0name=virtio_net\0";
        assert_eq!(depends(module), ["net_failover", "virtio_ring"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"none").is_empty());
    }

    #[test]
    fn names_of_files_are_names_of_modules() {
        assert_eq!(name_of("cls_bpf.ko.xz").as_deref(), Some("cls_bpf"));
        assert_eq!(name_of("nft-chain.ko").as_deref(), Some("nft_chain"));
        assert_eq!(name_of("modules.order"), None);
        assert_eq!(
            of_line("kernel/drivers/virtio/virtio.ko").as_deref(),
            Some("virtio")
        );
    }

    #[test]
    fn modules_come_after_those_that_they_need() {
        let folder = std::env::temp_dir().join(format!("forebay-modules-{}", std::process::id()));
        fs::create_dir_all(folder.join("kernel")).unwrap();
        fs::write(folder.join("modules.builtin"), "kernel/virtio_pci.ko\n").unwrap();
        let write = |name: &str, depends: &str| {
            let text = format!("\0depends={depends}\0");
            fs::write(folder.join("kernel").join(name), text).unwrap();
        };
        write("virtio_net.ko", "net_failover,virtio_pci");
        write("net_failover.ko", "failover");
        write("failover.ko", "");
        write("virtio_console.ko", "");
        let error = closure(&folder).unwrap_err().to_string();
        assert!(error.starts_with("the kernel has no veth"), "{error}");
        write("veth.ko", "");
        let names: Vec<String> = closure(&folder).unwrap().into_iter().map(|m| m.0).collect();
        assert_eq!(
            names,
            [
                "virtio_console",
                "failover",
                "net_failover",
                "virtio_net",
                "veth"
            ]
        );
        write("veth.ko", "gone");
        let error = closure(&folder).unwrap_err().to_string();
        assert!(error.starts_with("the module veth needs gone"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
