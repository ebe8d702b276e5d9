//! Says what becomes of a request and why: the listener, the entries that were considered, the rule and its backends.
//!
//! It asks the same functions that serve requests, so that it cannot disagree with them; it is not used to serve any.

mod words;

use std::sync::Arc;

use serde::Serialize;

use super::router::{Mismatch, RequestView};
use crate::snapshot::{
    BackendTarget, Bind, BindKey, ClusterKey, Endpoint, Filters, Hostname, ObjectKey, PathMatch,
    Protocol, RouteMatch, Rule, RuleKey, Snapshot, TrafficPolicy,
};

/// How many entries that do not match are listed; the rest is counted.
const SHOWN: usize = 64;

/// What becomes of one request.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Where the client connects to.
    pub bind: BindKey,
    /// The Gateway that holds the address and serves the port; none: connections are refused.
    pub gateway: Option<ObjectKey>,
    /// The listeners of the port in the order in which they are tried.
    pub listeners: Vec<ListenerTried>,
    /// Entries of the winning listener, best first, up to the one that takes the request.
    pub considered: Vec<Considered>,
    /// Entries that do not match and are not listed.
    pub not_listed: usize,
    /// The rule that takes the request.
    pub winner: Option<Winner>,
    /// The result in one sentence.
    pub outcome: String,
}

/// One listener.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerTried {
    /// Section name.
    pub name: Arc<str>,
    /// Its hostname; none: any.
    pub hostname: Option<Hostname>,
    /// Whether the request belongs to it: the first with a hostname that fits, and no other.
    pub chosen: bool,
}

/// One entry.
#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    /// Hostname for which it is effective.
    pub hostname: Option<Hostname>,
    /// What must hold.
    pub matching: RouteMatch,
    /// Its rule.
    pub rule: RuleKey,
    /// The rule's name, if it has one.
    pub name: Option<Arc<str>>,
    /// The first part that does not hold; none: it takes the request.
    pub mismatch: Option<Mismatch>,
}

/// The winning rule.
#[derive(Clone, Debug, Serialize)]
pub struct Winner {
    /// The rule.
    pub rule: RuleKey,
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// What its filters do, one text each.
    pub filters: Vec<String>,
    /// When requests are tried again, if its `retry` says so.
    pub retry: Option<String>,
    /// Its timeouts as text, for example `10s`.
    pub request_timeout: Option<String>,
    /// One try.
    pub backend_timeout: Option<String>,
    /// Where its requests go.
    pub backends: Vec<BackendShare>,
}

/// One backend of the winning rule.
#[derive(Clone, Debug, Serialize)]
pub struct BackendShare {
    /// Weight.
    pub weight: u32,
    /// Share of the rule's requests in percent, rounded down.
    pub percent: u64,
    /// What the filters of the backendRef do, one text each.
    pub filters: Vec<String>,
    /// Why the share answers 500, if it does.
    pub invalid: Option<Arc<str>>,
    /// The cluster.
    pub cluster: Option<ClusterKey>,
    /// Its policy.
    pub policy: Option<TrafficPolicy>,
    /// Its endpoints.
    pub endpoints: Arc<[Endpoint]>,
}

/// Explains what the snapshot does with a request that arrives on `bind`.
#[must_use]
pub fn explain(snapshot: &Snapshot, bind: BindKey, request: &RequestView<'_>) -> Explanation {
    let mut explanation = Explanation {
        bind,
        gateway: None,
        listeners: Vec::new(),
        considered: Vec::new(),
        not_listed: 0,
        winner: None,
        outcome: String::new(),
    };
    explanation.outcome = match snapshot.binds.get(&bind) {
        None => match snapshot.addresses.get(&bind.address) {
            None => format!("{} is no address of a Gateway", bind.address),
            Some(gateway) => format!(
                "Gateway {gateway} has no listener on port {}{}: refused",
                bind.port,
                bind.transport.suffix()
            ),
        },
        Some(bind) if bind.builtin_ready => {
            explanation.gateway = Some(bind.gateway.clone());
            format!("{} answers GET /healthz/ready by itself", bind.key)
        }
        Some(bind) => explain_bind(snapshot, bind, request, &mut explanation),
    };
    explanation
}

fn explain_bind(
    snapshot: &Snapshot,
    bind: &Bind,
    request: &RequestView<'_>,
    explanation: &mut Explanation,
) -> String {
    explanation.gateway = Some(bind.gateway.clone());
    if bind.protocol == Protocol::Udp {
        return explain_datagram(snapshot, bind, explanation);
    }
    let chosen = bind.listener(request.host);
    for listener in &bind.listeners {
        explanation.listeners.push(ListenerTried {
            name: listener.name.clone(),
            hostname: listener.hostname.clone(),
            chosen: chosen.is_some_and(|chosen| Arc::ptr_eq(chosen, listener)),
        });
    }
    let Some(listener) = chosen else {
        return format!(
            "no listener has a hostname that fits {:?}: 404",
            request.host
        );
    };
    for entry in listener.router.entries() {
        let mismatch = entry.mismatch(request);
        let Some(rule) = snapshot.rules.get(entry.rule as usize) else {
            continue;
        };
        let wins = mismatch.is_none();
        if wins || explanation.considered.len() < SHOWN {
            explanation.considered.push(Considered {
                hostname: entry.hostname.clone(),
                matching: RouteMatch::clone(&entry.matching),
                rule: rule.key.clone(),
                name: rule.name.clone(),
                mismatch,
            });
        } else {
            explanation.not_listed += 1;
        }
        if wins {
            let winner = win(snapshot, rule);
            let outcome = outcome(rule, &winner, &entry.matching);
            explanation.winner = Some(winner);
            return outcome;
        }
    }
    format!("no route of listener {} matches: 404", listener.name)
}

