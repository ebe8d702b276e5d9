//! What the scenarios have in common: a Gateway in a cluster, two versions of a backend, a route between them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::{
    cgroups, control, forebay,
    layout::{Name, Node},
    node,
    running::Running,
    wait::until,
};
use super::{
    api::Api,
    http::{ask, get},
    load::Load,
};
use crate::paths;

/// Where namespaces are.
pub(super) const SPACES: &str = "/api/v1/namespaces";
/// Where everything of the scenarios is.
pub(super) const NAMESPACE: &str = "scenarios";
/// The load's host.
pub(super) const HOST: &str = "load.test";
/// Begins what every pod of both versions answers.
pub(super) const HELLO: &str = "hello from backend";
/// Gateways: the first has all routes, the others only have an address.
pub(super) const GATEWAYS: [&str; 4] = ["main", "second", "third", "fourth"];
/// Longest wait for anything that pods do.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for an answer of a node.
const BOUND: Duration = Duration::from_secs(5);
const METRICS: u16 = 15020;
const HEALTH: u16 = 15021;

/// The running stage.
pub(super) struct Stage<'a> {
    pub(super) running: &'a Running<'a>,
    pub(super) api: Api,
    /// Addresses of the Gateways, in their order.
    pub(super) vips: Vec<Ipv4Addr>,
    /// Routes that are added one by one.
    pub(super) routes: usize,
    /// Routes over many namespaces.
    pub(super) scale: usize,
    /// Gateways and routes of another class.
    pub(super) foreign: usize,
    /// How long the API server is away.
    pub(super) away: Duration,
}

/// A pod of Forebay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: String,
    pub(super) image: String,
}

impl Stage<'_> {
    pub(super) fn vip(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.vips[0], 80)
    }

    pub(super) fn load(&self) -> Load {
        Load::start(self.vip(), HOST, HELLO)
    }

    pub(super) fn until<T>(
        &self,
        what: &str,
        bound: Duration,
        look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        until(self.running.interrupt, what, bound, look)
    }

    /// Does nothing for a while, unless somebody wants the end.
    pub(super) fn pause(&self, time: Duration) -> Result<()> {
        let started = std::time::Instant::now();
        self.until("a pause", time * 2, || {
            Ok((started.elapsed() >= time).then_some(()))
        })
    }

    /// Waits until all pods are as they should be and the load's route answers on every node.
    pub(super) fn settle(&self) -> Result<()> {
        self.rolled_out()?;
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
        self.until("the backends' pods", PATIENCE, || {
            let found = self.api.get(&path)?;
            let all = found["items"].as_array().context("no deployments")?;
            let fine = |one: &Value| one["status"]["readyReplicas"] == one["spec"]["replicas"];
            Ok(all.iter().all(fine).then_some(()))
        })?;
        self.live(HOST, HELLO)
    }

    /// Waits until every pod of Forebay is as its specification has it, and ready.
    pub(super) fn rolled_out(&self) -> Result<()> {
        self.until("Forebay's pods", PATIENCE, || {
            let set = self.api.get(&set_path())?;
            Ok(
                (forebay::is_rolled_out(&set) && self.pods()?.len() == self.nodes().len())
                    .then_some(()),
            )
        })
    }

    /// Waits until a host is answered twenty times in a row: on every node, very likely.
    pub(super) fn live(&self, host: &str, expected: &str) -> Result<()> {
        let request = get(host, "/");
        self.until(&format!("the route of {host}"), PATIENCE, || {
            let fine = |_| {
                ask(self.vip(), &request, BOUND)
                    .is_ok_and(|came| came.status == 200 && came.body.starts_with(expected))
            };
            Ok((0..20).all(fine).then_some(()))
        })
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        node::of_cluster(self.running.name)
    }

    /// Forebay's pods that are not ending.
    pub(super) fn pods(&self) -> Result<Vec<Pod>> {
        let path = format!("/api/v1/namespaces/{}/pods", forebay::NAMESPACE);
        let found = self.api.get(&path)?;
        let all = found["items"].as_array().context("no list of pods")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(all
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| Pod {
                name: text(&pod["metadata"]["name"]),
                uid: text(&pod["metadata"]["uid"]),
                node: text(&pod["spec"]["nodeName"]),
                image: text(&pod["spec"]["containers"][0]["image"]),
            })
            .collect())
    }

    /// A metric's sum over its labels on a node; `None` while the node does not answer or lacks it.
    pub(super) fn metric(&self, node: Node, name: &str) -> Option<f64> {
        sum_of(&self.metrics(node)?, name)
    }

    /// All metrics of a node; `None` while it does not answer.
    pub(super) fn metrics(&self, node: Node) -> Option<String> {
        let to = SocketAddrV4::new(node.address(), METRICS);
        let came = ask(to, &get("node", "/metrics"), BOUND).ok()?;
        Some(came.body)
    }

    /// Whether the node says that it is ready.
    pub(super) fn is_ready(&self, node: Node) -> bool {
        let to = SocketAddrV4::new(node.address(), HEALTH);
        ask(to, &get("node", "/healthz/ready"), BOUND).is_ok_and(|came| came.status == 200)
    }

    /// The process of a node that is `forebay run` or `forebay agent`.
    pub(super) fn process(&self, node: Node, what: &str) -> Option<i32> {
        process_of(self.running.name, node, what)
    }
}

