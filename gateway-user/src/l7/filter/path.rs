//! `path` of `URLRewrite` and of `RequestRedirect`, and the bytes that a URL may hold.

use std::borrow::Cow;

use crate::l7::escape::push_escape;
use crate::snapshot::PathEdit;

/// The path that takes the place of `path` (both without query). Begins with `/`.
///
/// A prefix is replaced by whole elements, and no slash is doubled where the two parts meet; the client's own `//` stays. What
/// the configuration gives is percent-encoded where a path must not hold it, so that it can add no query; what the client
/// sent stays as it came. A path that does not have the prefix (the router sees to it that there is none) stays.
#[must_use]
pub fn rewritten_path(edit: &PathEdit, path: &str) -> String {
    let (replacement, rest) = match edit {
        PathEdit::Full(full) => (&**full, ""),
        PathEdit::Prefix {
            matched,
            replacement,
        } => match rest_of(path, matched) {
            Some(rest) => (&**replacement, rest),
            None => ("", path),
        },
    };
    let replacement = encoded(replacement, is_path_byte);
    let head = if rest.is_empty() {
        &*replacement
    } else {
        replacement.trim_end_matches('/')
    };
    let mut out = String::with_capacity(head.len() + rest.len() + 1);
    let absolute = head.starts_with('/') || (head.is_empty() && rest.starts_with('/'));
    if !absolute {
        out.push('/');
    }
    out.push_str(head);
    out.push_str(rest);
    out
}

/// What follows the prefix: nothing, or `/` and more.
fn rest_of<'a>(path: &'a str, matched: &str) -> Option<&'a str> {
    let matched = matched.strip_suffix('/').unwrap_or(matched);
    let rest = path.strip_prefix(matched)?;
    if matched.is_empty() && rest == "/" {
        // The prefix `/` is all of it, as `/foo` is all of `/foo`.
        return Some("");
    }
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Percent-encodes what `allowed` does not take, and a `%` that begins no escape. Borrowed if there is nothing to do.
pub(super) fn encoded(text: &str, allowed: fn(u8) -> bool) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let fine = |at: usize| match bytes[at] {
        b'%' => matches!(bytes.get(at + 1..at + 3), Some([a, b])
            if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()),
        byte => allowed(byte),
    };
    if (0..bytes.len()).all(fine) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 16);
    for (at, &byte) in bytes.iter().enumerate() {
        if fine(at) {
            out.push(char::from(byte));
        } else {
            push_escape(&mut out, byte);
        }
    }
    Cow::Owned(out)
}

/// `pchar` and `/` of RFC 3986, 3.3, without `%`.
pub(super) fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte)
}

/// As in a path, and `?` (RFC 3986, 3.4).
pub(super) fn is_query_byte(byte: u8) -> bool {
    is_path_byte(byte) || byte == b'?'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(matched: &str, replacement: &str) -> PathEdit {
        PathEdit::Prefix {
            matched: matched.into(),
            replacement: replacement.into(),
        }
    }

    #[test]
    fn prefixes_are_replaced_by_the_table_of_gateway_api() {
        for (path, matched, replacement, want) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // Beyond the table.
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo", "/foo", "/xyz/", "/xyz/"),
            ("/foo/", "/foo", "/xyz/", "/xyz/"),
            ("/bar", "", "/xyz", "/xyz/bar"),
            ("/bar", "", "/xyz/", "/xyz/bar"),
            ("/", "", "/xyz", "/xyz"),
            ("/bar", "", "", "/bar"),
            ("/", "", "", "/"),
            ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
            ("/foo/b%2fr", "/foo", "/xyz", "/xyz/b%2fr"),
            ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
            ("/foo/a|b", "/foo", "/x y?z", "/x%20y%3Fz/a|b"),
            ("/foobar", "/foo", "/xyz", "/foobar"),
            ("/other", "/foo", "/xyz", "/other"),
            ("", "/foo", "/xyz", "/"),
        ] {
            let got = rewritten_path(&prefix(matched, replacement), path);
            assert_eq!(got, want, "{path} {matched} {replacement}");
        }
    }

    #[test]
    fn full_paths_take_its_place() {
        for (full, want) in [
            ("/one", "/one"),
            ("/one/", "/one/"),
            ("", "/"),
            ("one", "/one"),
            ("/a b#c?d", "/a%20b%23c%3Fd"),
            ("/é%41%4", "/%C3%A9%41%254"),
        ] {
            assert_eq!(rewritten_path(&PathEdit::Full(full.into()), "/x/y"), want);
        }
    }

    proptest! {
        #[test]
        fn results_begin_with_one_slash_and_hold_no_new_double_one(
            path in "(/[a-c]{0,2}){1,4}", replacement in "(/[a-c]{1,2}){0,3}/?", matched in "(/[a-c]){0,2}",
        ) {
            let got = rewritten_path(&prefix(&matched, &replacement), &path);
            prop_assert!(got.starts_with('/'));
            prop_assert!(got.matches("//").count() <= path.matches("//").count(), "{}", got);
        }

        #[test]
        fn any_replacement_is_a_path(replacement in any::<String>(), full in any::<bool>()) {
            let edit = if full { PathEdit::Full(replacement.into()) } else { prefix("/a", &replacement) };
            let got = rewritten_path(&edit, "/a/b");
            prop_assert!(got.starts_with('/'));
            prop_assert!(got.bytes().all(|b| b == b'%' || is_path_byte(b)), "{}", got);
            prop_assert_eq!(encoded(&got, is_path_byte), got.as_str());
        }
    }
}
