//! The one normalisation of paths: what is matched is what is forwarded.
//!
//! - Dot segments are resolved (RFC 3986, 5.2.4), also when a dot is spelled `%2e`; `..` at the root stays at the root.
//! - `//` is kept: empty segments mean something to some servers, and merging them would change what is forwarded.
//! - `%2f`, `%5c`, `;` and all other escapes are data and are kept as they came.
//! - A backslash, a fragment, `%00` and broken escapes never come this far: the proxy refuses them.

use std::borrow::Cow;

/// Resolves the dot segments of an absolute path (no query). Borrowed if there is nothing to do.
///
/// The result begins with `/`, holds no dot segment, and is its own normal form.
#[must_use]
pub fn normalise(path: &str) -> Cow<'_, str> {
    if path.starts_with('/') && !path.split('/').any(|segment| dots(segment).is_some()) {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len() + 1);
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            None => {
                out.push('/');
                out.push_str(segment);
            }
            Some(count) => {
                if count == 2 {
                    out.truncate(out.rfind('/').unwrap_or(0));
                }
                if last {
                    out.push('/');
                }
            }
        }
    }
    Cow::Owned(out)
}

/// How many dots the segment is made of, if it is `.` or `..` in any spelling.
fn dots(segment: &str) -> Option<usize> {
    let mut rest = segment.as_bytes();
    if rest.is_empty() || rest.len() > 6 {
        return None;
    }
    let mut count = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return None,
        };
        count += 1;
    }
    (count <= 2).then_some(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_forms() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/../../x", "/x"),
            ("//a//b", "//a//b"),
            ("/a//../b", "/a/b"),
            ("/a/..//b", "//b"),
            ("/a%2f..%2fb", "/a%2f..%2fb"),
            ("/a/..;/b", "/a/..;/b"),
            ("/.../b", "/.../b"),
            ("/.a/b", "/.a/b"),
            ("/%2", "/%2"),
            ("", "/"),
            ("a", "/a"),
        ] {
            assert_eq!(normalise(path), normal, "{path}");
        }
        assert!(matches!(normalise("/a/b"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn idempotent_and_without_dot_segments(path in "/([./a;]|%2e|%2E|%2f){0,24}") {
            let once = normalise(&path).into_owned();
            prop_assert!(matches!(normalise(&once), Cow::Borrowed(same) if same == once));
            prop_assert!(once.starts_with('/'));
            prop_assert!(once.split('/').all(|s| dots(s).is_none()));
        }
    }
}
