//! The rules themselves: pure functions of a file's name and text.

use std::ops::Range;

use super::{Finding, mask::mask};

/// Lines of a file without its tests.
const FILE_LINES: usize = 500;
/// Lines of code in a function.
const FUNCTION_LINES: usize = 60;
/// How far above `unsafe` its SAFETY comment may begin.
const SAFETY_DISTANCE: usize = 8;

/// Words that must not appear anywhere in a source file.
const FORBIDDEN_WORDS: &[&str] = &[];

/// Where `unsafe` is allowed.
const UNSAFE_HERE: [&str; 6] = [
    "gateway-ebpf/src/",
    "gateway-common/src/abi/",
    "gateway-common/src/abi.rs",
    "gateway-common/src/packet/",
    "gateway-common/src/packet.rs",
    "gateway-user/src/datapath/",
];

/// Modules of `gateway-user` that decide and never act.
const PURE: [&str; 6] = ["snapshot", "translate", "allocate", "l7", "l4", "status"];

/// What a pure module does not name: runtimes, sockets, files, clocks, the kernel, chance.
const IMPURE: [&str; 15] = [
    "tokio",
    "hyper",
    "aya",
    "rustix",
    "libc",
    "socket2",
    "rand",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "std::fs",
    "std::env",
    "Instant::now",
    "SystemTime",
];

/// The one place that may wait by the clock: bounded polling of the test kit.
const WAITS: &str = "tests/src/eventually.rs";

/// One source file, prepared.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
    masked: String,
    /// Byte ranges of `#[cfg(test)]` modules.
    tests: Vec<Range<usize>>,
    /// The whole file is a test.
    all_tests: bool,
}

/// All findings in one file; `name` is relative to the checkout.
pub(super) fn check(name: &str, text: &str) -> Vec<Finding> {
    let masked = mask(text);
    let tests = test_modules(&masked);
    let all_tests = name.ends_with("/tests.rs")
        || name.ends_with("/corpus.rs")
        || name.contains("/tests/")
        || name.starts_with("tests/scenarios/");
    let source = Source {
        name,
        text,
        masked,
        tests,
        all_tests,
    };
    let mut findings = Vec::new();
    for rule in [
        file_size,
        function_size,
        module_docs,
        module_file,
        unsafe_code,
        unwraps,
        layers,
        waits,
        words,
    ] {
        findings.extend(rule(&source));
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

impl Source<'_> {
    fn finding(&self, at: usize, sentence: String) -> Finding {
        Finding {
            file: self.name.to_owned(),
            line: self.line_of(at),
            sentence,
        }
    }

    fn line_of(&self, at: usize) -> usize {
        self.masked[..at].matches('\n').count() + 1
    }

    fn in_test(&self, at: usize) -> bool {
        self.all_tests || self.tests.iter().any(|range| range.contains(&at))
    }

    /// Offsets of `word` as a whole word outside comments and literals.
    fn words<'b>(&'b self, word: &'b str) -> impl Iterator<Item = usize> + 'b {
        self.masked
            .match_indices(word)
            .map(|(at, _)| at)
            .filter(move |&at| is_whole(&self.masked, at, word.len()))
    }
}

fn is_whole(text: &str, at: usize, length: usize) -> bool {
    let is_word =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = text.as_bytes();
    !is_word(at.checked_sub(1).and_then(|before| bytes.get(before)))
        && !is_word(bytes.get(at + length))
}

/// Byte ranges from each `#[cfg(test)]` to the end of the module below it.
fn test_modules(masked: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, _) in masked.match_indices("#[cfg(test)]") {
        let inside = found.last().is_some_and(|range| range.contains(&at));
        if !inside && let Some(end) = end_of_item(masked, at) {
            found.push(at..end);
        }
    }
    found
}

/// End of the item at `at`: its closing brace, or the semicolon of an item without a body.
fn end_of_item(masked: &str, at: usize) -> Option<usize> {
    let from = at + masked[at..].find(['{', ';'])?;
    if masked.as_bytes()[from] == b';' {
        Some(from + 1)
    } else {
        closing_brace(masked, from)
    }
}

