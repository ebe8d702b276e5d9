//! CORS (GEP-1767): origins, methods, header fields.

use http::{HeaderName, Method};

use super::known;
use crate::snapshot::{AnyOr, Cors, Origin};
use crate::translate::objects::CorsSpec;

/// Seconds; Gateway API's default.
const MAX_AGE: u32 = 5;

pub(super) fn compile(spec: &CorsSpec) -> Result<Cors, String> {
    known(&spec.unread)?;
    let max_age = spec.max_age.unwrap_or(MAX_AGE);
    if max_age == 0 {
        return Err("maxAge must be at least 1".to_owned());
    }
    let origins: Result<Vec<Origin>, String> =
        spec.allow_origins.iter().map(|o| origin(o)).collect();
    Ok(Cors {
        allow_origins: origins?,
        allow_credentials: spec.allow_credentials.unwrap_or(false),
        allow_methods: any_or(&spec.allow_methods, method)?,
        allow_headers: any_or(&spec.allow_headers, header)?,
        expose_headers: any_or(&spec.expose_headers, header)?,
        max_age,
    })
}

/// An origin as browsers write it: lower case, without the port that its scheme means anyway.
fn origin(text: &str) -> Result<Origin, String> {
    if text == "*" {
        return Ok(Origin::Any);
    }
    let lower = text.to_ascii_lowercase();
    let bad = || format!("{text:?} is not an origin such as https://example.com");
    let (scheme, authority) = lower.split_once("://").ok_or_else(bad)?;
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let port = match port {
        None => None,
        Some(port) if digits(port) => match port.parse::<u16>() {
            Ok(port @ 1..) => Some(port),
            _ => return Err(bad()),
        },
        Some(_) => return Err(bad()),
    };
    let port = match (scheme, port) {
        ("http", None | Some(80)) | ("https", None | Some(443)) => String::new(),
        ("http" | "https", Some(port)) => format!(":{port}"),
        _ => return Err(bad()),
    };
    let suffix = match host {
        "*" => Some(""),
        _ => host.strip_prefix('*'),
    };
    let named = match suffix {
        None => host,
        Some(suffix) => suffix.strip_prefix('.').unwrap_or(suffix),
    };
    let label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(allowed)
    };
    let separated = suffix.is_none_or(|suffix| suffix.is_empty() || suffix.starts_with('.'));
    if host != "*" && !(separated && named.split('.').all(label)) {
        return Err(bad());
    }
    Ok(match suffix {
        None => Origin::Exact(format!("{scheme}://{host}{port}").into()),
        Some(suffix) => Origin::Wildcard {
            scheme: format!("{scheme}://").into(),
            suffix: suffix.into(),
            port: port.into(),
        },
    })
}

fn any_or<T: PartialEq>(
    given: &[String],
    read: fn(&str) -> Result<T, String>,
) -> Result<AnyOr<T>, String> {
    if given.iter().any(|text| text == "*") {
        return match given.len() {
            1 => Ok(AnyOr::Any),
            _ => Err("* must stand alone".to_owned()),
        };
    }
    let mut values = Vec::new();
    for text in given {
        let value = read(text)?;
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Ok(AnyOr::These(values))
}

/// Methods are told apart by case, so `get` would never be asked for.
fn method(text: &str) -> Result<Method, String> {
    let method = Method::from_bytes(text.as_bytes());
    let upper = |_: &Method| text.bytes().all(|b| !b.is_ascii_lowercase());
    method
        .ok()
        .filter(upper)
        .ok_or_else(|| format!("{text:?} is not a method such as GET"))
}

fn header(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is not a header name"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<Cors, String> {
        compile(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn nothing_is_allowed_unless_it_is_said() {
        assert_eq!(
            read(json!({})).unwrap(),
            Cors {
                allow_origins: Vec::new(),
                allow_credentials: false,
                allow_methods: AnyOr::default(),
                allow_headers: AnyOr::default(),
                expose_headers: AnyOr::default(),
                max_age: 5,
            }
        );
        let cors = read(
            json!({"allowOrigins": ["*"], "allowCredentials": true, "maxAge": 600,
            "allowMethods": ["*"], "allowHeaders": ["X-A", "x-a"], "exposeHeaders": ["*"]}),
        )
        .unwrap();
        assert_eq!(cors.allow_origins, [Origin::Any]);
        assert_eq!(cors.allow_methods, AnyOr::Any);
        assert_eq!(cors.expose_headers, AnyOr::Any);
        let name = HeaderName::from_static("x-a");
        assert_eq!(cors.allow_headers, AnyOr::These(vec![name]));
        assert!(cors.allow_credentials && cors.max_age == 600);
    }

    #[test]
    fn origins_are_as_browsers_write_them() {
        let wildcard = |scheme: &str, suffix: &str, port: &str| Origin::Wildcard {
            scheme: scheme.into(),
            suffix: suffix.into(),
            port: port.into(),
        };
        for (text, want) in [
            ("*", Origin::Any),
            (
                "https://Example.com",
                Origin::Exact("https://example.com".into()),
            ),
            (
                "https://example.com:443",
                Origin::Exact("https://example.com".into()),
            ),
            (
                "https://example.com:80",
                Origin::Exact("https://example.com:80".into()),
            ),
            (
                "http://192.0.2.1:8080",
                Origin::Exact("http://192.0.2.1:8080".into()),
            ),
            (
                "https://*.example.com",
                wildcard("https://", ".example.com", ""),
            ),
            (
                "http://*.example.com:80",
                wildcard("http://", ".example.com", ""),
            ),
            (
                "http://*.example.com:81",
                wildcard("http://", ".example.com", ":81"),
            ),
            ("https://*", wildcard("https://", "", "")),
        ] {
            assert_eq!(origin(text), Ok(want), "{text}");
        }
        for bad in [
            "",
            "null",
            "example.com",
            "ftp://example.com",
            "https://",
            "https://a/",
            "https://a.com/path",
            "https://*a.com",
            "https://a.*.com",
            "https://*.",
            "https://a:0",
            "https://a:+1",
            "https://a:",
            "https://a:99999",
            "https://u@a",
            "https://a..b",
        ] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        for (spec, want) in [
            (json!({"maxAge": 0}), "maxAge must be at least 1"),
            (json!({"allowMethods": ["*", "GET"]}), "* must stand alone"),
            (
                json!({"allowMethods": ["get"]}),
                "\"get\" is not a method such as GET",
            ),
            (
                json!({"allowMethods": [""]}),
                "\"\" is not a method such as GET",
            ),
            (
                json!({"exposeHeaders": ["a b"]}),
                "\"a b\" is not a header name",
            ),
        ] {
            assert_eq!(read(spec).unwrap_err(), want);
        }
    }
}