fn explain_datagram(snapshot: &Snapshot, bind: &Bind, explanation: &mut Explanation) -> String {
    let Some(listener) = bind.listeners.first() else {
        return "no listener: dropped".to_owned();
    };
    explanation.listeners.push(ListenerTried {
        name: listener.name.clone(),
        hostname: None,
        chosen: true,
    });
    let rule = listener.rule.and_then(|at| snapshot.rules.get(at as usize));
    let Some(rule) = rule else {
        return format!(
            "no route is attached to listener {}: dropped",
            listener.name
        );
    };
    let winner = win(snapshot, rule);
    let what = match winner.backends.len() {
        0 => "no backend: dropped".to_owned(),
        1 => "one backend".to_owned(),
        n => format!("{n} backends by weight, one for each session"),
    };
    let outcome = format!("rule {} takes every datagram; {what}", words::rule(rule));
    explanation.winner = Some(winner);
    outcome
}

fn win(snapshot: &Snapshot, rule: &Rule) -> Winner {
    let filters = |filters: &Option<Arc<Filters>>| {
        let filters = filters.as_deref();
        filters.map_or_else(Vec::new, |filters| words::filters(snapshot, filters))
    };
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    let backends = rule.backends.iter().map(|backend| {
        let (cluster, invalid) = match &backend.target {
            BackendTarget::Cluster(position) => (snapshot.clusters.get(*position as usize), None),
            BackendTarget::Invalid(why) => (None, Some(why.clone())),
        };
        BackendShare {
            weight: backend.weight,
            percent: (u64::from(backend.weight) * 100)
                .checked_div(total)
                .unwrap_or(0),
            filters: filters(&backend.filters),
            invalid,
            cluster: cluster.map(|cluster| cluster.key.clone()),
            policy: cluster.map(|cluster| TrafficPolicy::clone(&cluster.policy)),
            endpoints: cluster.map_or_else(|| Arc::new([]) as Arc<[_]>, |c| c.endpoints.clone()),
        }
    });
    let text = |timeout: Option<std::time::Duration>| timeout.map(|timeout| format!("{timeout:?}"));
    Winner {
        rule: rule.key.clone(),
        name: rule.name.clone(),
        filters: filters(&rule.filters),
        retry: rule.retry.as_deref().map(words::retry),
        request_timeout: text(rule.request_timeout),
        backend_timeout: text(rule.backend_timeout),
        backends: backends.collect(),
    }
}

