//! Says which listener, route and rule a request belongs to, and why the better ones do not take it.
//!
//! Asks the same router that serves requests; it decides nothing by itself.

use std::net::IpAddr;
use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::Serialize;

use super::router::{Entry, RequestView};
use crate::snapshot::{BackendTarget, Bind, Rule, Snapshot, TrafficPolicy};

/// The request that is asked about.
#[derive(Clone, Debug)]
pub struct Question {
    host: String,
    port: u16,
    path: String,
    query: Option<String>,
    method: String,
    headers: HeaderMap,
}

/// Why a question cannot be asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The URL cannot be read.
    #[error(
        "{0:?} is not a URL that this can explain; give one such as http://shop.example.com/cart"
    )]
    Url(String),
    /// A header cannot be read.
    #[error("{0:?} is not a header; give NAME:VALUE")]
    Header(String),
}

impl Question {
    /// Reads a request from a URL, a method and headers as `NAME:VALUE`.
    ///
    /// # Errors
    /// The part that cannot be read.
    pub fn new(url: &str, method: &str, headers: &[String]) -> Result<Self, QuestionError> {
        let bad = || QuestionError::Url(url.to_owned());
        let uri = Uri::from_str(url).map_err(|_| bad())?;
        if uri.scheme_str() != Some("http") {
            return Err(bad());
        }
        let host = uri.host().ok_or_else(bad)?.to_ascii_lowercase();
        let mut map = HeaderMap::new();
        for header in headers {
            let bad = || QuestionError::Header(header.clone());
            let (name, value) = header.split_once(':').ok_or_else(bad)?;
            let name = HeaderName::from_str(name.trim()).map_err(|_| bad())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
            map.append(name, value);
        }
        Ok(Self {
            host,
            port: uri.port_u16().unwrap_or(80),
            path: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
            method: method.to_ascii_uppercase(),
            headers: map,
        })
    }

    /// Reads a request from pairs named `url`, `method` and `header`, as the admin endpoint gets them.
    ///
    /// # Errors
    /// The part that cannot be read.
    pub fn from_pairs(pairs: &[(String, String)]) -> Result<Self, QuestionError> {
        let find = |name: &str| {
            pairs
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.as_str())
        };
        let headers: Vec<String> = pairs
            .iter()
            .filter(|(n, _)| n == "header")
            .map(|(_, v)| v.clone())
            .collect();
        Self::new(
            find("url").unwrap_or(""),
            find("method").unwrap_or("GET"),
            &headers,
        )
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            method: &self.method,
            headers: &self.headers,
        }
    }
}

/// One explanation for each address and port that the request could have been sent to.
#[derive(Debug, Default, Serialize)]
pub struct Explanation {
    /// In the order of the addresses. Empty: nothing listens on that port.
    pub binds: Vec<BindExplanation>,
}

/// What one address and port does with the request.
#[derive(Debug, Serialize)]
pub struct BindExplanation {
    /// The address and port.
    pub address: String,
    /// The Gateway.
    pub gateway: String,
    /// The listener that the host belongs to; `None`: answers 404.
    pub listener: Option<String>,
    /// Matches that rank higher than the one that wins, with the reason why they do not hold.
    pub passed_over: Vec<PassedOver>,
    /// The rule that wins; `None`: answers 404.
    pub rule: Option<RuleExplanation>,
}

/// A match that does not hold.
#[derive(Debug, Serialize)]
pub struct PassedOver {
    /// `namespace/route/rule/N`.
    pub rule: String,
    /// Which of its parts does not hold.
    pub because: String,
}

/// The rule that takes the request.
#[derive(Debug, Serialize)]
pub struct RuleExplanation {
    /// `namespace/route/rule/N`.
    pub rule: String,
    /// Where it sends requests.
    pub backends: Vec<BackendExplanation>,
}

/// One backend of the rule.
#[derive(Debug, Serialize)]
pub struct BackendExplanation {
    /// Its weight.
    pub weight: u32,
    /// `namespace/service:port`, or why the reference is bad.
    pub target: String,
    /// The DestinationRule that applies.
    pub destination_rule: Option<String>,
    /// Its policy.
    pub policy: Option<TrafficPolicy>,
    /// Its endpoints.
    pub endpoints: Vec<String>,
}

