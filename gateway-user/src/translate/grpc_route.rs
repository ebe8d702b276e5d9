//! GRPCRoutes: their matches as paths, and what of their rules can be carried out.
//!
//! A call is a POST to `/SERVICE/METHOD` (gRPC over HTTP/2, "Requests"), so that matches of service and method are matches of
//! the path.

use std::sync::Arc;

use super::filter::{self, Place};
use super::listener::{Fault, GRPC_ROUTE};
use super::objects::{GrpcMatchSpec, GrpcRoute, GrpcRuleSpec, MethodSpec};
use super::precedence::{self, Rank};
use super::route::{self, Action, Head, Match, Route, RuleSource};
use super::{backend_ref, route_match};
use crate::snapshot::{ObjectKey, PathMatch, RouteMatch};

/// Longest service and longest method.
const NAME_LENGTH: usize = 1024;

/// Compiles a route.
pub(super) fn compile<'a>(key: &'a ObjectKey, object: &'a GrpcRoute) -> Route<'a> {
    let spec = &object.spec;
    let head = Head {
        kind: GRPC_ROUTE,
        referrer: backend_ref::GRPC,
        key,
        metadata: &object.metadata,
        parents: &spec.parent_refs,
    };
    Route::compile(head, &spec.hostnames, spec.rules.as_deref(), &spec.unread)
}

impl RuleSource for GrpcRuleSpec {
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn matches(&self) -> Result<Vec<Match>, String> {
        if self.matches.is_empty() {
            return Ok(vec![compile_match(&GrpcMatchSpec::default())?]);
        }
        self.matches.iter().map(compile_match).collect()
    }

    fn action(&self, matches: &[Match]) -> Result<Action<'_>, Fault> {
        if let Some(field) = self.unread.keys().next() {
            let message = format!("field {field} is not supported");
            return Err(("UnsupportedValue", message));
        }
        let place = Place::rule(GRPC_ROUTE.kind, matches.iter().map(|m| &*m.matching));
        Ok(Action {
            filters: filter::compile(&self.filters, place)?,
            backends: route::backends(&self.backend_refs, place)?,
            ..Action::default()
        })
    }
}

fn compile_match(spec: &GrpcMatchSpec) -> Result<Match, String> {
    if let Some(field) = spec.unread.keys().next() {
        return Err(format!("match field {field} is not supported"));
    }
    let (path, rank) = match &spec.method {
        None => (
            PathMatch::Prefix("".into()),
            precedence::grpc(None, None, false),
        ),
        Some(method) => compile_method(method)?,
    };
    Ok(Match {
        matching: Arc::new(RouteMatch {
            path,
            method: None,
            headers: route_match::headers(&spec.headers)?,
            query: Vec::new(),
        }),
        rank,
    })
}

/// The path of calls to a service and method, and how specific it is.
fn compile_method(spec: &MethodSpec) -> Result<(PathMatch, Rank), String> {
    if let Some(field) = spec.unread.keys().next() {
        return Err(format!("match field method.{field} is not supported"));
    }
    let regex = match spec.kind.as_deref().unwrap_or("Exact") {
        "Exact" => false,
        "RegularExpression" => true,
        other => return Err(format!("method match type {other:?} does not exist")),
    };
    // Gateway API: what is empty matches all, as if it were not given.
    let given = |text: &'_ Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, method) = (given(&spec.service), given(&spec.method));
    let (service, method) = (service.as_deref(), method.as_deref());
    let rank = precedence::grpc(service, method, regex);
    let path = match (service, method) {
        (None, None) => return Err("method names neither a service nor a method".to_owned()),
        (service, method) if regex => pattern(service, method)?,
        (Some(service), None) => PathMatch::Prefix(format!("/{}", plain_service(service)?).into()),
        (Some(service), Some(method)) => {
            let (service, method) = (plain_service(service)?, plain_method(method)?);
            PathMatch::Exact(format!("/{service}/{method}").into())
        }
        (None, Some(method)) => {
            let path = format!("/{ANY}/{}", regex::escape(plain_method(method)?));
            PathMatch::Regex(route_match::anchored(method, &path)?)
        }
    };
    Ok((path, rank))
}

