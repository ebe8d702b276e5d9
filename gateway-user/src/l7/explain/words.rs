//! Rules, filters and retries in words.
//!
//! Values of header fields are left out: they may be credentials.

use http::{HeaderName, HeaderValue};

use crate::snapshot::{
    AnyOr, BackendTarget, Cors, Filters, HeaderEdits, Mirror, Origin, PathEdit, Redirect, Retry,
    Rule, Snapshot,
};

/// The rule by its name, if it has one, else by its position; HTTPRoute is the kind that goes without saying.
pub(super) fn rule(rule: &Rule) -> String {
    let key = match &rule.name {
        Some(name) => format!("{}/rule/{name}", rule.key.route),
        None => rule.key.to_string(),
    };
    match rule.key.kind {
        "GRPCRoute" => format!("GRPCRoute {key}"),
        _ => key,
    }
}

/// One text for each thing that the filters do.
pub(super) fn filters(snapshot: &Snapshot, filters: &Filters) -> Vec<String> {
    let edits = [
        ("request", &filters.request_headers),
        ("response", &filters.response_headers),
    ];
    let edits = edits
        .into_iter()
        .filter(|(_, edits)| !edits.is_empty())
        .map(|(of, edits)| format!("{of} headers: {}", edited(edits)));
    let rewrite = filters.rewrite.iter().map(|rewrite| {
        let host = rewrite.hostname.iter().map(|host| format!("host {host}"));
        let parts: Vec<String> = host.chain(rewrite.path.iter().map(path)).collect();
        format!("rewrite: {}", joined(&parts, "nothing"))
    });
    let mirrors = filters.mirrors.iter();
    filters
        .redirect
        .iter()
        .map(redirect)
        .chain(edits)
        .chain(rewrite)
        .chain(mirrors.map(|mirror| mirrored(snapshot, mirror)))
        .chain(filters.cors.iter().map(cors))
        .collect()
}

/// Where a redirect leads to: what it does not name is that of the request.
pub(super) fn redirect(redirect: &Redirect) -> String {
    let scheme = redirect
        .scheme
        .map(|scheme| format!("scheme {}", scheme.as_str()));
    let host = redirect
        .hostname
        .as_ref()
        .map(|host| format!("host {host}"));
    let port = redirect.port.map(|port| format!("port {port}"));
    let parts = [scheme, host, port, redirect.path.as_ref().map(path)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let to = joined(&parts, "the same URL");
    format!("redirect {} to {to}", redirect.status)
}

pub(super) fn retry(retry: &Retry) -> String {
    let codes = retry.codes.iter().map(|code| format!(", {code}"));
    let codes: String = codes.collect();
    let backoff = match retry.backoff {
        Some(backoff) => format!(", {backoff:?} apart at least"),
        None => String::new(),
    };
    format!(
        "at most {} further tries on connection errors{codes}{backoff}",
        retry.attempts
    )
}

fn joined(parts: &[String], none: &str) -> String {
    if parts.is_empty() {
        none.to_owned()
    } else {
        parts.join(", ")
    }
}

fn edited(edits: &HeaderEdits) -> String {
    let names = |what: &'static str, fields: &[(HeaderName, HeaderValue)]| -> Vec<String> {
        let fields = fields.iter();
        fields.map(|(name, _)| format!("{what} {name}")).collect()
    };
    let remove = edits.remove.iter().map(|name| format!("remove {name}"));
    let mut parts = names("set", &edits.set);
    parts.extend(names("add", &edits.add));
    parts.extend(remove);
    parts.join(", ")
}

fn path(edit: &PathEdit) -> String {
    let shown = |path: &str| match path {
        "" => "/".to_owned(),
        path => path.to_owned(),
    };
    match edit {
        PathEdit::Full(path) => format!("path {path}"),
        PathEdit::Prefix {
            matched,
            replacement,
        } => format!("path with {} for {}", shown(replacement), shown(matched)),
    }
}

