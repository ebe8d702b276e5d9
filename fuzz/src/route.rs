//! Routing: the router gives the answer of a scan from the first entry to the last.

use std::sync::{Arc, LazyLock};

use arbitrary::{Result, Unstructured};
use gateway_user::l7::router::{Entry, RequestView, Router};
use gateway_user::snapshot::route::Pattern;
use gateway_user::snapshot::{Hostname, PathMatch, RouteMatch, ValueMatch};
use http::{HeaderMap, HeaderValue};
use regex::Regex;

/// Most entries of one router.
const ENTRIES: usize = 24;

/// Reads entries and a few requests from the bytes and compares the answers.
pub fn router(data: &[u8]) {
    // Bytes that run out are zeros: there is always an input.
    let _ = compare(&mut Unstructured::new(data));
}

fn compare(bytes: &mut Unstructured<'_>) -> Result<()> {
    let count = bytes.int_in_range(0..=ENTRIES)?;
    let mut entries = Vec::with_capacity(count);
    for rule in 0..count {
        let matching = matching(bytes)?;
        entries.push(Entry {
            hostname: hostname(bytes)?,
            matching: matching.into(),
            rule: u32::try_from(rule).unwrap_or(u32::MAX),
        });
    }
    // In the order of precedence, which begins with the hostname: exact, longer wildcard, shorter, none.
    entries.sort_by(|a, b| {
        let none_last = a.hostname.is_none().cmp(&b.hostname.is_none());
        none_last.then_with(|| a.hostname.cmp(&b.hostname))
    });
    let router = Router::compile(entries.clone());
    for _ in 0..bytes.int_in_range(1..=8)? {
        let host = name(bytes)?;
        let path = format!("/{}", text(bytes)?);
        let query = bytes
            .arbitrary::<bool>()?
            .then(|| text(bytes))
            .transpose()?;
        let mut headers = HeaderMap::new();
        for _ in 0..bytes.int_in_range(0..=2)? {
            let value = HeaderValue::from_str(&text(bytes)?);
            let name = ["a", "b"][bytes.choose_index(2)?];
            headers.append(name, value.unwrap_or(HeaderValue::from_static("")));
        }
        let request = RequestView {
            host: &host,
            path: &path,
            query: query.as_deref(),
            method: ["GET", "POST"][bytes.choose_index(2)?],
            headers: &headers,
        };
        let scanned = entries.iter().find(|e| e.mismatch(&request).is_none());
        assert_eq!(
            router.pick(&request),
            scanned.map(|e| e.rule),
            "{request:?}"
        );
    }
    Ok(())
}

fn matching(bytes: &mut Unstructured<'_>) -> Result<RouteMatch> {
    let path = match bytes.choose_index(5)? {
        0 => PathMatch::Exact(format!("/{}", text(bytes)?).into()),
        1 => PathMatch::Regex(pattern(bytes)?),
        2 => PathMatch::Prefix("".into()),
        _ => PathMatch::Prefix(format!("/{}", text(bytes)?).trim_end_matches('/').into()),
    };
    let method = ["", "GET", "POST"][bytes.choose_index(3)?];
    Ok(RouteMatch {
        path,
        method: (!method.is_empty()).then(|| method.into()),
        headers: values(bytes)?,
        query: values(bytes)?,
    })
}

fn values(bytes: &mut Unstructured<'_>) -> Result<Vec<(Arc<str>, ValueMatch)>> {
    let mut values = Vec::new();
    for _ in 0..bytes.int_in_range(0..=2)? {
        let name = ["a", "b"][bytes.choose_index(2)?];
        let value = if bytes.ratio(1, 4)? {
            ValueMatch::Regex(pattern(bytes)?)
        } else {
            ValueMatch::Exact(text(bytes)?.into())
        };
        values.push((name.into(), value));
    }
    Ok(values)
}

/// Compiled once: compiling takes longer than all the rest of a run.
static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let texts = [".*", "/a(/.*)?", "[ab/]+", "", "/.*b"];
    let whole = |text| Regex::new(&format!("^(?:{text})$")).ok();
    texts.into_iter().filter_map(whole).map(Pattern).collect()
});

fn pattern(bytes: &mut Unstructured<'_>) -> Result<Pattern> {
    bytes.choose(&PATTERNS).cloned()
}

fn hostname(bytes: &mut Unstructured<'_>) -> Result<Option<Hostname>> {
    let prefix = ["", "*."][bytes.choose_index(2)?];
    Ok(Hostname::parse(&format!("{prefix}{}", name(bytes)?)))
}

/// Labels of few letters, so that names meet.
fn name(bytes: &mut Unstructured<'_>) -> Result<String> {
    pieces(bytes, &["a", "b", ".", ".com", "é", "*"])
}

/// Text of few pieces, so that paths and values meet.
fn text(bytes: &mut Unstructured<'_>) -> Result<String> {
    pieces(bytes, &["a", "b", "/", "=", "&", "%2f", "é", "1"])
}

fn pieces(bytes: &mut Unstructured<'_>, of: &[&str]) -> Result<String> {
    let mut text = String::new();
    for _ in 0..bytes.int_in_range(0..=6)? {
        text.push_str(bytes.choose(of)?);
    }
    Ok(text)
}
