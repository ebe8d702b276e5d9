//! A node: a network, mount and UTS namespace that one process holds, with containerd, kubelet and kube-proxy in them.
//!
//! In its mount namespace a node has `/run`, `/run/forebay`, `/var/log`, `/var/lib/kubelet`, `/var/lib/cni` and
//! `/sys/fs/bpf` of its own; every mount that the node or its pods make ends with the last process there, and none is seen outside.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{
    binaries::Binaries,
    config,
    control::{PATIENCE, alive, objects, write},
    layout::{API_SERVICE, MOST_NODES, Name, Node},
    network, processes,
    wait::{Interrupt, until},
};
use crate::oci;

/// `$1` is the node's folder, `$2` its name. Mounts of others that this namespace copies would live as long as it
/// does: network namespaces and pinned kernel programs are let go.
const HOLD: &str = r#"
set -e
mounts=$(cat /proc/self/mounts)
echo "$mounts" | while read -r _ where kind _; do
    case $kind in bpf | nsfs) umount -l "$where" || true ;; esac
done
hostname "$2"
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/netns /run/forebay /var/lib/kubelet /var/lib/cni
mount -t tmpfs -o mode=755 forebay /run/forebay
mount --bind "$1/log" /var/log
mount --bind "$1/var-kubelet" /var/lib/kubelet
mount --bind "$1/var-cni" /var/lib/cni
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
: > "$1/ready"
exec sleep infinity
"#;

/// Makes a node's folder and starts what holds its namespaces, then containerd.
pub(super) fn start(interrupt: &Interrupt, cluster: &Name, node: Node) -> Result<()> {
    folder(cluster, node)?;
    let folder = cluster.of(node);
    let holder = holder(node);
    let mut words = vec!["nsenter".to_owned()];
    words.extend(network::enter(&cluster.namespace(node)));
    words.extend(
        [
            "unshare",
            "--mount",
            "--uts",
            "--propagation",
            "private",
            "sh",
            "-c",
            HOLD,
            "node",
        ]
        .map(str::to_owned),
    );
    words.extend([folder.display().to_string(), node.to_string()]);
    processes::start(cluster, &holder, &words)?;
    until(
        interrupt,
        &format!("the mounts of {node}"),
        PATIENCE,
        || {
            processes::require(cluster, &holder)?;
            Ok(folder.join("ready").exists().then_some(()))
        },
    )?;
    let config = folder.join("containerd.toml").display().to_string();
    daemon(
        cluster,
        node,
        "containerd",
        &["containerd", "--config", &config],
    )
}

/// Waits for containerd, brings the image of pods' first process, starts kubelet and kube-proxy.
pub(super) fn join(
    interrupt: &Interrupt,
    cluster: &Name,
    node: Node,
    binaries: &Binaries,
) -> Result<()> {
    let socket = format!("/proc/{}/root{}", pid(cluster, node)?, config::CONTAINERD);
    until(
        interrupt,
        &format!("containerd on {node}"),
        PATIENCE,
        || {
            processes::require(cluster, &format!("{node}-containerd"))?;
            Ok(Path::new(&socket).exists().then_some(()))
        },
    )?;
    load(cluster, node, &pause(cluster))?;
    let program = |name: &str| binaries.path(name).display().to_string();
    let mut kubelet = vec![program("kubelet")];
    kubelet.extend(config::kubelet_arguments(cluster, node));
    daemon(cluster, node, "kubelet", &kubelet)?;
    let config = cluster.of(node).join("proxy.json");
    let config = format!("--config={}", config.display());
    daemon(
        cluster,
        node,
        "kube-proxy",
        &[program("kube-proxy"), config],
    )
}

/// Waits until all nodes are ready, and reach the API server by its Service, which is kube-proxy's work.
pub(super) fn ready(
    interrupt: &Interrupt,
    cluster: &Name,
    nodes: u8,
    binaries: &Binaries,
) -> Result<()> {
    until(interrupt, "ready nodes", PATIENCE, || {
        alive(cluster)?;
        let ready = objects(cluster, "nodes").map_or(0, |found| {
            found.iter().filter(|node| is_ready(node)).count()
        });
        Ok((ready == usize::from(nodes)).then_some(()))
    })?;
    for node in Node::all(nodes) {
        let what = format!("the API server's Service on {node}");
        until(interrupt, &what, PATIENCE, || {
            alive(cluster)?;
            let mut kubectl = network::inside(&cluster.namespace(node));
            kubectl
                .arg(binaries.path("kubectl"))
                .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
                .arg(format!("--server=https://{API_SERVICE}"))
                .args(["--request-timeout=2s", "get", "--raw", "/livez"]);
            Ok(crate::cmd::output(&mut kubectl).ok())
        })?;
    }
    Ok(())
}

