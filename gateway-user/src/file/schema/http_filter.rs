//! Filters of HTTPRoutes and GRPCRoutes: the CRDs of Gateway API 1.7, experimental types included.

use serde_json::Value;

use super::format::{FREE, GROUP_NAME, KIND_NAME, NAME, PORT, PRECISE_HOST, TOKEN};
use super::route::BACKEND_REF;
use super::{Format, List, Schema, entries, given, may, need, repeated, set, string};

/// Each type and the field that holds its settings.
const TYPES: [(&str, &str); 8] = [
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("ExtensionRef", "extensionRef"),
    ("CORS", "cors"),
    ("ExternalAuth", "externalAuth"),
];

/// Types that a list of filters may hold several times.
const REPEATABLE: [&str; 3] = ["RequestMirror", "ExtensionRef", "ExternalAuth"];

pub(super) const FILTERS: Schema = Schema::List(List {
    least: 0,
    most: 16,
    of: &Schema::Object(
        &[
            need(
                "type",
                &Schema::Choice(&[
                    "RequestHeaderModifier",
                    "ResponseHeaderModifier",
                    "RequestMirror",
                    "RequestRedirect",
                    "URLRewrite",
                    "ExtensionRef",
                    "CORS",
                    "ExternalAuth",
                ]),
            ),
            may("requestHeaderModifier", &HEADERS),
            may("responseHeaderModifier", &HEADERS),
            may("requestMirror", &MIRROR),
            may("requestRedirect", &REDIRECT),
            may("urlRewrite", &REWRITE),
            may("extensionRef", &EXTENSION),
            may("cors", &CORS),
            may("externalAuth", &EXTERNAL_AUTH),
        ],
        &[settings_fit_the_type],
    ),
    by: &[],
    rules: &[types_stand_once, redirect_or_rewrite],
});

/// Filters of GRPCRoutes.
pub(super) const GRPC_FILTERS: Schema = Schema::List(List {
    least: 0,
    most: 16,
    of: &Schema::Object(
        &[
            need(
                "type",
                &Schema::Choice(&[
                    "ResponseHeaderModifier",
                    "RequestHeaderModifier",
                    "RequestMirror",
                    "ExtensionRef",
                ]),
            ),
            may("requestHeaderModifier", &HEADERS),
            may("responseHeaderModifier", &HEADERS),
            may("requestMirror", &MIRROR),
            may("extensionRef", &EXTENSION),
        ],
        &[settings_fit_the_type],
    ),
    by: &[],
    rules: &[types_stand_once],
});

fn settings_fit_the_type(filter: &Value) -> Option<(String, String)> {
    choice_fits(filter, ("type", string(filter, "type")?), &TYPES)
}

/// Each choice and the field that holds its settings: the one that is chosen must be there, the others must not.
fn choice_fits(
    object: &Value,
    (what, chosen): (&str, &str),
    fields: &[(&str, &str)],
) -> Option<(String, String)> {
    fields.iter().find_map(|&(choice, field)| {
        let message = match (given(object, field).is_some(), choice == chosen) {
            (true, false) => format!("must not be given for {what} {chosen}"),
            (false, true) => format!("is missing: {what} {chosen} needs it"),
            _ => return None,
        };
        Some((format!(".{field}"), message))
    })
}

fn types_stand_once(filters: &Value) -> Option<(String, String)> {
    let once = |filter: &Value| {
        let kind = string(filter, "type").filter(|kind| !REPEATABLE.contains(kind))?;
        Some(kind.to_owned())
    };
    let (at, first, kind) = repeated(filters.as_array()?, once)?;
    let message =
        format!("a {kind} filter stands in entry {first} already and must be the only one");
    Some((format!("[{at}]"), message))
}

fn redirect_or_rewrite(filters: &Value) -> Option<(String, String)> {
    let filters = filters.as_array()?;
    let has = |kind| {
        filters
            .iter()
            .any(|filter| string(filter, "type") == Some(kind))
    };
    let message = "RequestRedirect and URLRewrite exclude each other";
    (has("RequestRedirect") && has("URLRewrite")).then(|| (String::new(), message.to_owned()))
}

/// A rule whose filters replace the matched prefix must have exactly one match, of a prefix.
pub(super) fn needs_one_prefix(rule: &Value) -> Option<(String, String)> {
    let replaces = |filter: &Value| {
        ["requestRedirect", "urlRewrite"].iter().any(|field| {
            given(filter, field)
                .and_then(|settings| given(settings, "path"))
                .is_some_and(|path| given(path, "replacePrefixMatch").is_some())
        })
    };
    let of_backends = entries(rule, "backendRefs")
        .iter()
        .flat_map(|backend| entries(backend, "filters"));
    if !entries(rule, "filters")
        .iter()
        .chain(of_backends)
        .any(replaces)
    {
        return None;
    }
    let prefix = |matching: &Value| {
        let path = given(matching, "path");
        path.is_none_or(|path| string(path, "type").unwrap_or("PathPrefix") == "PathPrefix")
    };
    let fits = match entries(rule, "matches") {
        [] => true,
        [only] => prefix(only),
        _ => false,
    };
    let message = "expected exactly one match of type PathPrefix, as a filter replaces the prefix";
    (!fits).then(|| (".matches".to_owned(), message.to_owned()))
}

