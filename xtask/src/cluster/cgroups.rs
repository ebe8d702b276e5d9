//! One cgroup for each cluster in every version 1 hierarchy: the kubelets keep their pods below it, and what is in it
//! is what a removal ends. Membership cannot be left by forking, and a reused process number is not in it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    layout::{Name, Node},
    wait::{Interrupt, until},
};

/// Where hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// What `/proc/self/mounts` calls them.
const VERSION_1: &str = "cgroup";
const VERSION_2: &str = "cgroup2";
/// The hierarchy that holds the daemons too.
const PIDS: &str = "pids";
/// What kubelet needs.
const NEEDED: [&str; 5] = ["cpu", "cpuset", "memory", "devices", PIDS];
/// The daemons' own, beside the nodes'.
const DAEMONS: &str = "daemons";

/// One sentence if this machine does not have the hierarchies.
pub(super) fn check() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|controller| {
            !Path::new(ROOT)
                .join(controller)
                .join("cgroup.procs")
                .is_file()
        })
        .collect();
    ensure!(
        missing.is_empty(),
        "no cgroup version 1 hierarchy for {} in {ROOT}: the cluster runs on hosts with version 1 only",
        missing.join(", ")
    );
    Ok(())
}

/// Makes the cluster's cgroups.
pub(super) fn make(cluster: &Name, nodes: u8) -> Result<()> {
    for hierarchy in hierarchies(&[VERSION_1])? {
        let top = hierarchy.join(cluster.cgroup());
        let mut made = vec![top.clone(), top.join(DAEMONS)];
        made.extend(Node::all(nodes).map(|node| top.join(node.to_string())));
        for group in made {
            fs::create_dir_all(&group)
                .with_context(|| format!("cannot create {}", group.display()))?;
            inherit_cpuset(&group)?;
        }
    }
    Ok(())
}

/// A cpuset is empty at first, and takes no process then.
fn inherit_cpuset(group: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = group.join(name);
        let above = group.parent().map(|parent| parent.join(name));
        if let (true, Some(above)) = (file.is_file(), above) {
            fs::copy(&above, &file).with_context(|| format!("cannot fill {}", file.display()))?;
        }
    }
    Ok(())
}

/// Where a process writes its number to be one of the cluster's daemons.
pub(super) fn daemons(cluster: &Name) -> PathBuf {
    Path::new(ROOT)
        .join(PIDS)
        .join(cluster.cgroup())
        .join(DAEMONS)
        .join("cgroup.procs")
}

/// What kubelet calls the node's cgroup.
pub(super) fn of_node(cluster: &Name, node: Node) -> String {
    format!("/{}/{node}", cluster.cgroup())
}

/// The processes in a node's pods.
pub(super) fn in_pods(cluster: &Name, node: Node) -> BTreeSet<i32> {
    let top = Path::new(ROOT).join(PIDS).join(cluster.cgroup());
    members(&top.join(node.to_string()))
}

/// Ends every process of the cluster: daemons, shims, and what runs in pods.
pub(super) fn kill(cluster: &Name) -> Result<usize> {
    let top = Path::new(ROOT).join(PIDS).join(cluster.cgroup());
    let mut ended: BTreeSet<i32> = BTreeSet::new();
    let mut left = usize::MAX;
    let what = format!("the end of the processes in {}", top.display());
    // Whoever removes a cluster wants it gone: no signal ends this.
    until(
        &Interrupt::default(),
        &what,
        Duration::from_secs(60),
        || {
            let found = members(&top);
            for &pid in &found {
                if let Some(pid) = Pid::from_raw(pid) {
                    // It may have ended by itself: the next look tells.
                    kill_process(pid, Signal::KILL).ok();
                }
            }
            ended.extend(&found);
            left = found.len();
            Ok((left == 0).then_some(()))
        },
    )
    .with_context(|| format!("{left} processes do not end"))?;
    Ok(ended.len())
}

fn members(group: &Path) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for group in below(group) {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    found
}

/// Removes the cluster's cgroups in all hierarchies, also those that runc has made in one of version 2 beside the others;
/// they hold no process any more.
pub(super) fn remove(cluster: &Name) -> Result<()> {
    for hierarchy in hierarchies(&[VERSION_1, VERSION_2])? {
        let top = hierarchy.join(cluster.cgroup());
        let what = format!("the removal of {}", top.display());
        until(
            &Interrupt::default(),
            &what,
            Duration::from_secs(20),
            || {
                // The deepest first; one that is still busy is tried again.
                for group in below(&top).iter().rev() {
                    drop(fs::remove_dir(group));
                }
                Ok((!top.is_dir()).then_some(()))
            },
        )?;
    }
    Ok(())
}

/// Whether a cgroup of this cluster is left.
pub(super) fn exist(cluster: &Name) -> bool {
    hierarchies(&[VERSION_1, VERSION_2])
        .is_ok_and(|all| all.iter().any(|top| top.join(cluster.cgroup()).is_dir()))
}

/// `group` and all below it, parents first.
fn below(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else {
        return Vec::new();
    };
    let mut found = vec![group.to_path_buf()];
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
    }
    found
}

fn hierarchies(kinds: &[&str]) -> Result<Vec<PathBuf>> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(of_kinds(&mounts, kinds))
}

/// Mount points of hierarchies.
fn of_kinds(mounts: &str, kinds: &[&str]) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            (kinds.contains(&kind) && place.starts_with(ROOT)).then(|| PathBuf::from(place))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart_by_version() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /mnt/elsewhere cgroup rw,pids 0 0\n";
        let first = Path::new("/sys/fs/cgroup/cpu,cpuacct");
        let second = Path::new("/sys/fs/cgroup/unified");
        assert_eq!(of_kinds(mounts, &[VERSION_1]), [first]);
        assert_eq!(of_kinds(mounts, &[VERSION_1, VERSION_2]), [first, second]);
    }

    #[test]
    fn parents_come_before_what_is_in_them() {
        let top = std::env::temp_dir().join(format!("forebay-cgroups-{}", std::process::id()));
        fs::create_dir_all(top.join("a/b")).unwrap();
        assert_eq!(below(&top), [top.clone(), top.join("a"), top.join("a/b")]);
        fs::remove_dir_all(&top).unwrap();
        assert!(below(&top).is_empty());
    }
}
