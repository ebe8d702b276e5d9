//! `matches` of an HTTPRoute rule: checked and compiled.
//!
//! The checks are those of the CRD's schema, which files never passed through.

use std::sync::Arc;

use super::objects::{MatchSpec, PathSpec, ValueSpec};
use crate::snapshot::route::Pattern;
use crate::snapshot::{PathMatch, RouteMatch, ValueMatch};

/// Longest text of a regular expression, in bytes.
const REGEX_TEXT: usize = 1024;
/// Largest compiled regular expression, in bytes.
const REGEX_SIZE: usize = 1 << 20;
const PATH_LENGTH: usize = 1024;
const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

/// Compiles a match, or says in one sentence why it cannot be carried out.
pub(super) fn compile(spec: &MatchSpec) -> Result<RouteMatch, String> {
    if let Some(field) = spec.unread.keys().next() {
        return Err(format!("match field {field} is not supported"));
    }
    let method = match spec.method.as_deref() {
        Some(method) if !METHODS.contains(&method) => {
            return Err(format!("method {method:?} does not exist"));
        }
        method => method.map(Into::into),
    };
    let mut query: Vec<(Arc<str>, ValueMatch)> = Vec::new();
    for parameter in &spec.query_params {
        if parameter.name.is_empty() {
            return Err("a query parameter has no name".to_owned());
        }
        if !query.iter().any(|(seen, _)| **seen == *parameter.name) {
            let matching = value("query parameter", parameter)?;
            query.push(((&*parameter.name).into(), matching));
        }
    }
    Ok(RouteMatch {
        path: path(spec.path.as_ref())?,
        method,
        headers: headers(&spec.headers)?,
        query,
    })
}

/// Compiles `headers` of a match.
pub(super) fn headers(given: &[ValueSpec]) -> Result<Vec<(Arc<str>, ValueMatch)>, String> {
    let mut headers: Vec<(Arc<str>, ValueMatch)> = Vec::new();
    for header in given {
        let name = http::HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_| format!("{:?} is not a header name", header.name))?;
        // Gateway API: only the first entry with an equivalent name counts.
        if !headers.iter().any(|(seen, _)| **seen == *name.as_str()) {
            headers.push((name.as_str().into(), value("header", header)?));
        }
    }
    Ok(headers)
}

fn path(spec: Option<&PathSpec>) -> Result<PathMatch, String> {
    let kind = spec.and_then(|p| p.kind.as_deref()).unwrap_or("PathPrefix");
    let value = spec.and_then(|p| p.value.as_deref()).unwrap_or("/");
    match kind {
        "Exact" => Ok(PathMatch::Exact(plain_path(value)?.into())),
        "PathPrefix" => {
            let value = plain_path(value)?;
            Ok(PathMatch::Prefix(
                value.strip_suffix('/').unwrap_or(value).into(),
            ))
        }
        "RegularExpression" => regex(value).map(PathMatch::Regex),
        other => Err(format!("path type {other:?} does not exist")),
    }
}

/// Paths as Gateway API admits them: absolute, without what a normaliser would change.
pub(super) fn plain_path(value: &str) -> Result<&str, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&byte);
    let escapes_fine = value.match_indices('%').all(|(at, _)| {
        let digits = value.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit))
    });
    let lower = value.to_ascii_lowercase();
    let odd = ["//", "/./", "/../", "%2f"]
        .iter()
        .any(|part| lower.contains(part))
        || lower.ends_with("/.")
        || lower.ends_with("/..");
    if value.starts_with('/')
        && value.len() <= PATH_LENGTH
        && value.bytes().all(allowed)
        && escapes_fine
        && !odd
    {
        Ok(value)
    } else {
        Err(format!(
            "path {value:?} is not an absolute, normalised path of at most {PATH_LENGTH} characters"
        ))
    }
}

fn value(what: &str, spec: &ValueSpec) -> Result<ValueMatch, String> {
    match spec.kind.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(ValueMatch::Exact((&*spec.value).into())),
        "RegularExpression" => regex(&spec.value).map(ValueMatch::Regex),
        other => Err(format!("{what} match type {other:?} does not exist")),
    }
}

fn regex(text: &str) -> Result<Pattern, String> {
    regex_text(text)?;
    anchored(text, &format!("(?:{text})"))
}

/// Whether a text is a regular expression by itself: `a)|(b` would escape from what is put around it.
pub(super) fn regex_text(text: &str) -> Result<(), String> {
    if text.len() > REGEX_TEXT {
        return Err(format!(
            "a regular expression is longer than {REGEX_TEXT} characters"
        ));
    }
    build(text, text).map(drop)
}

/// Compiles an expression that must match from beginning to end; `shown` stands for it in messages.
pub(super) fn anchored(shown: &str, expression: &str) -> Result<Pattern, String> {
    build(shown, &format!("^{expression}$")).map(Pattern)
}

fn build(shown: &str, expression: &str) -> Result<regex::Regex, String> {
    regex::RegexBuilder::new(expression)
        .size_limit(REGEX_SIZE)
        .build()
        .map_err(|error| {
            let why = match error {
                regex::Error::CompiledTooBig(_) => "is too large once compiled",
                _ => "is not valid (syntax of the regex crate)",
            };
            format!("the regular expression {shown:?} {why}")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(kind: &str, value: &str) -> Result<PathMatch, String> {
        path(Some(&PathSpec {
            kind: Some(kind.into()),
            value: Some(value.into()),
        }))
    }

    #[test]
    fn regular_expressions_are_anchored_and_limited() {
        let Ok(PathMatch::Regex(pattern)) = path_of("RegularExpression", "/a|/b") else {
            panic!("must compile")
        };
        assert!(
            pattern.0.is_match("/b") && !pattern.0.is_match("/bc") && !pattern.0.is_match("x/a")
        );
        for (bad, why) in [
            ("a)|(b".to_owned(), "is not valid"),
            ("a{1000}{1000}".to_owned(), "too large"),
            ("x".repeat(1025), "longer than 1024"),
        ] {
            let error = path_of("RegularExpression", &bad).expect_err("refused");
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn prefixes_lose_their_trailing_slash() {
        let prefix = |value| match path_of("PathPrefix", value) {
            Ok(PathMatch::Prefix(prefix)) => prefix.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (prefix("/"), prefix("/a/")),
            (String::new(), "/a".to_owned())
        );
    }

    #[test]
    fn paths_that_a_normaliser_would_change_are_refused() {
        for bad in [
            "", "a", "/a//b", "/./a", "/a/..", "/a%2Fb", "/a?b", "/a#b", "/%zz", "/%2", "/é",
        ] {
            assert!(path_of("Exact", bad).is_err(), "{bad}");
        }
        assert!(path_of("Exact", "/a%20b/~c").is_ok());
    }
}
