//! Running other programs: output kept for the error, never mixed into the progress lines.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{paths, progress::Step};

/// Lines of a failed program's output that its error shows.
const TAIL: usize = 40;

/// Runs `command` and returns its standard output, trimmed; an error shows the end of what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let stdout = bytes(command)?;
    Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
}

/// Runs `command` and returns its standard output as it is; an error shows the end of what it said.
pub(crate) fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let name = display(command);
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{name}`"))?;
    if !status.success() {
        let said =
            String::from_utf8_lossy(if stderr.is_empty() { &stdout } else { &stderr }).into_owned();
        bail!("`{name}` failed ({status})\n{}", tail(&said));
    }
    Ok(stdout)
}

/// Runs `command`, calls `each` with every line of its standard error and fails with the last of them.
pub(crate) fn watched(command: &mut Command, mut each: impl FnMut(&str)) -> Result<()> {
    let name = display(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{name}`"))?;
    let mut said = String::new();
    let stderr = child
        .stderr
        .take()
        .context("the child's standard error was not piped")?;
    for line in BufReader::new(stderr).lines() {
        let line = line.unwrap_or_default();
        each(line.trim());
        said.push_str(&line);
        said.push('\n');
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})\n{}", tail(&said));
    }
    Ok(())
}

/// The host's `cargo`, in `dir`.
pub(crate) fn cargo(dir: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(dir);
    command
}

/// Builds one program for release. Each has a cargo call of its own: built together with the tests, the daemon
/// would get their features.
pub(crate) fn release(step: &Step, package: &str, program: &str) -> Result<String> {
    release_by(
        step,
        cargo(&paths::root()),
        &paths::object(),
        (package, program),
    )?;
    Ok("built".to_owned())
}

/// The same by a cargo that may be in another checkout, with these kernel programs.
pub(crate) fn release_by(
    step: &Step,
    mut cargo: Command,
    object: &Path,
    (package, program): (&str, &str),
) -> Result<()> {
    cargo.env("FOREBAY_EBPF_OBJECT", object).args([
        "build",
        "--release",
        "-p",
        package,
        "--bin",
        program,
    ]);
    watched(&mut cargo, |line| step.say(line))
}

/// Whether `program` is in PATH or where administrators' programs are.
pub(crate) fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_program_and_shows_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "`sh -c echo why >&2; exit 3` failed (exit status: 3)\nwhy"
        );
    }

    #[test]
    fn a_watched_program_hands_over_each_line() {
        let mut seen = Vec::new();
        watched(
            Command::new("sh").args(["-c", "echo a >&2; echo b >&2"]),
            |line| seen.push(line.to_owned()),
        )
        .unwrap();
        assert_eq!(seen, ["a", "b"]);
    }
}