/// Whether a Node object says so.
pub(super) fn is_ready(node: &serde_json::Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Imports an OCI archive.
pub(super) fn load(cluster: &Name, node: Node, archive: &Path) -> Result<()> {
    // Handed over open: the node may have something else at the same path.
    let file = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let mut command = Command::new("nsenter");
    command
        .args(enter(cluster, node)?)
        .args([
            "ctr",
            "--address",
            config::CONTAINERD,
            "--namespace",
            "k8s.io",
        ])
        .args(["images", "import", "-"])
        .stdin(file);
    let said = command.output().context("cannot run nsenter")?;
    ensure!(
        said.status.success(),
        "{node} does not take {}: {}",
        archive.display(),
        String::from_utf8_lossy(&said.stderr).trim()
    );
    Ok(())
}

/// Gives an image of a node another name too.
pub(super) fn tag(cluster: &Name, node: Node, image: &str, other: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command
        .args(enter(cluster, node)?)
        .args(["ctr", "--address", config::CONTAINERD, "--namespace"])
        .args(["k8s.io", "images", "tag", "--force", image, other]);
    crate::cmd::output(&mut command).map(drop)
}

/// Writes the image of pods' first process, once for all nodes.
pub(super) fn write_pause(cluster: &Name, binaries: &Binaries) -> Result<()> {
    let path = binaries.path("pause");
    let program = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let image = oci::Image {
        names: vec![config::PAUSE.to_owned()],
        layers: vec![vec![oci::Entry::program("pause", program)]],
        start: oci::Start {
            entrypoint: vec!["/pause".to_owned()],
            user: "65532:65532".to_owned(),
        },
        ..oci::Image::default()
    };
    image.write(&pause(cluster)).map(drop)
}

/// The nodes that a cluster was started with.
pub(super) fn of_cluster(cluster: &Name) -> Vec<Node> {
    Node::all(MOST_NODES)
        .take_while(|&node| cluster.of(node).is_dir())
        .collect()
}

/// The words that take `nsenter` into a node.
pub(super) fn enter(cluster: &Name, node: Node) -> Result<Vec<String>> {
    let pid = pid(cluster, node)?.to_string();
    Ok(["--target", &pid, "--net", "--mount", "--uts"]
        .map(str::to_owned)
        .to_vec())
}

/// The process that holds a node's namespaces.
fn pid(cluster: &Name, node: Node) -> Result<u32> {
    processes::find(cluster, &holder(node))
        .map(|record| record.pid)
        .with_context(|| format!("{node} of {cluster} does not run"))
}

fn holder(node: Node) -> String {
    node.to_string()
}

fn pause(cluster: &Name) -> std::path::PathBuf {
    cluster.state().join("pause.tar")
}

fn folder(cluster: &Name, node: Node) -> Result<()> {
    let folder = cluster.of(node);
    for name in [
        "cni",
        "log/pods",
        "log/containers",
        "var-kubelet",
        "var-cni",
        "kubelet",
    ] {
        let path = folder.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    write(
        &folder.join("resolv.conf"),
        "# Nothing resolves names here.\n",
    )?;
    write(
        &folder.join("cni/10-bridge.conflist"),
        config::cni(cluster, node).to_string(),
    )?;
    write(
        &folder.join("containerd.toml"),
        config::containerd(cluster, node),
    )?;
    write(
        &folder.join("kubelet.json"),
        config::kubelet(cluster, node).to_string(),
    )?;
    write(
        &folder.join("proxy.json"),
        config::proxy(cluster, node).to_string(),
    )
}

fn daemon(cluster: &Name, node: Node, name: &str, command: &[impl AsRef<str>]) -> Result<()> {
    let mut words = vec!["nsenter".to_owned()];
    words.extend(enter(cluster, node)?);
    words.extend(command.iter().map(|word| word.as_ref().to_owned()));
    processes::start(cluster, &format!("{node}-{name}"), &words)
}
