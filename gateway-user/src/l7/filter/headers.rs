//! `RequestHeaderModifier` and `ResponseHeaderModifier`.

use http::HeaderMap;

use crate::snapshot::HeaderEdits;

/// Sets, then adds, then removes.
///
/// `set` leaves exactly one value. What no longer fits into the map (32,768 fields, far beyond the limits of the proxy) is
/// left out.
pub fn edit(headers: &mut HeaderMap, edits: &HeaderEdits) {
    for (name, value) in &edits.set {
        let _ = headers.try_insert(name, value.clone());
    }
    for (name, value) in &edits.add {
        let _ = headers.try_append(name, value.clone());
    }
    for name in &edits.remove {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn field(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    }

    #[test]
    fn set_then_add_then_remove() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            field("a", "1"),
            field("a", "2"),
            field("b", "1"),
            field("c", "1"),
            field("c", "2"),
            field("d", "1"),
        ] {
            headers.append(name, value);
        }
        let edits = HeaderEdits {
            set: vec![field("a", "3"), field("e", "1"), field("d", "2")],
            add: vec![field("b", "2"), field("a", "4"), field("f", "1")],
            remove: vec![
                HeaderName::from_static("c"),
                HeaderName::from_static("d"),
                HeaderName::from_static("absent"),
            ],
        };
        edit(&mut headers, &edits);
        let all = |name: &str| -> Vec<&str> {
            let values = headers.get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect()
        };
        assert_eq!(all("a"), ["3", "4"]);
        assert_eq!(all("b"), ["1", "2"]);
        assert_eq!(all("c"), [""; 0]);
        assert_eq!(all("d"), [""; 0], "removed after it was set");
        assert_eq!(all("e"), ["1"]);
        assert_eq!(all("f"), ["1"]);
    }

    #[test]
    fn a_full_map_is_no_panic() {
        let mut headers = HeaderMap::new();
        for i in 0..40_000 {
            let name = HeaderName::try_from(format!("h{i}")).unwrap();
            if headers
                .try_append(name, HeaderValue::from_static("1"))
                .is_err()
            {
                break;
            }
        }
        let edits = HeaderEdits {
            set: vec![field("set", "1")],
            add: vec![field("add", "1")],
            remove: Vec::new(),
        };
        edit(&mut headers, &edits);
        assert!(headers.len() > 20_000);
    }
}
