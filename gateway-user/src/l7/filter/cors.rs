//! `CORS`: which origins may read answers, and what preflight requests are told.
//!
//! Source: HTTPCORSFilter of Gateway API 1.7; the Fetch standard, "CORS protocol". Where credentials are allowed `*` means
//! nothing to a browser, so what it asked for is named instead.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::snapshot::{AnyOr, Cors, Origin};

/// What CORS makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsVerdict {
    /// It has no `Origin`: nothing is to be done.
    NotCors,
    /// A preflight request: the gateway answers it (204) with these fields. At most `Vary`: the origin is not admitted.
    Preflight(HeaderMap),
    /// It goes on; its answer gets these fields, see [`answer`]. At most `Vary`: the origin is not admitted.
    Actual(HeaderMap),
}

/// Judges a request. A request with several `Origin` fields is of no admitted origin.
#[must_use]
pub fn cors(cors: &Cors, method: &Method, headers: &HeaderMap) -> CorsVerdict {
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return CorsVerdict::NotCors;
    };
    let admitted = origins.next().is_none() && admits(&cors.allow_origins, origin);
    let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
    let mut fields = HeaderMap::new();
    if !admitted && !cors.allow_origins.contains(&Origin::Any) {
        // A shared cache must not give this answer to an origin that is admitted.
        fields.insert(VARY, HeaderValue::from_static("Origin"));
    }
    match asked.filter(|_| method == Method::OPTIONS) {
        Some(asked) => {
            if admitted {
                common(&mut fields, cors, origin);
                preflight(&mut fields, cors, asked, headers);
            }
            CorsVerdict::Preflight(fields)
        }
        None => {
            if admitted {
                common(&mut fields, cors, origin);
            }
            CorsVerdict::Actual(fields)
        }
    }
}

/// Removes what an endpoint says about CORS: where the gateway has a filter, it alone decides.
pub fn strip_foreign(headers: &mut HeaderMap) {
    let is_cors = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    let names: Vec<HeaderName> = headers.keys().filter(is_cors).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Puts the fields of [`CorsVerdict::Actual`] in place of an endpoint's. `Vary` keeps what the endpoint says.
pub fn answer(headers: &mut HeaderMap, fields: &HeaderMap) {
    strip_foreign(headers);
    for (name, value) in fields {
        // A map that is full takes no more; the browser then refuses the answer.
        let _ = if name == VARY {
            headers.try_append(name, value.clone()).map(drop)
        } else {
            headers.try_insert(name, value.clone()).map(drop)
        };
    }
}

/// What the answers to preflight and actual requests share.
fn common(fields: &mut HeaderMap, cors: &Cors, origin: &HeaderValue) {
    let any = cors.allow_origins.contains(&Origin::Any);
    if any && !cors.allow_credentials {
        fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    } else {
        fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        fields.insert(VARY, HeaderValue::from_static("Origin"));
    }
    if cors.allow_credentials {
        let yes = HeaderValue::from_static("true");
        fields.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
    let expose = match &cors.expose_headers {
        // With credentials there is no way to say "all".
        AnyOr::Any => (!cors.allow_credentials).then(|| HeaderValue::from_static("*")),
        AnyOr::These(names) => list(names.iter().map(HeaderName::as_str)),
    };
    put(fields, ACCESS_CONTROL_EXPOSE_HEADERS, expose);
}

fn preflight(fields: &mut HeaderMap, cors: &Cors, asked: &HeaderValue, headers: &HeaderMap) {
    let echo = cors.allow_credentials;
    let methods = match &cors.allow_methods {
        AnyOr::Any if echo => Method::from_bytes(asked.as_bytes())
            .ok()
            .and_then(|method| list([method.as_str()].into_iter())),
        AnyOr::Any => Some(HeaderValue::from_static("*")),
        AnyOr::These(methods) => list(methods.iter().map(Method::as_str)),
    };
    put(fields, ACCESS_CONTROL_ALLOW_METHODS, methods);
    let names = match &cors.allow_headers {
        AnyOr::Any if echo => {
            let asked = asked_headers(headers);
            list(asked.iter().map(HeaderName::as_str))
        }
        AnyOr::Any => Some(HeaderValue::from_static("*")),
        AnyOr::These(names) => list(names.iter().map(HeaderName::as_str)),
    };
    put(fields, ACCESS_CONTROL_ALLOW_HEADERS, names);
    fields.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.into());
    if echo {
        // What is named depends on what was asked for.
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        fields.insert(VARY, HeaderValue::from_static(vary));
    }
}

/// Names in `Access-Control-Request-Headers`, those that are none left out.
fn asked_headers(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(ACCESS_CONTROL_REQUEST_HEADERS)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

fn put(fields: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        fields.insert(name, value);
    }
}

/// `None` for an empty list.
fn list<'a>(items: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let items: Vec<&str> = items.collect();
    (!items.is_empty())
        .then(|| HeaderValue::try_from(items.join(", ")).ok())
        .flatten()
}

