//! The way back to the host: one JSON object a line.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

/// Name of the virtio port on both sides.
const PORT: &str = "forebay.results";

/// What became of one test.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// It says itself that this machine lacks what it needs.
    Skipped,
}

/// One test.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) test: String,
    /// What became of it.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) milliseconds: u128,
    /// Why it was skipped or failed, else what it found out about the machine.
    pub(crate) said: Vec<String>,
}

/// The port, and what went over it.
pub(crate) struct Report {
    port: File,
    told: usize,
}

impl Report {
    /// Opens the port.
    pub(crate) fn open() -> Result<Self> {
        let path = port()?;
        let port = File::options().write(true).open(&path);
        let mut report = Self {
            port: port.with_context(|| format!("cannot open {}", path.display()))?,
            told: 0,
        };
        let name = rustix::system::uname();
        report.line(&json!({ "kernel": name.release().to_string_lossy() }))?;
        Ok(report)
    }

    /// Something without which tests may fail for no fault of theirs.
    pub(crate) fn fault_unless(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.line(&json!({ "fault": format!("{error:#}") })),
        }
    }

    /// One test.
    pub(crate) fn tell(&mut self, outcome: &Outcome) -> Result<()> {
        self.told += 1;
        self.line(outcome)
    }

    /// The last record.
    pub(crate) fn end(mut self) -> Result<()> {
        let told = self.told;
        self.line(&json!({ "end": told }))
    }

    fn line(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.port
            .write_all(&line)
            .context("the host takes no results")
    }
}

/// The node of the port: its number is not fixed.
fn port() -> Result<PathBuf> {
    let folder = "/sys/class/virtio-ports";
    let entries = fs::read_dir(folder)
        .with_context(|| format!("cannot read {folder}: is there no virtio_console?"))?;
    let is_ours = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT)
    };
    let found = entries
        .flatten()
        .find(is_ours)
        .context("the machine has no port for results")?;
    Ok(PathBuf::from("/dev").join(found.file_name()))
}
