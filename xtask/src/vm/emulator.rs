//! Which QEMU runs machines, and what its version can be trusted with.

use std::{ffi::OsString, fs, path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Context, Result, ensure};

use super::store;
use crate::{cmd, paths, progress::Steps};

/// The emulator where none is named.
const PROGRAM: &str = "qemu-system-x86_64";

/// The first version that counts packets on interfaces and requests: an earlier one was seen to go wrong with them now and then.
pub(super) const STACK: u32 = 10;

/// The one that machines are run by, where it is not the installed one.
static CHOSEN: OnceLock<Chosen> = OnceLock::new();

/// An emulator that is not installed.
#[derive(Debug)]
struct Chosen {
    program: PathBuf,
    /// Where its firmware is, if it does not know that itself.
    firmware: Vec<PathBuf>,
}

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
        let program = std::path::absolute(path).context("where is QEMU?")?;
        // It is named once.
        let _first = CHOSEN.set(Chosen {
            program,
            firmware: Vec::new(),
        });
        Ok(())
    }
}

/// What is started, and its first words.
pub(super) fn program() -> Vec<OsString> {
    match CHOSEN.get() {
        Some(chosen) => chosen.words(),
        None => vec![PROGRAM.into()],
    }
}

impl Chosen {
    fn words(&self) -> Vec<OsString> {
        let firmware = self.firmware.iter();
        let folders = firmware.flat_map(|folder| [OsString::from("-L"), folder.into()]);
        std::iter::once(self.program.clone().into())
            .chain(folders)
            .collect()
    }
}

/// Settles which one runs machines, as a step of a command: the one that is named; else the installed one; where that is too old
/// to count everything, the newer one in the cache. Returns its version. The caller holds the lock.
pub(super) fn ready(steps: &Steps) -> Result<String> {
    steps.run_for("QEMU", |_| {
        let installed = version()?;
        if CHOSEN.get().is_none()
            && too_old(&installed).is_some()
            && let Some(newer) = newer()?
        {
            // Nobody else chooses.
            let _first = CHOSEN.set(newer);
        }
        let version = version()?;
        Ok((version.clone(), version))
    })
}

/// The newer one from the cache, if it is there and runs on this machine.
fn newer() -> Result<Option<Chosen>> {
    let Some(cached) = store::cached_qemu()? else {
        return Ok(None);
    };
    let folder = paths::target().join("vm/qemu");
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    cached.unpack(&folder)?;
    let newer = Chosen {
        program: folder.join("usr/bin").join(PROGRAM),
        firmware: ["seabios", "qemu"]
            .map(|name| folder.join("usr/share").join(name))
            .into(),
    };
    // It loads this machine's libraries, of which it may want more than there are.
    let runs = version_of(&newer.words()).is_ok_and(|version| too_old(&version).is_none());
    Ok(runs.then_some(newer))
}

/// Fetches a newer one into the cache where the installed one is too old to count everything and none is named. Not to have it is
/// no error: it is said what goes without.
pub(super) fn fetch_newer(steps: &Steps, cached: bool) -> Result<()> {
    let Some(why) = too_old(&version()?) else {
        return Ok(());
    };
    if CHOSEN.get().is_none() {
        steps.run("newer QEMU", |step| match store::qemu(step, cached) {
            Ok(found) => Ok(found.lock.version),
            Err(error) => Ok(format!("not to be had: {error:#}")),
        })?;
        if newer()?.is_some() {
            return Ok(());
        }
    }
    println!("note: {why}");
    Ok(())
}

/// Whether QEMU is there; its version.
pub(super) fn version() -> Result<String> {
    ensure!(
        CHOSEN.get().is_some() || cmd::is_there(PROGRAM),
        "there is no {PROGRAM}: run `cargo xtask vm setup`, or install QEMU for x86"
    );
    version_of(&program())
}

fn version_of(words: &[OsString]) -> Result<String> {
    let (program, rest) = words.split_first().context("no QEMU")?;
    let said = cmd::output(Command::new(program).args(rest).arg("--version"))?;
    let version = said.split_whitespace().nth(3).unwrap_or("unknown");
    Ok(version.to_owned())
}

/// Why this version does not count what goes through the whole stack.
pub(super) fn too_old(version: &str) -> Option<String> {
    let (first, _) = version.split_once('.')?;
    let is_old = first.parse::<u32>().ok()? < STACK;
    is_old.then(|| {
        format!(
            "QEMU {version} counts packets of test runs only: for the loops over veths and the requests run `cargo xtask vm setup`, which fetches a newer one where it can, or name one of version {STACK} or later with --qemu PATH"
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
    fn one_from_the_cache_is_told_where_its_firmware_is() {
        let chosen = Chosen {
            program: "/q".into(),
            firmware: vec!["/a".into(), "/b".into()],
        };
        assert_eq!(chosen.words(), ["/q", "-L", "/a", "-L", "/b"]);
    }

    #[test]
    fn an_emulator_that_is_not_there_is_one_sentence() {
        let qemu = Some(PathBuf::from("/nowhere/qemu"));
        let error = Emulator { qemu }.choose().unwrap_err().to_string();
        assert_eq!(error, "--qemu /nowhere/qemu: there is no such program");
    }
}
