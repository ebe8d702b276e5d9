//! The text of a manifest file as generic values: YAML or JSON, several documents a file, List kinds unfolded.
//!
//! Bounded: the file's size by `read`, nesting, nodes and what aliases expand to by the parser's budget.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Deepest nesting of a document.
const MAX_DEPTH: usize = 64;

/// Parses a file; the name's ending tells JSON from YAML.
///
/// # Errors
/// One phrase with line and column.
pub fn parse(name: &str, text: &str) -> Result<Vec<Value>, String> {
    let documents = if name.ends_with(".json") {
        json(text)?
    } else {
        yaml(text)?
    };
    let mut objects = Vec::new();
    for document in documents {
        unfold(document, &mut objects);
    }
    Ok(objects)
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, String> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_documents: 16_384,
            max_recorded_anchor_bytes: 4 << 20,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| sentence(&error))
}

fn json(text: &str) -> Result<Vec<Value>, String> {
    serde_json::Deserializer::from_str(text)
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| one_line(&error.to_string()))
}

/// A `List` (or `GatewayList` and so on) stands for its items.
fn unfold(document: Value, objects: &mut Vec<Value>) {
    let is_list = document["kind"]
        .as_str()
        .is_some_and(|kind| kind.ends_with("List"))
        && document["items"].is_array();
    match document {
        Value::Object(mut fields) if is_list => {
            if let Some(Value::Array(items)) = fields.remove("items") {
                objects.extend(items);
            }
        }
        Value::Null => {}
        other => objects.push(other),
    }
}

/// The parser's error in the words of whoever wrote the file.
fn sentence(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    let text = match error {
        Error::AliasError { error, .. } => return sentence(error),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key} appears twice"),
        Error::DuplicateMappingKey { key: None, .. } => "a key appears twice".into(),
        Error::Budget { .. } => "it is nested too deep or has too many parts".into(),
        Error::AliasReplayLimitExceeded { .. } => "its aliases expand to too much".into(),
        other => return one_line(&other.to_string()),
    };
    match error.location() {
        Some(place) => format!("{text} at line {}, column {}", place.line(), place.column()),
        None => text,
    }
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words
        .join(" ")
        .replace("recursion limit exceeded", "it is nested too deep")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn several_documents_and_lists_become_objects() {
        let text =
            "# first\na: 1\n---\n---\nkind: GatewayList\nitems:\n- b: 2\n- c: [x]\n--- # end\n";
        assert_eq!(
            parse("x.yaml", text).unwrap(),
            [json!({"a": 1}), json!({"b": 2}), json!({"c": ["x"]})]
        );
        assert_eq!(
            parse(
                "x.json",
                "{\"a\":1} {\"kind\":\"List\",\"items\":[{\"b\":2}]}"
            )
            .unwrap(),
            [json!({"a": 1}), json!({"b": 2})]
        );
    }

    #[test]
    fn errors_name_the_place() {
        let table = [
            ("x.yaml", "a: 1\nb: [1, 2\nc: 3\n", "line"),
            (
                "x.yaml",
                "a: 1\na: 2\n",
                "the key a appears twice at line 2, column 1",
            ),
            ("x.yaml", "a:\n\t- b\n", "line 2"),
            ("x.json", "{\"a\": 1,}", "line 1 column 9"),
        ];
        for (name, text, place) in table {
            let error = parse(name, text).expect_err(text);
            assert!(error.contains(place), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn bombs_are_refused_quickly() {
        let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 9].join(", ");
            laughs += &format!("a{i}: &a{i} [{refs}]\n");
        }
        let error = parse("x.yaml", &laughs).expect_err("billions");
        assert!(
            error.starts_with("its aliases expand to too much at line"),
            "{error}"
        );
        assert!(parse("x.yaml", &"[".repeat(100_000)).is_err());
        assert!(parse("x.json", &"[".repeat(100_000)).is_err());
        let nested: String = (0..200).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        assert!(parse("x.yaml", &nested).is_err());
    }
}