fn admits(allowed: &[Origin], origin: &HeaderValue) -> bool {
    let parts = origin.to_str().ok().and_then(Parts::of);
    allowed.iter().any(|allowed| match allowed {
        Origin::Any => true,
        Origin::Exact(exact) => {
            let exact = Parts::of(exact);
            exact.is_some_and(|exact| parts.is_some_and(|parts| parts.is(&exact)))
        }
        Origin::Wildcard {
            scheme,
            suffix,
            port,
        } => parts.is_some_and(|parts| {
            parts.scheme.eq_ignore_ascii_case(scheme)
                && parts.port == own_port_left_out(scheme, port)
                && ends_with(parts.host, suffix)
        }),
    })
}

/// One or more labels and the suffix.
fn ends_with(host: &str, suffix: &str) -> bool {
    let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
    let Some((labels, end)) = host
        .len()
        .checked_sub(suffix.len())
        .and_then(|at| host.split_at_checked(at))
    else {
        return false;
    };
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    end.eq_ignore_ascii_case(suffix)
        && labels.first().is_some_and(|first| *first != b'.')
        && (suffix.is_empty() || labels.iter().all(is_name))
}

/// An origin taken apart.
#[derive(Clone, Copy)]
struct Parts<'a> {
    /// Up to and with `://`.
    scheme: &'a str,
    host: &'a str,
    /// With the colon; empty for the scheme's own.
    port: &'a str,
}

impl<'a> Parts<'a> {
    /// `None`: `null`, or nothing that a browser sends.
    fn of(origin: &'a str) -> Option<Self> {
        let at = origin.find("://")? + 3;
        let (scheme, rest) = origin.split_at(at);
        let host_end = match rest.strip_prefix('[') {
            Some(address) => address.find(']')? + 2,
            None => rest.find(':').unwrap_or(rest.len()),
        };
        let (host, port) = rest.split_at(host_end);
        let digits = port.strip_prefix(':');
        let port_fine = match digits {
            Some(digits) => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
            None => port.is_empty(),
        };
        let host_fine = !host.is_empty() && !host.contains(['/', '?', '#', '@', '\\', ' ']);
        (port_fine && host_fine).then_some(Self {
            scheme,
            host,
            port: own_port_left_out(scheme, port),
        })
    }

    fn is(&self, other: &Self) -> bool {
        self.scheme.eq_ignore_ascii_case(other.scheme)
            && self.host.eq_ignore_ascii_case(other.host)
            && self.port == other.port
    }
}

/// Browsers leave the scheme's own port out; the configuration may name it.
fn own_port_left_out<'a>(scheme: &str, port: &'a str) -> &'a str {
    let own = (scheme.eq_ignore_ascii_case("http://") && port == ":80")
        || (scheme.eq_ignore_ascii_case("https://") && port == ":443");
    if own { "" } else { port }
}

#[cfg(test)]
mod tests;