/// The offset after the brace that closes the one at `open`.
fn closing_brace(masked: &str, open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in masked.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

fn file_size(source: &Source<'_>) -> Vec<Finding> {
    if source.all_tests {
        return Vec::new();
    }
    let of_tests: usize = source
        .tests
        .iter()
        .map(|range| source.text[range.clone()].lines().count())
        .sum();
    let lines = source.text.lines().count() - of_tests;
    if lines <= FILE_LINES {
        return Vec::new();
    }
    vec![source.finding(
        0,
        format!("the file has {lines} lines without tests, {FILE_LINES} are the limit: split it"),
    )]
}

fn function_size(source: &Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in source.words("fn") {
        let after = source.masked[at + 2..].trim_start();
        let name: String = after
            .chars()
            .take_while(|&c| c.is_alphanumeric() || c == '_')
            .collect();
        if name.is_empty() {
            continue; // a function pointer type
        }
        // A table of cases is best read whole, and its length is no complexity.
        if source.in_test(at) {
            continue;
        }
        let Some(open) = body(&source.masked, at) else {
            continue;
        };
        let Some(end) = closing_brace(&source.masked, open) else {
            continue;
        };
        let code = |line: &&str| !line.trim().is_empty();
        // Neither the line of the opening brace nor that of the closing one counts.
        let lines = source.masked[open + 1..end - 1]
            .lines()
            .skip(1)
            .filter(code)
            .count();
        if lines > FUNCTION_LINES {
            let sentence = format!(
                "function `{name}` has {lines} lines, {FUNCTION_LINES} are the limit: split it"
            );
            findings.push(source.finding(at, sentence));
        }
    }
    findings
}

/// The opening brace of the function at `at`, if it has a body.
fn body(masked: &str, at: usize) -> Option<usize> {
    let mut brackets = 0_i32;
    for (offset, byte) in masked[at..].bytes().enumerate() {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b'{' if brackets == 0 => return Some(at + offset),
            b';' if brackets == 0 => return None,
            _ => {}
        }
    }
    None
}

fn module_docs(source: &Source<'_>) -> Vec<Finding> {
    if source.text.trim_start().starts_with("//!") {
        return Vec::new();
    }
    vec![source.finding(
        0,
        "the module does not begin with `//!`: say what it is and what it does not do".into(),
    )]
}

fn module_file(source: &Source<'_>) -> Vec<Finding> {
    if !source.name.ends_with("/mod.rs") {
        return Vec::new();
    }
    vec![source.finding(
        0,
        "`mod.rs` is not used here: name the file after its module, beside its folder".into(),
    )]
}

fn unsafe_code(source: &Source<'_>) -> Vec<Finding> {
    let allowed = UNSAFE_HERE
        .iter()
        .any(|place| source.name.starts_with(place))
        || source.name.ends_with("/datapath.rs");
    let lines: Vec<&str> = source.text.lines().collect();
    let mut findings = Vec::new();
    for at in source.words("unsafe") {
        let after = source.masked[at + "unsafe".len()..].trim_start();
        // `#[unsafe(no_mangle)]` is an attribute; functions say it under "# Safety".
        let needs_comment = after.starts_with('{') || after.starts_with("impl");
        let line = source.line_of(at);
        let above = &lines[line.saturating_sub(1 + SAFETY_DISTANCE)..line];
        if !allowed {
            findings.push(source.finding(at, "`unsafe` is not allowed in this module".into()));
        } else if needs_comment && !above.iter().any(|line| line.contains("SAFETY:")) {
            findings.push(source.finding(
                at,
                "`unsafe` without a `// SAFETY:` comment above it".into(),
            ));
        }
    }
    findings
}

fn unwraps(source: &Source<'_>) -> Vec<Finding> {
    let outside = source.words("unwrap").filter(|&at| !source.in_test(at));
    let called = outside.filter(|&at| source.masked[at..].starts_with("unwrap("));
    called
        .map(|at| {
            source.finding(
                at,
                "`unwrap` outside tests: return the error, or `expect` the invariant".into(),
            )
        })
        .collect()
}

fn layers(source: &Source<'_>) -> Vec<Finding> {
    let Some(path) = source.name.strip_prefix("gateway-user/src/") else {
        return Vec::new();
    };
    let module = path.split(['/', '.']).next().unwrap_or_default();
    if !PURE.contains(&module) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for word in IMPURE {
        for at in source.words(word).filter(|&at| !source.in_test(at)) {
            let sentence = format!(
                "`{word}` in the pure module `{module}`: take it as an argument, or move it to the shell"
            );
            findings.push(source.finding(at, sentence));
        }
    }
    findings
}

fn waits(source: &Source<'_>) -> Vec<Finding> {
    if source.name == WAITS {
        return Vec::new();
    }
    let of_kit = source.name.starts_with("tests/");
    let called = |at: &usize| source.masked[*at..].starts_with("sleep(");
    let found = source
        .words("sleep")
        .filter(called)
        .filter(|&at| of_kit || source.in_test(at));
    found
        .map(|at| {
            source.finding(
                at,
                "`sleep` in a test: poll with a bound, or pause the clock".into(),
            )
        })
        .collect()
}

fn words(source: &Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for word in FORBIDDEN_WORDS {
        for (at, _) in source.text.match_indices(word) {
            findings.push(source.finding(at, format!("the word `{word}` is not used here")));
        }
    }
    findings
}

#[cfg(test)]
mod tests;
