//! Certificates and keys of a cluster, made by `openssl` and thrown away with it.

use std::{
    fs::{self, DirBuilder},
    net::Ipv4Addr,
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use super::layout::{API_SERVICE, HUB, Name, Node};
use crate::cmd;

/// Group of those who may do everything.
const MASTERS: &str = "system:masters";

/// A certificate to be made: `name.crt` and `name.key`.
struct Wanted {
    name: String,
    organisation: Option<&'static str>,
    common_name: String,
    /// `IP:…,DNS:…`; empty for clients.
    alternatives: String,
}

/// Makes all of them.
pub(super) fn make(cluster: &Name, nodes: u8) -> Result<()> {
    let folder = cluster.pki();
    DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    authority(&folder)?;
    for wanted in all(nodes) {
        certificate(&folder, &wanted)?;
    }
    account_key(&folder)
}

fn all(nodes: u8) -> Vec<Wanted> {
    let client = |name: &str, organisation, common_name: &str| Wanted {
        name: name.to_owned(),
        organisation,
        common_name: common_name.to_owned(),
        alternatives: String::new(),
    };
    let mut wanted = vec![
        Wanted {
            alternatives: server_names(),
            ..client("apiserver", None, "kube-apiserver")
        },
        client("admin", Some(MASTERS), "forebay-cluster-admin"),
        client(
            "kubelet-client",
            Some(MASTERS),
            "kube-apiserver-kubelet-client",
        ),
        client("controller-manager", None, "system:kube-controller-manager"),
        client("scheduler", None, "system:kube-scheduler"),
        client("proxy", None, "system:kube-proxy"),
    ];
    wanted.extend(Node::all(nodes).map(|node| Wanted {
        alternatives: format!("IP:{}", node.address()),
        ..client(
            &node.to_string(),
            Some("system:nodes"),
            &format!("system:node:{node}"),
        )
    }));
    wanted
}

fn server_names() -> String {
    let addresses = [Ipv4Addr::LOCALHOST, HUB, API_SERVICE].map(|address| format!("IP:{address}"));
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(|name| format!("DNS:{name}"));
    [addresses, names].concat().join(",")
}

fn authority(folder: &Path) -> Result<()> {
    let config = config(
        None,
        "forebay-cluster-ca",
        &[
            "basicConstraints = critical,CA:TRUE",
            "keyUsage = critical,keyCertSign,cRLSign",
        ],
    );
    request(folder, "ca", &config, &[])
}

fn certificate(folder: &Path, wanted: &Wanted) -> Result<()> {
    let names = format!("subjectAltName = {}", wanted.alternatives);
    let mut extensions = vec![
        "basicConstraints = critical,CA:FALSE",
        "keyUsage = critical,digitalSignature",
        "extendedKeyUsage = serverAuth,clientAuth",
    ];
    if !wanted.alternatives.is_empty() {
        extensions.push(&names);
    }
    let config = config(wanted.organisation, &wanted.common_name, &extensions);
    request(
        folder,
        &wanted.name,
        &config,
        &["-CA", "ca.crt", "-CAkey", "ca.key"],
    )
}

/// What `openssl req` is told instead of the machine's own configuration.
fn config(organisation: Option<&str>, common_name: &str, extensions: &[&str]) -> String {
    let organisation = organisation.map_or_else(String::new, |name| format!("O = {name}\n"));
    format!(
        "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n\
         [subject]\n{organisation}CN = {common_name}\n[extensions]\n{}\n",
        extensions.join("\n")
    )
}

fn request(folder: &Path, name: &str, config: &str, by: &[&str]) -> Result<()> {
    let path = folder.join(format!("{name}.conf"));
    fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
    let mut openssl = Command::new("openssl");
    openssl
        .current_dir(folder)
        .args(["req", "-x509", "-sha256", "-nodes", "-days", "3650"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-config", &format!("{name}.conf")])
        .args(["-keyout", &format!("{name}.key")])
        .args(["-out", &format!("{name}.crt")])
        .args(by);
    cmd::output(&mut openssl).map(drop)
}

/// The key that signs ServiceAccounts' tokens.
fn account_key(folder: &Path) -> Result<()> {
    let run = |words: &[&str]| cmd::output(Command::new("openssl").current_dir(folder).args(words));
    run(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "accounts.key",
    ])?;
    run(&[
        "pkey",
        "-in",
        "accounts.key",
        "-pubout",
        "-out",
        "accounts.pub",
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_certificate_names_its_group_and_its_address() {
        let wanted = all(2);
        let node = wanted.last().unwrap();
        assert_eq!(node.name, "node2");
        assert_eq!(node.alternatives, "IP:10.231.0.12");
        assert_eq!(
            config(node.organisation, &node.common_name, &["a = b"]),
            "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n\
             [subject]\nO = system:nodes\nCN = system:node:node2\n[extensions]\na = b\n"
        );
    }

    #[test]
    fn the_api_server_is_known_by_its_service_too() {
        assert_eq!(
            server_names(),
            "IP:127.0.0.1,IP:10.231.0.1,IP:10.233.0.1,\
             DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
        );
    }
}