fn mirrored(snapshot: &Snapshot, mirror: &Mirror) -> String {
    let share = match (mirror.numerator, mirror.denominator) {
        (numerator, denominator) if numerator == denominator => String::new(),
        (numerator, denominator) => format!(" {numerator}/{denominator}"),
    };
    match &mirror.target {
        BackendTarget::Invalid(why) => format!("mirror nothing: {why}"),
        BackendTarget::Cluster(at) => match snapshot.clusters.get(*at as usize) {
            Some(cluster) => format!("mirror{share} to {}", cluster.key),
            None => "mirror nothing: there is no such cluster".to_owned(),
        },
    }
}

fn cors(cors: &Cors) -> String {
    let origins: Vec<String> = cors
        .allow_origins
        .iter()
        .map(|origin| match origin {
            Origin::Any => "any".to_owned(),
            Origin::Exact(origin) => origin.to_string(),
            Origin::Wildcard {
                scheme,
                suffix,
                port,
            } => format!("{scheme}*{suffix}{port}"),
        })
        .collect();
    let origins = joined(&origins, "no origin");
    let credentials = if cors.allow_credentials {
        " with credentials"
    } else {
        ""
    };
    let methods = match &cors.allow_methods {
        AnyOr::Any => "any".to_owned(),
        AnyOr::These(methods) => {
            let methods: Vec<String> = methods.iter().map(ToString::to_string).collect();
            joined(&methods, "simple ones only")
        }
    };
    format!("CORS for {origins}{credentials}, methods: {methods}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::snapshot::{Rewrite, Scheme};

    #[test]
    fn each_filter_is_said_and_no_value_of_a_header() {
        let name = HeaderName::from_static;
        let value = || HeaderValue::from_static("secret");
        let all = Filters {
            request_headers: HeaderEdits {
                set: vec![(name("authorization"), value())],
                add: vec![(name("x-a"), value())],
                remove: vec![name("x-b")],
            },
            response_headers: HeaderEdits {
                remove: vec![name("server")],
                ..HeaderEdits::default()
            },
            redirect: Some(Redirect {
                scheme: Some(Scheme::Https),
                hostname: Some("a.example".into()),
                path: Some(PathEdit::Full("/x".into())),
                port: Some(8443),
                status: 301,
            }),
            rewrite: Some(Rewrite {
                hostname: None,
                path: Some(PathEdit::Prefix {
                    matched: "/a".into(),
                    replacement: "".into(),
                }),
            }),
            mirrors: vec![Mirror {
                target: BackendTarget::Invalid("no".into()),
                http2: false,
                numerator: 1,
                denominator: 3,
            }],
            cors: Some(Cors {
                allow_origins: vec![
                    Origin::Exact("https://a.example".into()),
                    Origin::Wildcard {
                        scheme: "https://".into(),
                        suffix: ".b.example".into(),
                        port: ":81".into(),
                    },
                ],
                allow_credentials: true,
                allow_methods: AnyOr::These(vec![http::Method::PUT]),
                allow_headers: AnyOr::Any,
                expose_headers: AnyOr::Any,
                max_age: 5,
            }),
        };
        assert_eq!(
            filters(&Snapshot::default(), &all),
            [
                "redirect 301 to scheme https, host a.example, port 8443, path /x",
                "request headers: set authorization, add x-a, remove x-b",
                "response headers: remove server",
                "rewrite: path with / for /a",
                "mirror nothing: no",
                "CORS for https://a.example, https://*.b.example:81 with credentials, methods: PUT",
            ]
        );
    }

    #[test]
    fn retries_say_when_and_how_often() {
        let mut given = Retry {
            codes: vec![500, 503],
            attempts: 2,
            backoff: Some(Duration::from_millis(100)),
        };
        assert_eq!(
            retry(&given),
            "at most 2 further tries on connection errors, 500, 503, 100ms apart at least"
        );
        given.codes.clear();
        given.backoff = None;
        assert_eq!(
            retry(&given),
            "at most 2 further tries on connection errors"
        );
    }
}