fn outcome(rule: &Rule, winner: &Winner, matching: &RouteMatch) -> String {
    let path = match &matching.path {
        PathMatch::Exact(path) => format!("the path {path}"),
        PathMatch::Prefix(prefix) if prefix.is_empty() => "the prefix /".to_owned(),
        PathMatch::Prefix(prefix) => format!("the prefix {prefix}"),
        PathMatch::Regex(pattern) => format!("the expression {}", pattern.0.as_str()),
    };
    let redirect = rule.filters.as_ref().and_then(|f| f.redirect.as_ref());
    let what = match (redirect, winner.backends.len()) {
        (Some(redirect), _) => words::redirect(redirect),
        (None, 0) => "no backend: 500".to_owned(),
        (None, 1) => "one backend".to_owned(),
        (None, n) => format!("{n} backends by weight"),
    };
    format!("rule {} takes it by {path}; {what}", words::rule(rule))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::{Allocations, allocate};
    use crate::snapshot::Transport;
    use crate::translate::{Context, Inputs, Object, translate};

    fn snapshot() -> Snapshot {
        let mut inputs = Inputs::default();
        for object in [
            serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                "metadata": {"name": "c"}, "spec": {"controllerName": "forebay.dev/gateway-controller"}}),
            serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": "g"}, "spec": {"gatewayClassName": "c", "addresses": [{"value": "192.0.2.1"}],
                "listeners": [{"name": "any", "port": 80, "protocol": "HTTP"},
                              {"name": "a", "port": 80, "protocol": "HTTP", "hostname": "a.com"},
                              {"name": "dns", "port": 53, "protocol": "UDP"},
                              {"name": "idle", "port": 54, "protocol": "UDP"}]}}),
            serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "UDPRoute",
                "metadata": {"name": "u"}, "spec": {"parentRefs": [{"name": "g", "sectionName": "dns"}], "rules": [
                    {"backendRefs": [{"name": "s", "port": 53}]}]}}),
            serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": "r"}, "spec": {"parentRefs": [{"name": "g", "sectionName": "a"}], "rules": [
                    {"matches": [{"path": {"value": "/x"}, "headers": [{"name": "Who", "value": "me"}]}]},
                    {"name": "moved", "matches": [{"path": {"value": "/old"}}], "filters": [
                        {"type": "RequestRedirect", "requestRedirect": {"hostname": "b.com"}}]},
                    {"name": "tried", "matches": [{"path": {"value": "/again"}}], "retry": {"codes": [503], "attempts": 2},
                     "filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "s", "port": 80}, "percent": 7}}],
                     "backendRefs": [{"name": "s", "port": 80, "filters": [
                        {"type": "URLRewrite", "urlRewrite": {"hostname": "in.com"}}]}]},
                    {"matches": [{"path": {"value": "/x"}}],
                     "backendRefs": [{"name": "s", "port": 80, "weight": 3}, {"name": "none", "port": 80}]}]}}),
            serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
                "metadata": {"name": "g"}, "spec": {"parentRefs": [{"name": "g", "sectionName": "any"}], "hostnames": ["grpc.com"],
                    "rules": [{"name": "greet", "matches": [{"method": {"service": "a.B", "method": "C"}}],
                               "backendRefs": [{"name": "s", "port": 80}]}]}}),
            serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
                "spec": {"ports": [{"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
        ] {
            inputs.insert(Object::parse(&object).expect("fine").expect("known"));
        }
        let allocations = allocate(&inputs, false, &Allocations::default());
        let context = Context {
            on_cluster: false,
            allocations: &allocations,
            zone: None,
        };
        translate(&inputs, &context).snapshot
    }

    fn ask(port: u16, host: &str, path: &str) -> Explanation {
        ask_over(Transport::Tcp, port, host, path)
    }

    fn ask_over(transport: Transport, port: u16, host: &str, path: &str) -> Explanation {
        let bind = BindKey {
            transport,
            address: "192.0.2.1".parse().expect("address"),
            port,
        };
        let request = RequestView {
            host,
            path,
            query: None,
            method: "GET",
            headers: &http::HeaderMap::new(),
        };
        explain(&snapshot(), bind, &request)
    }

    #[test]
    fn names_the_rule_and_why_the_better_entry_did_not_match() {
        let explanation = ask(80, "a.com", "/x/y");
        assert_eq!(
            explanation.outcome,
            "rule default/r/rule/3 takes it by the prefix /x; 2 backends by weight"
        );
        let why: Vec<_> = explanation
            .considered
            .iter()
            .map(|c| c.mismatch.clone())
            .collect();
        let header = Mismatch::Header("who".into());
        let path = Some(Mismatch::Path);
        assert_eq!(why, [path.clone(), path, Some(header), None]);
        let winner = explanation.winner.expect("a winner");
        assert_eq!(winner.backends[0].percent, 75);
        assert_eq!(
            winner.backends[1].invalid.as_deref(),
            Some("Service default/none does not exist")
        );
    }

    #[test]
    fn named_rules_and_what_they_do_are_said() {
        assert_eq!(
            ask(80, "a.com", "/old").outcome,
            "rule default/r/rule/moved takes it by the prefix /old; redirect 302 to host b.com"
        );
        assert_eq!(
            ask(80, "grpc.com", "/a.B/C").outcome,
            "rule GRPCRoute default/g/rule/greet takes it by the path /a.B/C; one backend"
        );
        let winner = ask(80, "a.com", "/again").winner.expect("a winner");
        assert_eq!(winner.filters, ["mirror 7/100 to default/s:80"]);
        assert_eq!(winner.backends[0].filters, ["rewrite: host in.com"]);
        let retry = winner.retry.as_deref();
        assert_eq!(
            retry,
            Some("at most 2 further tries on connection errors, 503")
        );
    }

    #[test]
    fn datagrams_go_by_the_listeners_one_rule() {
        let of = |port| ask_over(Transport::Udp, port, "", "");
        let dns = of(53);
        assert_eq!(
            dns.outcome,
            "rule default/u/rule/0 takes every datagram; one backend"
        );
        let cluster = dns.winner.expect("a winner").backends[0].cluster.clone();
        assert_eq!(cluster.expect("valid").to_string(), "default/s:53/udp");
        assert_eq!(
            of(54).outcome,
            "no route is attached to listener idle: dropped"
        );
        assert_eq!(
            of(80).outcome,
            "Gateway default/g has no listener on port 80/udp: refused"
        );
    }

    #[test]
    fn says_why_nothing_takes_it() {
        for (port, host, path, want) in [
            (80, "a.com", "/y", "no route of listener a matches: 404"),
            (80, "b.com", "/x", "no route of listener any matches: 404"),
            (
                81,
                "a.com",
                "/",
                "Gateway default/g has no listener on port 81: refused",
            ),
            (
                15021,
                "a.com",
                "/",
                "192.0.2.1:15021 answers GET /healthz/ready by itself",
            ),
        ] {
            assert_eq!(ask(port, host, path).outcome, want);
        }
    }
}
