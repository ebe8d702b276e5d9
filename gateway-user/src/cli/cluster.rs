//! The way to the daemon on a node of a cluster: by the API server, which forwards a connection to the admin port of its pod.

use k8s_openapi::api::core::v1::{Container, Node, Pod};
use kube::Api;
use kube::api::{ListParams, Portforwarder};
use kube::client::UpgradeConnectionError::ProtocolSwitch;
use kube::core::params::GetParams;
use tokio::io::DuplexStream;

use crate::args::Endpoint;
use crate::causes::chain;
use crate::file::keys::NAMESPACE;
use crate::k8s;

/// Label of the pods.
const LABEL: &str = "app.kubernetes.io/name=forebay";
/// The container that runs `forebay run`.
const CONTAINER: &str = "forebay";
/// Where the admin endpoint is if nothing else is said.
const ADMIN_PORT: u16 = 15_000;

/// A connection to a daemon, which lasts as long as this.
pub(super) struct Reached {
    /// What it is, in words.
    pub(super) at: String,
    forwarder: Portforwarder,
    port: u16,
}

impl Reached {
    /// Why nothing came back, if the API server knows.
    pub(super) async fn why(mut self) -> Option<String> {
        let error = self.forwarder.take_error(self.port)?;
        let wait = std::time::Duration::from_secs(1);
        tokio::time::timeout(wait, error).await.ok().flatten()
    }
}

/// Connects to the daemon on a node; else says in a sentence why not.
pub(super) async fn reach(node: &str) -> Result<(DuplexStream, Reached), String> {
    let client = k8s::connect().await.map_err(|error| error.to_string())?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let on_node = format!("spec.nodeName={node}");
    let params = ListParams::default().labels(LABEL).fields(&on_node);
    let found = pods.list(&params).await;
    let found = found.map_err(|error| refused(&error, "pods", "list"))?;
    let best = found
        .items
        .into_iter()
        .max_by_key(|pod| (runs(pod), ready(pod)));
    let Some(pod) = best else {
        return Err(no_pod(Api::all(client), node).await);
    };
    let name = pod.metadata.name.clone().unwrap_or_default();
    if !runs(&pod) {
        return Err(format!(
            "pod {NAMESPACE}/{name} on node {node} does not run; `kubectl -n {NAMESPACE} describe pod {name}` says why"
        ));
    }
    let port = admin_port(&pod).map_err(|at| {
        format!(
            "the admin endpoint of {NAMESPACE}/{name} is {at}, which cannot be reached through the API server; use `kubectl -n {NAMESPACE} exec {name} -- forebay`"
        )
    })?;
    let forwarder = pods.portforward(&name, &[port]).await;
    let mut forwarder =
        forwarder.map_err(|error| refused(&error, "pods/portforward", "create\", \"get"))?;
    let at = format!("port {port} of pod {NAMESPACE}/{name} on node {node}");
    let Some(stream) = forwarder.take_stream(port) else {
        return Err(format!("{at} is not forwarded; try again"));
    };
    let reached = Reached {
        at,
        forwarder,
        port,
    };
    Ok((stream, reached))
}

async fn no_pod(nodes: Api<Node>, node: &str) -> String {
    match nodes.get_with(node, &GetParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            format!("there is no node {node}; `kubectl get nodes` lists them")
        }
        _ => format!(
            "there is no pod of Forebay on node {node}; `kubectl -n {NAMESPACE} get pods -o wide` lists them"
        ),
    }
}

/// Why the API server does not do it, as a sentence that names the rule if one is missing.
fn refused(error: &kube::Error, resource: &str, verbs: &str) -> String {
    let forbidden = || {
        format!(
            "Kubernetes forbids it; you need the rule - {{apiGroups: [\"\"], resources: [\"{resource}\"], verbs: [\"{verbs}\"]}} in namespace {NAMESPACE}"
        )
    };
    match error {
        kube::Error::Api(status) if status.code == 403 => forbidden(),
        kube::Error::UpgradeConnection(ProtocolSwitch(code)) if code.as_u16() == 403 => forbidden(),
        kube::Error::Api(status) => format!(
            "the API server refuses: {}; check KUBECONFIG",
            status.message
        ),
        other => format!(
            "the API server cannot be asked: {}; check KUBECONFIG",
            chain(other)
        ),
    }
}

fn runs(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.and_then(|status| status.phase.as_deref()) == Some("Running")
        && pod.metadata.deletion_timestamp.is_none()
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// The port of the admin endpoint, by the flags that the container is started with; else where it is.
fn admin_port(pod: &Pod) -> Result<u16, String> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice());
    let mut containers = containers.unwrap_or_default().iter();
    let Some(text) = containers.find(|c| c.name == CONTAINER).and_then(admin) else {
        return Ok(ADMIN_PORT);
    };
    match text.parse() {
        Ok(Endpoint::Tcp(address))
            if address.ip().is_loopback() || address.ip().is_unspecified() =>
        {
            Ok(address.port())
        }
        _ => Err(text),
    }
}

fn admin(container: &Container) -> Option<String> {
    let mut words = container.args.iter().flatten();
    while let Some(word) = words.next() {
        match word.strip_prefix("--admin") {
            Some("") => return words.next().cloned(),
            Some(value) if value.starts_with('=') => return Some(value[1..].to_owned()),
            _ => {}
        }
    }
    let mut env = container.env.iter().flatten();
    env.find(|e| e.name == "FOREBAY_ADMIN")?.value.clone()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(args: &Value, env: &Value) -> Pod {
        let containers = json!([{"name": "other"}, {"name": "forebay", "args": args, "env": env}]);
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn the_port_is_that_of_the_pod() {
        let env = |value: &str| json!([{"name": "FOREBAY_ADMIN", "value": value}]);
        let table = [
            (json!(["run"]), json!([]), Ok(15_000)),
            (json!(["run"]), env("127.0.0.1:1"), Ok(1)),
            (json!(["run", "--admin=[::1]:2"]), env("127.0.0.1:1"), Ok(2)),
            (json!(["run", "--admin", "0.0.0.0:3"]), json!([]), Ok(3)),
            (json!(["run", "--admin", "off"]), json!([]), Err("off")),
            (json!(["run"]), env("unix:/x"), Err("unix:/x")),
            (json!(["run"]), env("192.0.2.1:1"), Err("192.0.2.1:1")),
        ];
        for (args, env, want) in table {
            let shown = format!("{args} {env}");
            let got = admin_port(&pod(&args, &env));
            assert_eq!(got, want.map_err(str::to_owned), "{shown}");
        }
    }
}
