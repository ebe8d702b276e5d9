//! `--record`: the table in docs/kernels.md, from what the machines said.

use std::{fmt::Write, fs, process::Command};

use anyhow::{Context, Result, ensure};

use super::results::{Results, Verdict};
use crate::{cmd, paths};

/// The table lies between these two lines.
const BEGIN: &str = "<!-- written by `cargo xtask vm test --record` -->";
const END: &str = "<!-- end -->";

/// What the tests are built from, as the line above the table says it: to be asked before they are built.
pub(super) fn head() -> Result<String> {
    let said = |program: &str, words: &[&str]| {
        cmd::output(Command::new(program).args(words).current_dir(paths::root()))
    };
    let date = said("date", &["-u", "+%Y-%m-%d"])?;
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let clean = said("git", &["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    let changes = if clean { "" } else { " with changes" };
    let qemu = super::emulator::version()?;
    Ok(format!("{date}, commit {commit}{changes}, QEMU {qemu}."))
}

/// Writes the table of these kernels, each with the name it has in the list.
pub(super) fn write(head: &str, kernels: &[(String, Results)]) -> Result<String> {
    let path = paths::root().join("docs/kernels.md");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let fresh = replaced(&text, &format!("{head}\n\n{}", table(kernels)))?;
    fs::write(&path, fresh).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.display().to_string())
}

fn replaced(text: &str, table: &str) -> Result<String> {
    let begin = text.find(BEGIN).map(|at| at + BEGIN.len());
    let parts = begin.zip(text.find(END));
    let (begin, end) = parts.context("docs/kernels.md has no place for the table")?;
    ensure!(
        begin <= end,
        "docs/kernels.md has its place for the table upside down"
    );
    Ok(format!("{}\n\n{table}\n{}", &text[..begin], &text[end..]))
}

fn table(kernels: &[(String, Results)]) -> String {
    let mut text = String::from(
        "| Kernel | Release | Tests passed, failed, skipped | Instructions verified: XDP, classifier, lookup | virtio | virtio, MTU 9000 | virtio, fixed offloads | veth with offloads | virtio with a dispatcher of libxdp: newer, usual |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, results) in kernels {
        let fact = |fact: &str| results.fact(fact).unwrap_or("–").to_owned();
        let instructions = ["forebay_xdp", "forebay_tc", "forebay_lookup"].map(|program| {
            let said = fact(program);
            let count = said.split(' ').next().unwrap_or_default();
            grouped(count)
        });
        let ways = [
            "virtio_net",
            "virtio_net at MTU 9000",
            "virtio_net with fixed offloads",
            "veth with offloads",
        ];
        let ways = ways.map(fact);
        let beside = [
            "the newer libxdp's dispatcher",
            "the usual libxdp's dispatcher",
        ]
        .map(fact);
        let counts = [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(|v| results.count(v));
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "| {name} | {} | {}, {}, {} | {} | {} | {} |",
            results.release,
            counts[0],
            counts[1],
            counts[2],
            instructions.join(", "),
            ways.join(" | "),
            beside.join(", ")
        );
    }
    for (name, results) in kernels {
        for way in ["native", "clsact", "generic"] {
            if let Some(said) = results.fact(way) {
                let _written = writeln!(text, "\n- {name}, `{way}`: {said}");
            }
        }
    }
    text
}

/// A number with its thousands set off; anything else as it is.
fn grouped(number: &str) -> String {
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.to_owned();
    }
    let mut text = String::new();
    for (i, digit) in number.chars().enumerate() {
        if i > 0 && (number.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_made_of_what_the_machines_said() {
        let records = r#"{"kernel":"6.1.0"}
{"test":"a","verdict":"passed","milliseconds":1,"said":["forebay_xdp = 46706 instructions, 12 ms","virtio_net = native"]}
{"test":"b","verdict":"skipped","milliseconds":1,"said":["no tcx"]}
{"test":"c","verdict":"passed","milliseconds":1,"said":["generic = it was refused"]}
{"end":3}
"#;
        let kernels = [("6.1".to_owned(), Results::read(records, ""))];
        let table = table(&kernels);
        let row = "| 6.1 | 6.1.0 | 2, 0, 1 | 46,706, –, – | native | – | – | – | –, – |\n";
        assert!(table.contains(row), "{table}");
        assert!(
            table.ends_with("\n- 6.1, `generic`: it was refused\n"),
            "{table}"
        );
    }

    #[test]
    fn only_the_table_is_replaced() {
        let text = format!("above\n{BEGIN}\n\nold\n\n{END}\nbelow\n");
        let fresh = replaced(&text, "new\n").unwrap();
        assert_eq!(fresh, format!("above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"));
        assert_eq!(replaced(&fresh, "new\n").unwrap(), fresh);
        assert!(replaced("nothing", "new").is_err());
        let docs = fs::read_to_string(paths::root().join("docs/kernels.md")).unwrap();
        assert!(replaced(&docs, "new").is_ok());
    }

    #[test]
    fn thousands_are_set_off() {
        for (number, text) in [
            ("7", "7"),
            ("1000", "1,000"),
            ("46706", "46,706"),
            ("–", "–"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
