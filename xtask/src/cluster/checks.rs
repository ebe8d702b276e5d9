//! What a machine must have before anything is started on it.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use rustix::{fs::statvfs, process::geteuid};

use super::{cgroups, layout};
use crate::{progress::Step, setup};

/// Debian's packages that nodes and control plane are made with.
const PACKAGES: [&str; 7] = [
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "nftables",
    "iproute2",
    "openssl",
];
/// Space that a cluster may take: images, logs and what pods write.
const SPACE_GIB: u64 = 5;

/// Refuses early what would fail late.
pub(super) fn machine() -> Result<String> {
    root()?;
    cgroups::check()?;
    let states = layout::states();
    fs::create_dir_all(&states).with_context(|| format!("cannot create {}", states.display()))?;
    let free = space(&states, SPACE_GIB, "a cluster")?;
    Ok(format!("cgroup version 1, {free} GiB free"))
}

pub(crate) fn root() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "a cluster is made of namespaces, mounts and cgroups: run `sudo -E cargo xtask cluster …`"
    );
    Ok(())
}

pub(super) fn packages(step: &Step) -> Result<String> {
    let said = setup::packages(step, &PACKAGES)?;
    ensure!(
        Path::new("/usr/lib/cni/bridge").is_file(),
        "no CNI plugins in /usr/lib/cni: install Debian's containernetworking-plugins or put them there"
    );
    Ok(said)
}

/// The free space there in GiB, if it is enough for `what`.
pub(super) fn space(path: &Path, wanted: u64, what: &str) -> Result<u64> {
    let found =
        statvfs(path).with_context(|| format!("cannot ask for space in {}", path.display()))?;
    let free = (found.f_bavail * found.f_frsize) >> 30;
    ensure!(
        free >= wanted,
        "{what} takes up to {wanted} GiB, and {free} GiB are free in {}",
        path.display()
    );
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_one_sentence() {
        let error = space(Path::new("/"), u64::MAX, "a cluster").unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("a cluster takes up to "), "{error}");
        assert!(error.ends_with(" GiB are free in /"), "{error}");
    }
}
