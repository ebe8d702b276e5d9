//! RequestHeaderModifier and ResponseHeaderModifier.

use http::{HeaderName, HeaderValue};

use super::known;
use crate::snapshot::HeaderEdits;
use crate::translate::objects::{HeaderModifierSpec, HeaderSpec};

/// Fields that frame a message or mean one connection only (RFC 9110, section 7.6.1; RFC 9112, section 6): to change them
/// would change where messages end.
const OF_THE_PROXY: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Edits of requests. `Host` is left to `URLRewrite`, which changes it and never makes two of it or none.
pub(super) fn request(spec: &HeaderModifierSpec) -> Result<HeaderEdits, String> {
    let edits = edits(spec)?;
    let host = |name: &HeaderName| name == http::header::HOST;
    let set = edits.set.iter().chain(&edits.add).map(|(name, _)| name);
    if set.chain(&edits.remove).any(host) {
        return Err("header host must not be modified, use the filter URLRewrite".to_owned());
    }
    Ok(edits)
}

/// Edits of responses.
pub(super) fn response(spec: &HeaderModifierSpec) -> Result<HeaderEdits, String> {
    edits(spec)
}

fn edits(spec: &HeaderModifierSpec) -> Result<HeaderEdits, String> {
    known(&spec.unread)?;
    let mut remove: Vec<HeaderName> = Vec::new();
    for text in &spec.remove {
        let name = name(text)?;
        if !remove.contains(&name) {
            remove.push(name);
        }
    }
    Ok(HeaderEdits {
        set: fields(&spec.set)?,
        add: fields(&spec.add)?,
        remove,
    })
}

/// Gateway API: of several entries with equivalent names the first counts.
fn fields(given: &[HeaderSpec]) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut fields: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for field in given {
        let name = name(&field.name)?;
        // Spaces around a value are not part of it (RFC 9110, section 5.5).
        let value = HeaderValue::from_str(field.value.trim_matches([' ', '\t'])).map_err(|_| {
            format!(
                "the value {:?} of header {name} holds a control character",
                field.value
            )
        })?;
        if fields.iter().all(|(seen, _)| *seen != name) {
            fields.push((name, value));
        }
    }
    Ok(fields)
}

fn name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("{text:?} is not a header name"))?;
    if OF_THE_PROXY.contains(&name.as_str()) {
        return Err(format!(
            "header {name} must not be modified, it belongs to the connection"
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> HeaderModifierSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn names_lose_their_case_and_the_first_of_a_name_counts() {
        let edits = request(&spec(json!({
            "set": [{"name": "X-A", "value": " 1\t"}, {"name": "x-a", "value": "2"}],
            "add": [{"name": "x-a", "value": ""}],
            "remove": ["X-B", "x-b", "X-C"],
        })))
        .unwrap();
        let shown = serde_json::to_value(edits).unwrap();
        assert_eq!(
            shown,
            json!({"set": [["x-a", "1"]], "add": [["x-a", ""]], "remove": ["x-b", "x-c"]})
        );
    }

    #[test]
    fn what_frames_messages_is_left_alone() {
        for name in [
            "Connection",
            "Transfer-Encoding",
            "Content-Length",
            "TE",
            "Upgrade",
            "Trailer",
            "Keep-Alive",
            "Proxy-Connection",
        ] {
            for edit in [
                json!({"set": [{"name": name, "value": "1"}]}),
                json!({"add": [{"name": name, "value": "1"}]}),
                json!({"remove": [name]}),
            ] {
                let want = format!(
                    "header {} must not be modified, it belongs to the connection",
                    name.to_lowercase()
                );
                assert_eq!(request(&spec(edit.clone())).unwrap_err(), want);
                assert_eq!(response(&spec(edit)).unwrap_err(), want);
            }
        }
        let host = spec(json!({"add": [{"name": "Host", "value": "a"}]}));
        assert!(request(&host).is_err() && response(&host).is_ok());
    }

    #[test]
    fn bad_names_and_values_are_named() {
        for (edit, want) in [
            (
                json!({"set": [{"name": "a b", "value": "1"}]}),
                "\"a b\" is not a header name",
            ),
            (json!({"remove": [""]}), "\"\" is not a header name"),
            (
                json!({"remove": [":path"]}),
                "\":path\" is not a header name",
            ),
            (
                json!({"add": [{"name": "a", "value": "1\r\nb: 2"}]}),
                "the value \"1\\r\\nb: 2\" of header a holds a control character",
            ),
            (json!({"sets": []}), "field sets is not supported"),
        ] {
            assert_eq!(request(&spec(edit)).unwrap_err(), want);
        }
    }
}