/// Explains what `snapshot` does with a request. A host that is a VIP limits the answer to that address.
#[must_use]
pub fn explain(snapshot: &Snapshot, question: &Question) -> Explanation {
    let address = question
        .host
        .trim_matches(['[', ']'])
        .parse::<IpAddr>()
        .ok();
    let only = address.filter(|a| snapshot.addresses.contains_key(a));
    let binds = snapshot.binds.values();
    Explanation {
        binds: binds
            .filter(|b| b.key.port == question.port && only.is_none_or(|a| a == b.key.address))
            .map(|bind| explain_bind(snapshot, bind, question))
            .collect(),
    }
}

fn explain_bind(snapshot: &Snapshot, bind: &Bind, question: &Question) -> BindExplanation {
    let listener = bind.listener(&question.host);
    let mut explanation = BindExplanation {
        address: std::net::SocketAddr::from(bind.key).to_string(),
        gateway: bind.gateway.to_string(),
        listener: listener.map(|l| l.name.to_string()),
        passed_over: Vec::new(),
        rule: None,
    };
    let Some(listener) = listener else {
        return explanation;
    };
    let view = question.view();
    let winner = listener.router.pick(&view);
    let rule_of = |position: u32| snapshot.rules.get(position as usize);
    explanation.rule = winner
        .and_then(rule_of)
        .map(|rule| explain_rule(snapshot, rule));
    for entry in listener.router.entries() {
        if Some(entry.rule) == winner && entry.matches(&view) {
            break;
        }
        if let (Some(rule), Some(because)) = (rule_of(entry.rule), mismatch(entry, &view)) {
            let rule = rule.key.to_string();
            explanation.passed_over.push(PassedOver { rule, because });
        }
    }
    explanation
}

/// The first part of the match that does not hold.
fn mismatch(entry: &Entry, view: &RequestView<'_>) -> Option<String> {
    if let Some(name) = entry
        .hostname
        .as_ref()
        .filter(|name| !name.matches(view.host))
    {
        return Some(format!("its host is {name}"));
    }
    if entry.matches(view) {
        return None;
    }
    let mut part = entry.clone();
    part.hostname = None;
    part.matching.headers.clear();
    part.matching.query.clear();
    part.matching.method = None;
    if !part.matches(view) {
        return Some(format!("its path is {:?}", entry.matching.path));
    }
    part.matching.method.clone_from(&entry.matching.method);
    if !part.matches(view) {
        return Some(format!(
            "its method is {}",
            entry.matching.method.as_deref().unwrap_or("")
        ));
    }
    for header in &entry.matching.headers {
        part.matching.headers = vec![header.clone()];
        if !part.matches(view) {
            return Some(format!("the header {} does not match", header.0));
        }
    }
    Some("the query does not match".into())
}

fn explain_rule(snapshot: &Snapshot, rule: &Rule) -> RuleExplanation {
    let backend = |backend: &crate::snapshot::Backend| {
        let cluster = match &backend.target {
            BackendTarget::Cluster(at) => snapshot.clusters.get(*at as usize),
            BackendTarget::Invalid(_) => None,
        };
        BackendExplanation {
            weight: backend.weight,
            target: match (&backend.target, cluster) {
                (BackendTarget::Invalid(why), _) => format!("answers 500: {why}"),
                (_, Some(cluster)) => cluster.key.to_string(),
                (_, None) => "answers 500".into(),
            },
            destination_rule: cluster
                .and_then(|c| c.key.destination_rule.as_ref())
                .map(ToString::to_string),
            policy: cluster.map(|c| c.policy.clone()),
            endpoints: cluster.map_or_else(Vec::new, |c| {
                c.endpoints
                    .iter()
                    .map(|e| e.key.address.to_string())
                    .collect()
            }),
        }
    };
    RuleExplanation {
        rule: rule.key.to_string(),
        backends: rule.backends.iter().map(backend).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_or_named_as_bad() {
        let q = Question::new("http://A.example:8080/p?x=1", "post", &["X-Y: z".into()]).unwrap();
        assert_eq!(
            (q.host.as_str(), q.port, q.path.as_str()),
            ("a.example", 8080, "/p")
        );
        assert_eq!(
            (q.method.as_str(), q.query.as_deref()),
            ("POST", Some("x=1"))
        );
        assert_eq!(q.headers["x-y"], "z");
        for bad in ["", "a.example", "https://a/", "http:///x", "http://a b/"] {
            let error = Question::new(bad, "GET", &[]).unwrap_err();
            assert_eq!(error, QuestionError::Url(bad.into()));
        }
        let error = Question::new("http://a/", "GET", &["x".into()]).unwrap_err();
        assert_eq!(error.to_string(), "\"x\" is not a header; give NAME:VALUE");
    }
}
