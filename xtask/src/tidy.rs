//! Rules that neither the compiler nor clippy holds: sizes, layers, module docs.
//!
//! It reads text, not syntax trees: comments and strings are blanked ([`mask`]), braces are matched. Each
//! finding is one line, `file:line: sentence`.

mod mask;
mod rules;

use std::{fmt, fs};

use anyhow::{Context, Result, bail};

use crate::{paths, source};

/// Where Rust sources lie.
const FOLDERS: [&str; 5] = [
    "gateway-common",
    "gateway-ebpf",
    "gateway-user",
    "tests",
    "xtask",
];

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.sentence)
    }
}

/// `cargo xtask tidy`.
pub(crate) fn run() -> Result<()> {
    let root = paths::root();
    let mut findings = Vec::new();
    let mut read = 0;
    for folder in FOLDERS {
        for path in source::files(&root.join(folder))? {
            let name = path
                .strip_prefix(&root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            if name.ends_with(".rs") {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
                findings.extend(rules::check(&name, &text));
                read += 1;
            }
        }
    }
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings in {read} files", findings.len());
    }
    println!("tidy: {read} files, no findings");
    Ok(())
}
