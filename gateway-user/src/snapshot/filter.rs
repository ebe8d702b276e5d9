//! What a rule or one of its backends does to requests and responses on their way: Gateway API's filters, checked.
//!
//! Source: HTTPRouteFilter and GRPCRouteFilter of Gateway API 1.7. A list of filters holds each type at most once (mirrors
//! excepted), so its order carries no meaning.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use serde::{Serialize, Serializer};

use super::route::BackendTarget;

/// The filters of one rule, or of one backendRef; those of a backendRef come after those of its rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filters {
    /// `RequestHeaderModifier`.
    pub request_headers: HeaderEdits,
    /// `ResponseHeaderModifier`.
    pub response_headers: HeaderEdits,
    /// `RequestRedirect`: the request is answered and goes no further.
    pub redirect: Option<Redirect>,
    /// `URLRewrite`.
    pub rewrite: Option<Rewrite>,
    /// `RequestMirror`, in the order of the list.
    pub mirrors: Vec<Mirror>,
    /// `CORS`.
    pub cors: Option<Cors>,
}

impl Filters {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Edits of header fields: `set` replaces, `add` appends, `remove` removes; in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Fields that get exactly this value.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that get one more value.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Fields that go.
    pub remove: Vec<HeaderName>,
}

impl HeaderEdits {
    /// Whether nothing is edited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

impl Serialize for HeaderEdits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            set: Vec<(&'a str, String)>,
            add: Vec<(&'a str, String)>,
            remove: Vec<&'a str>,
        }
        fn pairs(fields: &[(HeaderName, HeaderValue)]) -> Vec<(&str, String)> {
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            fields.iter().map(|(n, v)| (n.as_str(), text(v))).collect()
        }
        Shape {
            set: pairs(&self.set),
            add: pairs(&self.add),
            remove: self.remove.iter().map(HeaderName::as_str).collect(),
        }
        .serialize(serializer)
    }
}

/// `RequestRedirect`: what is not given is taken from the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// Scheme of the location.
    pub scheme: Option<Scheme>,
    /// Host of the location.
    pub hostname: Option<Arc<str>>,
    /// Path of the location.
    pub path: Option<PathEdit>,
    /// Port of the location. None: the scheme's own if `scheme` is given, else that of the listener.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

impl Scheme {
    /// As URLs write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URL without one means.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// `URLRewrite`: what the backend sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// New value of `Host`.
    pub hostname: Option<Arc<str>>,
    /// New path; the query stays.
    pub path: Option<PathEdit>,
}

/// How a path is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum PathEdit {
    /// `ReplaceFullPath`.
    Full(Arc<str>),
    /// `ReplacePrefixMatch`.
    Prefix {
        /// The prefix that the rule matches, without a trailing slash; empty for `/`.
        matched: Arc<str>,
        /// What stands in its place.
        replacement: Arc<str>,
    },
}

/// `RequestMirror`: a copy of the request goes there too and its answer is thrown away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// Where copies go. An invalid target gets none.
    pub target: BackendTarget,
    /// Where the Service's port says nothing else, its endpoints speak HTTP/2 (a GRPCRoute's do).
    pub http2: bool,
    /// Numerator of the share of requests that are copied.
    pub numerator: u32,
    /// Its denominator; at least 1.
    pub denominator: u32,
}

/// `CORS`, as the Fetch standard understands the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cors {
    /// Origins that may read answers.
    pub allow_origins: Vec<Origin>,
    /// Whether they may send credentials.
    pub allow_credentials: bool,
    /// Methods that they may use.
    pub allow_methods: AnyOr<Method>,
    /// Header fields that they may send.
    pub allow_headers: AnyOr<HeaderName>,
    /// Header fields of answers that they may read. Any: `*`.
    pub expose_headers: AnyOr<HeaderName>,
    /// Seconds for which a browser may remember the answer to a preflight request; Gateway API's default is 5.
    pub max_age: u32,
}

/// An origin that a CORS filter admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Origin {
    /// `*`.
    Any,
    /// Exactly this one, in lower case: `https://example.com:8443`.
    Exact(Arc<str>),
    /// A scheme, `*` in place of one or more labels, and what follows: `https://`, `.example.com`, a port if one is given.
    /// Everything in lower case.
    Wildcard {
        /// Up to and with `://`.
        scheme: Arc<str>,
        /// What follows the asterisk, without the port; empty: any host.
        suffix: Arc<str>,
        /// With the colon; empty: the scheme's own port.
        port: Arc<str>,
    },
}

/// `*`, or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyOr<T> {
    /// All of them.
    Any,
    /// These.
    These(Vec<T>),
}

impl<T> Default for AnyOr<T> {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl<T: AsRef<str>> Serialize for AnyOr<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("*"),
            Self::These(list) => serializer.collect_seq(list.iter().map(AsRef::as_ref)),
        }
    }
}