const HEADER_NAME: Schema = Schema::Text(1, 256, TOKEN);
const HEADER: Schema = Schema::Object(
    &[
        need("name", &HEADER_NAME),
        need("value", &Schema::Text(1, 4096, FREE)),
    ],
    &[],
);
const HEADERS: Schema = Schema::Object(
    &[
        may("set", &set(0, 16, &HEADER, &["name"])),
        may("add", &set(0, 16, &HEADER, &["name"])),
        may(
            "remove",
            &set(0, 16, &Schema::Text(0, usize::MAX, FREE), &[""]),
        ),
    ],
    &[],
);

const MIRROR: Schema = Schema::Object(
    &[
        need("backendRef", &BACKEND_REF),
        may("percent", &Schema::Number(0, 100)),
        may(
            "fraction",
            &Schema::Object(
                &[
                    need("numerator", &Schema::Number(0, i32::MAX as i64)),
                    may("denominator", &Schema::Number(1, i32::MAX as i64)),
                ],
                &[at_most_one],
            ),
        ),
    ],
    &[percent_or_fraction],
);

fn at_most_one(fraction: &Value) -> Option<(String, String)> {
    let number = |field| given(fraction, field).and_then(Value::as_i64);
    let message = "must not be larger than denominator";
    (number("numerator")? > number("denominator").unwrap_or(100))
        .then(|| (".numerator".to_owned(), message.to_owned()))
}

fn percent_or_fraction(mirror: &Value) -> Option<(String, String)> {
    let both = given(mirror, "percent").is_some() && given(mirror, "fraction").is_some();
    let message = "percent and fraction exclude each other";
    both.then(|| (String::new(), message.to_owned()))
}

const PATH_MODIFIER: Schema = Schema::Object(
    &[
        need(
            "type",
            &Schema::Choice(&["ReplaceFullPath", "ReplacePrefixMatch"]),
        ),
        may("replaceFullPath", &Schema::Text(0, 1024, FREE)),
        may("replacePrefixMatch", &Schema::Text(0, 1024, FREE)),
    ],
    &[replacement_fits_the_type],
);

fn replacement_fits_the_type(path: &Value) -> Option<(String, String)> {
    let fields = [
        ("ReplaceFullPath", "replaceFullPath"),
        ("ReplacePrefixMatch", "replacePrefixMatch"),
    ];
    choice_fits(path, ("type", string(path, "type")?), &fields)
}

const REDIRECT: Schema = Schema::Object(
    &[
        may("scheme", &Schema::Choice(&["http", "https"])),
        may("hostname", &PRECISE_HOST),
        may("path", &PATH_MODIFIER),
        may("port", &PORT),
        may("statusCode", &Schema::OneOf(&[301, 302, 303, 307, 308])),
    ],
    &[],
);

const REWRITE: Schema = Schema::Object(
    &[may("hostname", &PRECISE_HOST), may("path", &PATH_MODIFIER)],
    &[],
);

const EXTERNAL_AUTH: Schema = Schema::Object(
    &[
        need("protocol", &Schema::Choice(&["HTTP", "GRPC"])),
        need("backendRef", &BACKEND_REF),
    ],
    &[settings_fit_the_protocol],
);

fn settings_fit_the_protocol(auth: &Value) -> Option<(String, String)> {
    let protocol = string(auth, "protocol")?;
    choice_fits(
        auth,
        ("protocol", protocol),
        &[("GRPC", "grpc"), ("HTTP", "http")],
    )
}

const EXTENSION: Schema = Schema::Object(
    &[
        need("group", &GROUP_NAME),
        need("kind", &KIND_NAME),
        need("name", &NAME),
    ],
    &[],
);

const CORS: Schema = Schema::Object(
    &[
        may(
            "allowOrigins",
            &any_or_set(64, &Schema::Text(1, 253, ORIGIN)),
        ),
        may("allowCredentials", &Schema::Bool),
        may(
            "allowMethods",
            &any_or_set(
                9,
                &Schema::Choice(&[
                    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
                    "*",
                ]),
            ),
        ),
        may("allowHeaders", &any_or_set(64, &HEADER_NAME)),
        may("exposeHeaders", &set(0, 64, &HEADER_NAME, &[""])),
        may("maxAge", &Schema::Number(1, i32::MAX as i64)),
    ],
    &[],
);
const ORIGIN: Format = Format {
    expected: "* or an origin such as https://example.com",
    fits: |text| {
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        text == "*"
            || rest.is_some_and(|rest| {
                let (host, port) = match rest.rsplit_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (rest, None),
                };
                let label = |label: &str| {
                    !label.is_empty()
                        && label
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                };
                let name = host.strip_prefix("*.").unwrap_or(host);
                (host == "*" || name.split('.').all(label))
                    && port.is_none_or(|port| {
                        (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
                    })
            })
    },
};

const fn any_or_set(most: usize, of: &'static Schema) -> Schema {
    Schema::List(List {
        least: 0,
        most,
        of,
        by: &[""],
        rules: &[star_stands_alone],
    })
}

fn star_stands_alone(values: &Value) -> Option<(String, String)> {
    let values = values.as_array()?;
    let star = values.len() > 1 && values.iter().any(|value| value == "*");
    star.then(|| (String::new(), "* must stand alone".to_owned()))
}
