//! Filters of HTTPRoutes and GRPCRoutes.

use serde::{Deserialize, Serialize};

use super::{BackendRef, Present, Unread};

/// One filter: a type, and the settings of that type.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Settings of `RequestHeaderModifier`.
    pub request_header_modifier: Option<HeaderModifierSpec>,
    /// Settings of `ResponseHeaderModifier`.
    pub response_header_modifier: Option<HeaderModifierSpec>,
    /// Settings of `RequestMirror`.
    pub request_mirror: Option<MirrorSpec>,
    /// Settings of `RequestRedirect`.
    pub request_redirect: Option<RedirectSpec>,
    /// Settings of `URLRewrite`.
    pub url_rewrite: Option<RewriteSpec>,
    /// Settings of `CORS`.
    pub cors: Option<CorsSpec>,
    /// Settings of `ExtensionRef`, which is not carried out.
    pub extension_ref: Option<Present>,
    /// Settings of `ExternalAuth`, which is not carried out.
    pub external_auth: Option<Present>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// Edits of header fields.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderModifierSpec {
    /// Fields that get exactly this value.
    pub set: Vec<HeaderSpec>,
    /// Fields that get one more value.
    pub add: Vec<HeaderSpec>,
    /// Names of fields that go.
    pub remove: Vec<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One header field.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderSpec {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// `requestMirror`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MirrorSpec {
    /// Where copies go; has no weight and no filters.
    pub backend_ref: BackendRef,
    /// Share of the requests that are copied, 0 to 100.
    pub percent: Option<u32>,
    /// The same as a fraction.
    pub fraction: Option<FractionSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `fraction`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FractionSpec {
    /// Numerator.
    pub numerator: u32,
    /// Denominator; 100 if none.
    pub denominator: Option<u32>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `requestRedirect`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RedirectSpec {
    /// `http` or `https`; that of the request if none.
    pub scheme: Option<String>,
    /// Host; that of the request if none.
    pub hostname: Option<String>,
    /// Path; that of the request if none.
    pub path: Option<PathEditSpec>,
    /// Port.
    pub port: Option<u16>,
    /// 302 if none.
    pub status_code: Option<u16>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `urlRewrite`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RewriteSpec {
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathEditSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// How a path is replaced.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathEditSpec {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The new path.
    pub replace_full_path: Option<String>,
    /// What stands in place of the matched prefix.
    pub replace_prefix_match: Option<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `cors`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsSpec {
    /// Origins; `*` is any.
    pub allow_origins: Vec<String>,
    /// False if none.
    pub allow_credentials: Option<bool>,
    /// Methods; `*` is any.
    pub allow_methods: Vec<String>,
    /// Header fields of requests; `*` is any.
    pub allow_headers: Vec<String>,
    /// Header fields of answers; `*` is any.
    pub expose_headers: Vec<String>,
    /// Seconds; 5 if none.
    pub max_age: Option<u32>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}
