//! RequestRedirect and URLRewrite: hosts, paths, ports.

use std::sync::Arc;

use super::known;
use crate::snapshot::{Hostname, PathEdit, Redirect, Rewrite, Scheme};
use crate::translate::objects::{PathEditSpec, RedirectSpec, RewriteSpec};
use crate::translate::route_match::plain_path;

/// Gateway API's default.
const FOUND: u16 = 302;

/// `prefix` is that of the rule's only match.
pub(super) fn redirect(spec: &RedirectSpec, prefix: Option<&str>) -> Result<Redirect, String> {
    known(&spec.unread)?;
    let scheme = match spec.scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => {
            return Err(format!(
                "scheme {other:?} is not supported, use http or https"
            ));
        }
    };
    let status = spec.status_code.unwrap_or(FOUND);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(format!(
            "statusCode {status} is not supported, use 301, 302, 303, 307 or 308"
        ));
    }
    if spec.port == Some(0) {
        return Err("port must be 1 to 65535".to_owned());
    }
    Ok(Redirect {
        scheme,
        hostname: hostname(spec.hostname.as_deref())?,
        path: path(spec.path.as_ref(), prefix)?,
        port: spec.port,
        status,
    })
}

/// `prefix` is that of the rule's only match.
pub(super) fn rewrite(spec: &RewriteSpec, prefix: Option<&str>) -> Result<Rewrite, String> {
    known(&spec.unread)?;
    Ok(Rewrite {
        hostname: hostname(spec.hostname.as_deref())?,
        path: path(spec.path.as_ref(), prefix)?,
    })
}

fn hostname(text: Option<&str>) -> Result<Option<Arc<str>>, String> {
    let Some(text) = text else { return Ok(None) };
    match Hostname::parse(text).filter(|name| !name.is_wildcard()) {
        Some(name) => Ok(Some(name.as_str().into())),
        None => Err(format!("hostname {text:?} is not a DNS name")),
    }
}

fn path(spec: Option<&PathEditSpec>, prefix: Option<&str>) -> Result<Option<PathEdit>, String> {
    let Some(spec) = spec else { return Ok(None) };
    known(&spec.unread)?;
    let (full, part) = (&spec.replace_full_path, &spec.replace_prefix_match);
    match (spec.kind.as_str(), full.as_deref(), part.as_deref()) {
        ("ReplaceFullPath", Some(""), None) => Ok(Some(PathEdit::Full("/".into()))),
        ("ReplaceFullPath", Some(path), None) => Ok(Some(PathEdit::Full(plain_path(path)?.into()))),
        ("ReplacePrefixMatch", None, Some(replacement)) => {
            let matched = prefix.ok_or(
                "ReplacePrefixMatch needs exactly one match in the rule, of type PathPrefix",
            )?;
            let replacement = match replacement {
                "" => "",
                path => plain_path(path)?,
            };
            Ok(Some(PathEdit::Prefix {
                matched: matched.into(),
                replacement: replacement.into(),
            }))
        }
        ("ReplaceFullPath", ..) => Err("path needs replaceFullPath and nothing else".to_owned()),
        ("ReplacePrefixMatch", ..) => {
            Err("path needs replacePrefixMatch and nothing else".to_owned())
        }
        (other, ..) => Err(format!("path type {other:?} does not exist")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<Redirect, String> {
        redirect(&serde_json::from_value(value).unwrap(), Some("/a"))
    }

    #[test]
    fn redirects_have_gateway_apis_defaults() {
        let all_given = json!({"scheme": "https", "hostname": "A.example", "port": 8443,
            "statusCode": 308, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/b"}});
        assert_eq!(
            read(json!({})).unwrap(),
            Redirect {
                scheme: None,
                hostname: None,
                path: None,
                port: None,
                status: 302,
            }
        );
        assert_eq!(
            read(all_given).unwrap(),
            Redirect {
                scheme: Some(Scheme::Https),
                hostname: Some("a.example".into()),
                path: Some(PathEdit::Full("/b".into())),
                port: Some(8443),
                status: 308,
            }
        );
        for status in [301, 302, 303, 307, 308] {
            assert_eq!(read(json!({"statusCode": status})).unwrap().status, status);
        }
    }

    #[test]
    fn what_no_location_can_say_is_refused() {
        for (spec, want) in [
            (
                json!({"scheme": "ftp"}),
                "scheme \"ftp\" is not supported, use http or https",
            ),
            (
                json!({"statusCode": 304}),
                "statusCode 304 is not supported, use 301, 302, 303, 307 or 308",
            ),
            (json!({"port": 0}), "port must be 1 to 65535"),
            (
                json!({"hostname": "*.a.com"}),
                "hostname \"*.a.com\" is not a DNS name",
            ),
            (
                json!({"hostname": "a.com/x"}),
                "hostname \"a.com/x\" is not a DNS name",
            ),
            (
                json!({"path": {"type": "Other"}}),
                "path type \"Other\" does not exist",
            ),
            (
                json!({"path": {"type": "ReplaceFullPath", "replacePrefixMatch": "/b"}}),
                "path needs replaceFullPath and nothing else",
            ),
            (
                json!({"path": {"type": "ReplacePrefixMatch"}}),
                "path needs replacePrefixMatch and nothing else",
            ),
            (
                json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "b\r\nx"}}),
                "path \"b\\r\\nx\" is not an absolute, normalised path of at most 1024 characters",
            ),
        ] {
            assert_eq!(read(spec).unwrap_err(), want);
        }
    }

    #[test]
    fn paths_may_be_replaced_by_nothing() {
        let path = |spec| read(json!({"path": spec})).unwrap().path.unwrap();
        assert_eq!(
            path(json!({"type": "ReplaceFullPath", "replaceFullPath": ""})),
            PathEdit::Full("/".into())
        );
        assert_eq!(
            path(json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": ""})),
            PathEdit::Prefix {
                matched: "/a".into(),
                replacement: "".into()
            }
        );
    }
}