fn process_of(cluster: &Name, node: Node, what: &str) -> Option<i32> {
    cgroups::in_pods(cluster, node).into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|word| word.ends_with(b"forebay"))
            && words.next() == Some(what.as_bytes())
    })
}

fn sum_of(metrics: &str, name: &str) -> Option<f64> {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest,
        };
        rest.strip_prefix(' ')?.trim().parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// Where Forebay's DaemonSet is.
pub(super) fn set_path() -> String {
    format!(
        "/apis/apps/v1/namespaces/{}/daemonsets/forebay",
        forebay::NAMESPACE
    )
}

/// Where the route of that name is.
pub(super) fn route_path(name: &str) -> String {
    format!("{}/{name}", routes_path())
}

pub(super) fn routes_path() -> String {
    routes_in(NAMESPACE)
}

pub(super) fn routes_in(namespace: &str) -> String {
    format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes")
}

pub(super) fn gateway_path(name: &str) -> String {
    format!("{}/{name}", gateways_in(NAMESPACE))
}

pub(super) fn gateways_in(namespace: &str) -> String {
    format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways")
}

/// A namespace.
pub(super) fn space(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A route of the first Gateway.
pub(super) fn route(name: &str, host: &str, backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"name": GATEWAYS[0]}],
            "hostnames": [host],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
        },
    })
}

/// Everything is there before the first pod of Forebay: Gateways, backends, routes. Then all its pods start together.
pub(super) fn install(running: &Running<'_>, archives: &[std::path::PathBuf]) -> Result<()> {
    let deploy = paths::root().join("deploy");
    running.steps.run("images", |_| {
        running.load(archives)?;
        Ok("on every node".to_owned())
    })?;
    running.steps.run("objects", |step| {
        apply(running, &deploy.join("crds"))?;
        step.say("definitions");
        let wait = ["wait", "--for=condition=Established", "crd", "--all"];
        running.kubectl(&[&wait[..], &["--timeout=60s"]].concat())?;
        running.apply(&objects())?;
        Ok("Gateways, backends and routes, before Forebay".to_owned())
    })?;
    running.steps.run("forebay", |step| {
        apply(running, &deploy.join("forebay.yaml"))?;
        step.say("pods");
        until(running.interrupt, "Forebay's pods", PATIENCE, || {
            running.alive()?;
            let found = running.objects("daemonsets")?;
            Ok(found.iter().any(forebay::is_rolled_out).then_some(()))
        })?;
        Ok("all pods started together".to_owned())
    })
}

fn apply(running: &Running<'_>, path: &std::path::Path) -> Result<()> {
    let path = path.display().to_string();
    running
        .kubectl(&["apply", "--server-side", "-f", &path])
        .map(drop)
}