/// One element of a path, whatever it is.
const ANY: &str = "[^/]+";

fn pattern(service: Option<&str>, method: Option<&str>) -> Result<PathMatch, String> {
    let part = |text: Option<&str>| match text {
        None => Ok(ANY.to_owned()),
        Some(text) => route_match::regex_text(text).map(|()| format!("(?:{text})")),
    };
    let path = format!("/{}/{}", part(service)?, part(method)?);
    let shown = [service, method].into_iter().flatten().collect::<Vec<_>>();
    route_match::anchored(&shown.join("/"), &path).map(PathMatch::Regex)
}

/// A service with its package, as the CRD admits it: `helloworld.Greeter`.
pub(crate) fn is_service(text: &str) -> bool {
    let text = text.strip_prefix('.').unwrap_or(text);
    text.split('.').all(is_method)
}

/// A method, as the CRD admits it: `SayHello`.
pub(crate) fn is_method(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !text.is_empty() && text.bytes().all(word) && !text.as_bytes()[0].is_ascii_digit()
}

fn plain_service(text: &str) -> Result<&str, String> {
    if is_service(text) && text.len() <= NAME_LENGTH {
        Ok(text)
    } else {
        Err(format!(
            "{text:?} is not a gRPC service such as package.Service"
        ))
    }
}

fn plain_method(text: &str) -> Result<&str, String> {
    if is_method(text) && text.len() <= NAME_LENGTH {
        Ok(text)
    } else {
        Err(format!("{text:?} is not a gRPC method such as SayHello"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn path(method: Value) -> Result<PathMatch, String> {
        let mut spec = GrpcMatchSpec::default();
        if !method.is_null() {
            spec.method = Some(serde_json::from_value(method).unwrap());
        }
        compile_match(&spec).map(|m| m.matching.path.clone())
    }

    #[test]
    fn names_become_paths() {
        let shown = |path| match path {
            PathMatch::Exact(path) => format!("={path}"),
            PathMatch::Prefix(path) => format!("{path}/*"),
            PathMatch::Regex(pattern) => format!("~{}", pattern.0.as_str()),
        };
        for (method, want) in [
            (json!(null), "/*"),
            (json!({"service": "a.B", "method": "C"}), "=/a.B/C"),
            (json!({"service": ".a.B"}), "/.a.B/*"),
            (json!({"service": "a.B", "method": ""}), "/a.B/*"),
            (json!({"method": "C"}), "~^/[^/]+/C$"),
            (
                json!({"type": "RegularExpression", "service": "a|b"}),
                "~^/(?:a|b)/[^/]+$",
            ),
            (
                json!({"type": "RegularExpression", "method": "C+"}),
                "~^/[^/]+/(?:C+)$",
            ),
            (
                json!({"type": "RegularExpression", "service": "a", "method": "C"}),
                "~^/(?:a)/(?:C)$",
            ),
        ] {
            assert_eq!(path(method.clone()).map(shown).unwrap(), want, "{method}");
        }
    }

    #[test]
    fn what_names_no_call_is_refused() {
        for (method, want) in [
            (json!({}), "method names neither a service nor a method"),
            (
                json!({"type": "RegularExpression", "service": ""}),
                "method names neither a service nor a method",
            ),
            (
                json!({"type": "Prefix", "service": "a"}),
                "method match type \"Prefix\" does not exist",
            ),
            (
                json!({"service": "a/b"}),
                "\"a/b\" is not a gRPC service such as package.Service",
            ),
            (
                json!({"service": "a..b"}),
                "\"a..b\" is not a gRPC service such as package.Service",
            ),
            (
                json!({"service": "a", "method": "b.c"}),
                "\"b.c\" is not a gRPC method such as SayHello",
            ),
            (
                json!({"method": "1c"}),
                "\"1c\" is not a gRPC method such as SayHello",
            ),
            (
                json!({"type": "RegularExpression", "service": "a)|(b"}),
                "the regular expression \"a)|(b\" is not valid (syntax of the regex crate)",
            ),
            (
                json!({"service": "a", "more": 1}),
                "match field method.more is not supported",
            ),
        ] {
            assert_eq!(path(method).unwrap_err(), want);
        }
    }
}
