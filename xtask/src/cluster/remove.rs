//! Removal of a cluster, in whatever state it is: what there is follows from the cluster's name alone.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{cgroups, layout::Name, network};
use crate::{cmd, paths};

/// Whether anything of the cluster is there.
pub(super) fn is_there(cluster: &Name) -> bool {
    cluster.state().exists() || cgroups::exist(cluster) || !network::existing(cluster).is_empty()
}

/// Removes everything, at last the lock that the caller holds, and says what it was.
pub(super) fn all(cluster: &Name) -> Result<String> {
    // Mounts of nodes and pods go with the processes: they are in the nodes' mount namespaces only.
    let processes = cgroups::kill(cluster)?;
    unmount(&cluster.state())?;
    let namespaces = network::remove(cluster)?;
    cgroups::remove(cluster)?;
    let state = cluster.state();
    if state.exists() {
        fs::remove_dir_all(&state).with_context(|| format!("cannot remove {}", state.display()))?;
    }
    fs::remove_file(cluster.lock()).context("cannot remove the cluster's lock")?;
    Ok(format!("{processes} processes, {namespaces} namespaces"))
}

/// What somebody has mounted there by hand.
fn unmount(state: &Path) -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    for place in mounted_below(&mounts, state).into_iter().rev() {
        cmd::output(Command::new("umount").args(["--lazy", place]))?;
    }
    Ok(())
}

fn mounted_below<'a>(mounts: &'a str, folder: &Path) -> Vec<&'a str> {
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places
        .filter(|place| Path::new(place).starts_with(folder))
        .collect()
}

/// Keeps the logs of a cluster that could not be started.
pub(super) fn keep_logs(cluster: &Name) -> Result<String> {
    let kept = paths::target().join("cluster").join(cluster.to_string());
    fs::create_dir_all(&kept).with_context(|| format!("cannot create {}", kept.display()))?;
    let logs = fs::read_dir(cluster.logs()).context("there are no logs")?;
    for log in logs.flatten() {
        fs::copy(log.path(), kept.join(log.file_name())).context("cannot copy a log")?;
    }
    Ok(kept.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_the_same_cluster_are_taken() {
        let mounts = "a /var/lib/forebay-cluster/dev/x tmpfs rw 0 0\n\
                      b /var/lib/forebay-cluster/dev2/x tmpfs rw 0 0\n\
                      c /var/lib/forebay-cluster/dev/x/y tmpfs rw 0 0\n";
        assert_eq!(
            mounted_below(mounts, Path::new("/var/lib/forebay-cluster/dev")),
            [
                "/var/lib/forebay-cluster/dev/x",
                "/var/lib/forebay-cluster/dev/x/y"
            ]
        );
    }
}