/// The addresses of the Gateways, when all have one.
pub(super) fn addresses(running: &Running<'_>, api: &Api) -> Result<Vec<Ipv4Addr>> {
    until(running.interrupt, "the addresses", PATIENCE, || {
        let of = |name: &&str| -> Result<Option<Ipv4Addr>> {
            let gateway = api.get(&gateway_path(name))?;
            let text = gateway["status"]["addresses"][0]["value"].as_str();
            text.map(|text| text.parse().context("no IPv4 address"))
                .transpose()
        };
        GATEWAYS.iter().map(of).collect()
    })
}

fn objects() -> Value {
    let mut items = vec![
        space(NAMESPACE),
        json!({
            "apiVersion": "forebay.dev/v1alpha1",
            "kind": "AddressPool",
            "metadata": {"name": "scenarios"},
            "spec": {"ranges": [forebay::RANGE]},
        }),
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "v1", "namespace": NAMESPACE},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "v1"}}},
        }),
        route("load", HOST, "v1"),
    ];
    items.extend(GATEWAYS.map(gateway));
    for (name, replicas) in [("v1", 3), ("v2", 2)] {
        items.push(deployment(name, replicas));
        items.push(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 5678}]},
        }));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// A Gateway of Forebay's class.
pub(super) fn gateway(name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "gatewayClassName": forebay::CLASS,
            "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}],
        },
    })
}

fn deployment(name: &str, replicas: u8) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "containers": [container(name)],
                },
            },
        },
    })
}

/// A pod's container that answers with its name.
pub(super) fn container(name: &str) -> Value {
    json!({
        "name": "backend",
        "image": super::super::echo::IMAGE,
        "args": [format!("-text={HELLO} {name}"), "-listen=:5678"],
        "ports": [{"containerPort": 5678}],
        "readinessProbe": {"httpGet": {"port": 5678, "path": "/"}, "periodSeconds": 1},
        // As everybody does it: requests that are under way end, the program itself does not wait for them.
        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
    })
}

/// A daemon of the control plane that is stopped, and goes on when this is dropped.
pub(super) struct Frozen(rustix::process::Pid);

impl Frozen {
    pub(super) fn freeze(cluster: &Name, daemon: &str) -> Result<Self> {
        let pid = control::pid(cluster, daemon)?;
        rustix::process::kill_process(pid, rustix::process::Signal::STOP)
            .with_context(|| format!("cannot stop {daemon}"))?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that has ended is noticed by whoever needs it.
        rustix::process::kill_process(self.0, rustix::process::Signal::CONT).ok();
    }
}

/// Fails unless every pod has another uid than before.
pub(super) fn all_new(before: &[Pod], after: &[Pod]) -> Result<()> {
    let kept: Vec<&str> = after
        .iter()
        .filter(|pod| before.iter().any(|old| old.uid == pod.uid))
        .map(|pod| pod.name.as_str())
        .collect();
    ensure!(kept.is_empty(), "the same pods as before: {kept:?}");
    ensure!(after.len() == before.len(), "{} pods", after.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "# TYPE forebay_requests counter\n\
                    forebay_requests_total{gateway=\"a}b\"} 3\n\
                    forebay_requests_total{gateway=\"c\"} 4\n\
                    forebay_requests_total_more 9\n\
                    forebay_config_from_cache 1\n";
        assert_eq!(sum_of(text, "forebay_requests_total"), Some(7.0));
        assert_eq!(sum_of(text, "forebay_config_from_cache"), Some(1.0));
        assert_eq!(sum_of(text, "forebay_requests"), None);
    }

    #[test]
    fn a_pod_that_stayed_is_named() {
        let pod = |uid: &str| Pod {
            name: format!("forebay-{uid}"),
            uid: uid.to_owned(),
            node: "node1".to_owned(),
            image: "forebay:1".to_owned(),
        };
        all_new(&[pod("a"), pod("b")], &[pod("c"), pod("d")]).unwrap();
        let said = all_new(&[pod("a"), pod("b")], &[pod("b"), pod("d")]).unwrap_err();
        assert_eq!(said.to_string(), "the same pods as before: [\"forebay-b\"]");
        assert!(all_new(&[pod("a")], &[]).is_err());
    }
}
