//! Which QEMU runs machines, and what its version can be trusted with.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Context, Result, ensure};

use crate::cmd;

/// The emulator where none is named.
const PROGRAM: &str = "qemu-system-x86_64";

/// The first version that counts packets on interfaces and requests: an earlier one was seen to go wrong with them now and then.
pub(super) const STACK: u32 = 10;

/// The one that the command line names.
static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Which emulator.
#[derive(clap::Args)]
pub(crate) struct Emulator {
    /// QEMU for x86, instead of the one that is installed.
    #[arg(long, global = true, env = "FOREBAY_QEMU", value_name = "PATH")]
    qemu: Option<PathBuf>,
}

impl Emulator {
    /// Makes it the one that all machines are run by.
    pub(super) fn choose(&self) -> Result<()> {
        let Some(path) = &self.qemu else {
            return Ok(());
        };
        ensure!(
            path.is_file(),
            "--qemu {}: there is no such program",
            path.display()
        );
        // Machines are started from elsewhere.
        let path = std::path::absolute(path).context("where is QEMU?")?;
        // It is named once.
        let _first = CHOSEN.set(path);
        Ok(())
    }
}

/// What is started.
pub(super) fn program() -> PathBuf {
    CHOSEN.get().cloned().unwrap_or_else(|| PROGRAM.into())
}

/// Whether QEMU is there; its version.
pub(super) fn version() -> Result<String> {
    ensure!(
        CHOSEN.get().is_some() || cmd::is_there(PROGRAM),
        "there is no {PROGRAM}: run `cargo xtask vm setup`, or install QEMU for x86"
    );
    let said = cmd::output(Command::new(program()).arg("--version"))?;
    let version = said.split_whitespace().nth(3).unwrap_or("unknown");
    Ok(version.to_owned())
}

/// Why this version does not count what goes through the whole stack.
pub(super) fn too_old(version: &str) -> Option<String> {
    let (first, _) = version.split_once('.')?;
    let is_old = first.parse::<u32>().ok()? < STACK;
    is_old.then(|| {
        format!(
            "QEMU {version} counts packets of test runs only: for the loops over veths and the requests name one of version {STACK} or later with --qemu PATH"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_version_says_what_it_leaves_out() {
        let why = too_old("7.2.22").unwrap();
        assert!(why.starts_with("QEMU 7.2.22 counts"), "{why}");
        assert!(why.contains("--qemu PATH"), "{why}");
        for new in ["10.0.2", "11.1.0", "unknown"] {
            assert_eq!(too_old(new), None, "{new}");
        }
    }

    #[test]
    fn an_emulator_that_is_not_there_is_one_sentence() {
        let qemu = Some(PathBuf::from("/nowhere/qemu"));
        let error = Emulator { qemu }.choose().unwrap_err().to_string();
        assert_eq!(error, "--qemu /nowhere/qemu: there is no such program");
    }
}
