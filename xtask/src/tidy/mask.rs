//! Blanks comments and literals of Rust source, so that words and braces in them count for nothing.
//!
//! Line breaks stay where they are; every other blanked byte becomes a space. It is no parser: source that
//! does not compile may be read wrongly, but never makes it panic.

/// `text` with comments, strings and character literals blanked; same length, same lines.
pub(crate) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_or_comment(bytes, at);
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    // Only whole literals and comments were blanked, so no character was cut.
    String::from_utf8_lossy(&out).into_owned()
}

/// End of the comment or literal that begins at `at`; `at` itself if none does.
fn literal_or_comment(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let starts_word = at == 0 || !is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + position(rest, |window| window[0] == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + block_comment(rest),
        [b'"', ..] => at + string(rest),
        [b'\'', ..] => at + character(rest),
        [b'r' | b'b' | b'c', ..] if starts_word => at + raw_string(rest),
        _ => at,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn position(bytes: &[u8], found: impl Fn(&[u8]) -> bool) -> Option<usize> {
    (0..bytes.len()).find(|&at| found(&bytes[at..]))
}

fn block_comment(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// A string with escapes; its first byte is the opening quote.
fn string(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A character literal; 0 for a lifetime.
fn character(bytes: &[u8]) -> usize {
    match bytes {
        [_, b'\\', _, rest @ ..] => {
            3 + rest
                .iter()
                .position(|&byte| byte == b'\'')
                .map_or(0, |end| end + 1)
        }
        [_, first, ..] => {
            let width = match first {
                0..0x80 => 1,
                0xf0.. => 4,
                0xe0.. => 3,
                _ => 2,
            };
            if bytes.get(1 + width) == Some(&b'\'') {
                width + 2
            } else {
                0
            }
        }
        _ => 0,
    }
}

/// `r"…"`, `r#"…"#`, `br"…"`, `b"…"`, `c"…"`; 0 if none of them begins here.
fn raw_string(bytes: &[u8]) -> usize {
    let prefix = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'r' | b'b' | b'c'))
        .count();
    let hashes = bytes[prefix..]
        .iter()
        .take_while(|&&byte| byte == b'#')
        .count();
    let open = prefix + hashes;
    if prefix > 2 || bytes.get(open) != Some(&b'"') {
        return 0;
    }
    if !bytes[..prefix].contains(&b'r') {
        return if hashes == 0 {
            open + string(&bytes[open..])
        } else {
            0
        };
    }
    let closes = |window: &[u8]| {
        window[0] == b'"'
            && window.len() > hashes
            && window[1..=hashes].iter().all(|&byte| byte == b'#')
    };
    position(&bytes[open + 1..], closes).map_or(bytes.len(), |end| open + 1 + end + 1 + hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_blanked() {
        for (text, left) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ */ d", "a d"),
            (r#"f("{", x)"#, "f( , x)"),
            (r#"f("\"{", x)"#, "f( , x)"),
            ("r#\"\"{\"# z", "z"),
            ("b\"{\" c\"{\" br\"{\" z", "z"),
            ("'{' '\\'' '\\u{7b}' 'a fn<'b>()", "'a fn<'b>()"),
            ("let raw = bar(\"\");", "let raw = bar( );"),
            ("\"never closed {", ""),
            ("/* never closed {", ""),
        ] {
            let words: Vec<_> = mask(text).split_whitespace().map(str::to_owned).collect();
            assert_eq!(words.join(" "), left, "{text}");
        }
    }

    #[test]
    fn length_and_lines_stay() {
        let text = "\"ä\nö\" 'ß' // ü\nx";
        let masked = mask(text);
        assert_eq!(masked.len(), text.len());
        assert_eq!(masked.lines().count(), text.lines().count());
    }
}
