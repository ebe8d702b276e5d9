//! Texts that the programs of a cluster read, and their command lines: pure functions.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    cgroups,
    layout::{HUB, NODES, Name, Node, SERVICES},
};

/// Image of every pod's first process.
pub(super) const PAUSE: &str = "forebay.dev/cluster/pause:1";
/// Where etcd listens, inside the hub.
const ETCD: &str = "http://127.0.0.1:2379";
/// Where containerd listens, inside a node's mount namespace.
pub(super) const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Who a kubeconfig speaks for: the name of a certificate.
pub(super) fn kubeconfig(cluster: &Name, certificate: &str) -> Value {
    let pki = cluster.pki();
    let name = cluster.cgroup();
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {
            "server": format!("https://{HUB}:6443"),
            "certificate-authority": pki.join("ca.crt"),
        }}],
        "users": [{"name": certificate, "user": {
            "client-certificate": pki.join(format!("{certificate}.crt")),
            "client-key": pki.join(format!("{certificate}.key")),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": certificate}}],
    })
}

/// Arguments of etcd. Nothing of a cluster outlives the machine's start, so nothing is synced to disk.
pub(super) fn etcd(cluster: &Name) -> Vec<String> {
    vec![
        format!("--data-dir={}", cluster.state().join("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--unsafe-no-fsync".to_owned(),
    ]
}

/// Arguments of the API server.
pub(super) fn apiserver(cluster: &Name) -> Vec<String> {
    let pki = cluster.pki();
    let of = |file: &str| pki.join(file).display().to_string();
    vec![
        format!("--etcd-servers={ETCD}"),
        "--secure-port=6443".to_owned(),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={HUB}"),
        format!("--tls-cert-file={}", of("apiserver.crt")),
        format!("--tls-private-key-file={}", of("apiserver.key")),
        format!("--client-ca-file={}", of("ca.crt")),
        format!("--service-account-key-file={}", of("accounts.pub")),
        format!("--service-account-signing-key-file={}", of("accounts.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--allow-privileged=true".to_owned(),
        "--anonymous-auth=false".to_owned(),
        format!("--kubelet-client-certificate={}", of("kubelet-client.crt")),
        format!("--kubelet-client-key={}", of("kubelet-client.key")),
        format!("--kubelet-certificate-authority={}", of("ca.crt")),
        // Nodes have no names that somebody resolves.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
    ]
}

/// Arguments of the controller manager.
pub(super) fn controller_manager(cluster: &Name) -> Vec<String> {
    let pki = cluster.pki();
    let of = |file: &str| pki.join(file).display().to_string();
    vec![
        format!("--kubeconfig={}", of("controller-manager.kubeconfig")),
        format!("--service-account-private-key-file={}", of("accounts.key")),
        format!("--root-ca-file={}", of("ca.crt")),
        "--use-service-account-credentials".to_owned(),
        "--leader-elect=false".to_owned(),
        format!("--cluster-signing-cert-file={}", of("ca.crt")),
        format!("--cluster-signing-key-file={}", of("ca.key")),
    ]
}

/// Arguments of the scheduler.
pub(super) fn scheduler(cluster: &Name) -> Vec<String> {
    let file = cluster.pki().join("scheduler.kubeconfig");
    vec![
        format!("--kubeconfig={}", file.display()),
        "--leader-elect=false".to_owned(),
    ]
}

/// containerd's configuration on a node.
pub(super) fn containerd(cluster: &Name, node: Node) -> String {
    let folder = cluster.of(node);
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/containerd"
state = "/run/containerd"

[grpc]
  address = "{CONTAINERD}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Containers here may lack CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"#
    )
}

/// The network of a node's pods.
pub(super) fn cni(cluster: &Name, node: Node) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "forebay-cluster",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": cluster.of(node).join("addresses"),
                    "ranges": [[{"subnet": node.pods()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// kubelet's configuration; JSON is YAML.
pub(super) fn kubelet(cluster: &Name, node: Node) -> Value {
    let pki = cluster.pki();
    let folder = cluster.of(node);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups::of_node(cluster, node),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": false,
        // Lowering it needs CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "podLogsDir": folder.join("log/pods"),
        "resolvConf": folder.join("resolv.conf"),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.join(format!("{node}.crt")),
        "tlsPrivateKeyFile": pki.join(format!("{node}.key")),
        // The usual ones are shares of the disk, which is everybody's.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "200Mi",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "200Mi",
            "imagefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
    })
}

/// Arguments of kubelet beside its configuration.
pub(super) fn kubelet_arguments(cluster: &Name, node: Node) -> Vec<String> {
    let folder = cluster.of(node);
    let at = |name: &str| folder.join(name).display().to_string();
    let kubeconfig = cluster.pki().join(format!("{node}.kubeconfig"));
    vec![
        format!("--config={}", at("kubelet.json")),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--root-dir={}", at("kubelet")),
        format!("--cert-dir={}", at("kubelet-certificates")),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", node.address()),
    ]
}

/// kube-proxy's configuration.
pub(super) fn proxy(cluster: &Name, node: Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": node.proxy_mode(),
        "hostnameOverride": node.to_string(),
        "clientConnection": {"kubeconfig": cluster.pki().join("proxy.kubeconfig")},
        "clusterCIDR": "10.232.0.0/16",
        "oomScoreAdj": 0,
        // The limits of connection tracking are the machine's, not a namespace's.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "nodePortAddresses": [NODES],
    })
}

/// `kubectl` for whoever uses the cluster.
pub(super) fn kubectl(cluster: &Name, binary: &Path) -> String {
    format!(
        "#!/bin/sh\n# kubectl in the hub of the cluster {cluster}.\n\
         exec nsenter --net=/run/netns/{} env KUBECONFIG={} KUBECACHEDIR={} {} \"$@\"\n",
        cluster.hub(),
        cluster.kubeconfig().display(),
        cluster.state().join("kubectl-cache").display(),
        binary.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev() -> Name {
        "dev".parse().unwrap()
    }

    #[test]
    fn containerd_keeps_everything_below_its_node() {
        let text = containerd(&dev(), Node(2));
        assert!(text.contains("root = \"/var/lib/forebay-cluster/dev/node2/containerd\""));
        assert!(text.contains("conf_dir = \"/var/lib/forebay-cluster/dev/node2/cni\""));
        assert!(text.contains("sandbox_image = \"forebay.dev/cluster/pause:1\""));
    }

    #[test]
    fn kubelet_takes_the_node_s_cgroup_and_certificate() {
        let config = kubelet(&dev(), Node(1));
        assert_eq!(config["cgroupRoot"], "/forebay-cluster-dev/node1");
        assert_eq!(
            config["tlsCertFile"],
            "/var/lib/forebay-cluster/dev/pki/node1.crt"
        );
        assert_eq!(config["failCgroupV1"], false);
    }

    #[test]
    fn both_modes_of_kube_proxy_are_there() {
        let modes = [1, 2, 3].map(|number| proxy(&dev(), Node(number))["mode"].clone());
        assert_eq!(modes, ["iptables", "nftables", "nftables"]);
    }

    #[test]
    fn pods_get_addresses_of_their_node() {
        let config = cni(&dev(), Node(3));
        let ipam = &config["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"][0][0]["subnet"], "10.232.3.0/24");
    }

    #[test]
    fn a_kubeconfig_names_the_hub_and_one_certificate() {
        let config = kubeconfig(&dev(), "admin");
        assert_eq!(
            config["clusters"][0]["cluster"]["server"],
            "https://10.231.0.1:6443"
        );
        assert_eq!(
            config["users"][0]["user"]["client-key"],
            "/var/lib/forebay-cluster/dev/pki/admin.key"
        );
    }

    #[test]
    fn kubectl_is_entered_by_the_hub_s_network() {
        assert_eq!(
            kubectl(&dev(), Path::new("/c/kubectl")),
            "#!/bin/sh\n# kubectl in the hub of the cluster dev.\n\
             exec nsenter --net=/run/netns/fbc-dev-hub \
             env KUBECONFIG=/var/lib/forebay-cluster/dev/kubeconfig \
             KUBECACHEDIR=/var/lib/forebay-cluster/dev/kubectl-cache /c/kubectl \"$@\"\n"
        );
    }
}
