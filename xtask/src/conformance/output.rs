//! What the suite says while it runs, read line by line: which tests there are, how they end, and what failed ones said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Begins what Go's test program says about tests, as opposed to what tests say. It asks for
/// `-test.v=test2json`: without, the ends of all tests are told at the end.
const MARK: char = '\x16';
/// Lines that are kept of each test.
const TAIL: usize = 14;

/// What has been said so far. A test here is one of the suite's, with all its parts; everything before and between
/// them is the root's.
#[derive(Debug, Default)]
pub(super) struct Output {
    rest: String,
    /// The test or part of a test that speaks now.
    speaker: String,
    /// Whether that is the report.
    is_report: bool,
    /// By test; the root has the empty name.
    said: BTreeMap<String, VecDeque<String>>,
    started: BTreeSet<String>,
    pub(super) passed: BTreeSet<String>,
    pub(super) failed: BTreeSet<String>,
    pub(super) skipped: BTreeSet<String>,
    /// How the whole ended: whether it passed.
    pub(super) ended: Option<bool>,
}

impl Output {
    pub(super) fn feed(&mut self, text: &str) {
        self.rest.push_str(text);
        let taken = std::mem::take(&mut self.rest);
        let (lines, rest) = taken.rsplit_once('\n').unwrap_or(("", &taken));
        self.rest = rest.to_owned();
        // A mark may follow upon a line that has no end.
        for line in lines.split(['\n', MARK]).filter(|line| !line.is_empty()) {
            self.line(line);
        }
    }

    /// The end of what a test said, or of what was said outside of all tests.
    pub(super) fn tail(&self, test: &str) -> impl Iterator<Item = &str> {
        self.said
            .get(test)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Tests that have begun and not ended: where the program was when it was ended.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = &str> {
        let ended = |name: &&String| {
            [&self.passed, &self.failed, &self.skipped]
                .iter()
                .any(|set| set.contains(*name))
        };
        self.started
            .iter()
            .filter(move |name| !ended(name))
            .map(String::as_str)
    }

    /// Whether nothing was said about any test.
    pub(super) fn is_silent(&self) -> bool {
        self.started.is_empty() && self.ended.is_none()
    }

    /// `3 passed, 1 failed, 7 skipped`.
    pub(super) fn counts(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed.len(),
            self.failed.len(),
            self.skipped.len()
        )
    }

    fn line(&mut self, line: &str) {
        if let Some((event, name)) = event(line) {
            self.event(event, name);
            self.is_report = false;
            return;
        }
        // The suite shows its report at the end, and whatever it creates and removes: a failure is before that.
        self.is_report |= line.contains("Conformance report:");
        if self.is_report || line.trim_start().starts_with("apply.go:") {
            return;
        }
        let said = self
            .said
            .entry(test(&self.speaker).unwrap_or_default().to_owned());
        let said = said.or_default();
        said.push_back(line.to_owned());
        if said.len() > TAIL {
            said.pop_front();
        }
    }

    fn event(&mut self, event: &str, name: &str) {
        let end = matches!(event, "PASS" | "FAIL" | "SKIP");
        name.clone_into(&mut self.speaker);
        if end {
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            parent.clone_into(&mut self.speaker);
        }
        let is_root = !name.contains('/');
        if end && is_root {
            self.ended = Some(event == "PASS");
        }
        // Ends of parts are their tests' business.
        let words: Vec<&str> = name.split('/').collect();
        if let [_, test] = words[..] {
            let set = match event {
                "PASS" => &mut self.passed,
                "FAIL" => &mut self.failed,
                "SKIP" => &mut self.skipped,
                _ => &mut self.started,
            };
            set.insert(test.to_owned());
        }
    }
}

/// What happens to which test, if the line says this.
fn event(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix("=== ") {
        let (event, name) = rest.split_once(' ')?;
        return matches!(event, "RUN" | "PAUSE" | "CONT" | "NAME").then_some((event, name.trim()));
    }
    let (event, rest) = line.strip_prefix("--- ")?.split_once(": ")?;
    let (name, _seconds) = rest.rsplit_once(" (")?;
    matches!(event, "PASS" | "FAIL" | "SKIP").then_some((event, name))
}

/// The suite's test that a part belongs to: the second word of its name.
fn test(name: &str) -> Option<&str> {
    name.split('/').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\x16=== RUN   TestConformance\n\
        \x16    conformance.go:98: Running conformance tests with:\n\
        \x16=== RUN   TestConformance/A\n\x16=== PAUSE TestConformance/A\n\
        \x16=== RUN   TestConformance/B\n    b.go:1: about b\n\
        \x16--- FAIL: TestConformance/B (0.52s)\n\
        \x16=== NAME  TestConformance\n    suite.go:1: between\n\
        \x16=== CONT  TestConformance/A\n\
        \x16=== RUN   TestConformance/A/part/of_it\n    a.go:2: about a\nno end\
        \x16--- PASS: TestConformance/A/part/of_it (0.00s)\n\
        \x16--- PASS: TestConformance/A (0.10s)\n\
        \x16=== RUN   TestConformance/C\n    c.go:1: Skipping C: suite does not support D\n\
        \x16--- SKIP: TestConformance/C (0.00s)\n\
        \x16=== RUN   TestConformance/D\n";

    fn names(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn tests_are_counted_without_their_parts() {
        let mut output = Output::default();
        output.feed(SAID);
        assert_eq!(names(&output.passed), ["A"]);
        assert_eq!(names(&output.failed), ["B"]);
        assert_eq!(names(&output.skipped), ["C"]);
        assert_eq!(output.unfinished().collect::<Vec<_>>(), ["D"]);
        assert_eq!(output.ended, None);
        output.feed("\x16--- FAIL: TestConformance (9.01s)\nFAIL\n");
        assert_eq!(output.ended, Some(false));
        assert_eq!(output.counts(), "1 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn what_is_said_belongs_to_the_test_that_says_it() {
        let mut output = Output::default();
        output.feed(SAID);
        let tail = |test| output.tail(test).collect::<Vec<_>>();
        assert_eq!(tail("A"), ["    a.go:2: about a", "no end"]);
        assert_eq!(tail("B"), ["    b.go:1: about b"]);
        assert_eq!(tail("").last(), Some(&"    suite.go:1: between"));
    }

    #[test]
    fn a_failure_is_not_hidden_by_what_comes_after_it() {
        let mut output = Output::default();
        output.feed(
            "=== RUN   T\n    suite.go:1: why\n    apply.go:279: 2026: Deleting x Service\n    \
             conformance.go:158: Conformance report:\n        date: 2026\n--- FAIL: T (0.1s)\nFAIL\n",
        );
        assert_eq!(
            output.tail("").collect::<Vec<_>>(),
            ["    suite.go:1: why", "FAIL"]
        );
    }

    #[test]
    fn pieces_are_as_good_as_the_whole() {
        let (mut whole, mut pieces) = (Output::default(), Output::default());
        whole.feed(SAID);
        for char in SAID.chars() {
            pieces.feed(&char.to_string());
        }
        assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    }
}
