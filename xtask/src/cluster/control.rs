//! The control plane, in the hub: etcd, API server, controller manager, scheduler.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde_json::Value;

use super::{
    binaries::Binaries,
    config,
    layout::{Name, Node},
    network, pki, processes,
    wait::{Interrupt, until},
};
use crate::cmd;

/// Longest wait for any one thing on a machine that has other things to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// Certificates, kubeconfigs and the user's `kubectl`.
pub(super) fn prepare(cluster: &Name, nodes: u8, binaries: &Binaries) -> Result<()> {
    pki::make(cluster, nodes)?;
    let mut clients = vec!["controller-manager".to_owned(), "scheduler".to_owned()];
    clients.push("proxy".to_owned());
    clients.extend(Node::all(nodes).map(|node| node.to_string()));
    for client in clients {
        let path = cluster.pki().join(format!("{client}.kubeconfig"));
        write_secret(&path, &config::kubeconfig(cluster, &client))?;
    }
    write_secret(&cluster.kubeconfig(), &config::kubeconfig(cluster, "admin"))?;
    let kubectl = cluster.kubectl();
    let text = config::kubectl(cluster, &binaries.path("kubectl"));
    write(&kubectl, text)?;
    fs::set_permissions(&kubectl, Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} a program", kubectl.display()))
}

/// Starts what answers requests.
pub(super) fn start(cluster: &Name, binaries: &Binaries) -> Result<()> {
    daemon(cluster, binaries, "etcd", config::etcd(cluster))?;
    daemon(
        cluster,
        binaries,
        "kube-apiserver",
        config::apiserver(cluster),
    )
}

/// Waits for the API server, then starts what works with it: the controller manager would end for good before.
pub(super) fn finish(interrupt: &Interrupt, cluster: &Name, binaries: &Binaries) -> Result<()> {
    until(interrupt, "the API server", PATIENCE, || {
        alive(cluster)?;
        Ok(kubectl(cluster, &["get", "--raw", "/readyz"]).ok())
    })?;
    let arguments = config::controller_manager(cluster);
    daemon(cluster, binaries, "kube-controller-manager", arguments)?;
    daemon(
        cluster,
        binaries,
        "kube-scheduler",
        config::scheduler(cluster),
    )
}

/// Waits for the account that pods are refused without.
pub(super) fn accounts(interrupt: &Interrupt, cluster: &Name) -> Result<()> {
    until(interrupt, "the default ServiceAccount", PATIENCE, || {
        alive(cluster)?;
        Ok(kubectl(
            cluster,
            &["get", "serviceaccount", "default", "-n", "default"],
        )
        .ok())
    })
    .map(drop)
}

/// Gateway API's definitions of one channel, until the API server serves them.
pub(super) fn definitions(interrupt: &Interrupt, cluster: &Name, folder: &Path) -> Result<()> {
    let folder = folder.display().to_string();
    // The first requests may come before namespaces and admission are ready.
    let mut said = String::new();
    until(interrupt, "Gateway API's definitions", PATIENCE, || {
        alive(cluster)?;
        match kubectl(cluster, &["apply", "--server-side", "-f", &folder]) {
            Ok(_) => Ok(Some(())),
            Err(error) => {
                said = error.to_string();
                Ok(None)
            }
        }
    })
    .with_context(|| said)?;
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    let wait = [
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        &timeout,
    ];
    kubectl(cluster, &wait).map(drop)
}

/// Runs `kubectl` in the hub.
pub(super) fn kubectl(cluster: &Name, words: &[&str]) -> Result<String> {
    cmd::output(Command::new(cluster.kubectl()).args(words))
}

/// The same, for objects.
pub(super) fn objects(cluster: &Name, kind: &str) -> Result<Vec<Value>> {
    let text = kubectl(cluster, &["get", kind, "-A", "-o", "json"])?;
    let mut list: Value = serde_json::from_str(&text).context("kubectl did not write JSON")?;
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

/// Fails when any daemon has ended.
pub(super) fn alive(cluster: &Name) -> Result<()> {
    for daemon in processes::all(cluster) {
        processes::require(cluster, &daemon.name)?;
    }
    Ok(())
}

/// The process of a daemon that runs.
pub(super) fn pid(cluster: &Name, name: &str) -> Result<Pid> {
    processes::find(cluster, name)
        .and_then(|record| Pid::from_raw(i32::try_from(record.pid).ok()?))
        .with_context(|| format!("{name} does not run"))
}

fn daemon(cluster: &Name, binaries: &Binaries, name: &str, arguments: Vec<String>) -> Result<()> {
    let mut words = vec!["nsenter".to_owned()];
    words.extend(network::enter(&cluster.hub()));
    words.push(binaries.path(name).display().to_string());
    words.extend(arguments);
    processes::start(cluster, name, &words)
}

pub(super) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_secret(path: &Path, text: &Value) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{text:#}"))
        .with_context(|| format!("cannot write {}", path.display()))
}
