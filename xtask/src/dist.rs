//! `cargo xtask dist`: the image that a cluster runs, as an OCI archive in `target/dist`.
//!
//! The image holds one file, a program that needs no other: no libc, no shell, no certificates.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    build_ebpf, cmd, oci, paths,
    progress::{Step, Steps},
};

/// Where the image is published, without tag.
const REPOSITORY: &str = "docker.io/forebay/forebay";
/// Where it lies in the image; `kubectl exec` finds it by its name there.
const PROGRAM: [&str; 3] = ["usr", "usr/bin", "usr/bin/forebay"];

/// What to build.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How the program is compiled.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Tag of the image.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_parser = tag)]
    version: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Profile {
    /// As it is published.
    Release,
    /// Quickly.
    Dev,
}

impl Profile {
    /// Cargo's name of it, and the folder of what it builds.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Release => ("release", "release"),
            Self::Dev => ("dev", "debug"),
        }
    }
}

/// `cargo xtask dist`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let steps = Steps::new();
    build_ebpf::build(&steps)?;
    steps.run("forebay, static", |step| build(step, args.profile))?;
    let image = image(args)?;
    let folder = paths::target().join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join("forebay.tar");
    let mut digest = String::new();
    steps.run("image", |_| {
        let written = image.write(&path)?;
        digest = written.digest;
        Ok(format!(
            "{} MiB, {}",
            written.size >> 20,
            image.names.join(", ")
        ))
    })?;
    println!("{}\n{digest}", path.display());
    Ok(())
}

fn build(step: &Step, profile: Profile) -> Result<String> {
    build_static(step, "gateway-user", "forebay", profile.names().0)?;
    Ok(profile.names().0.to_owned())
}

/// Builds a program that needs no other file. Only its last crate is compiled anew for it: what links statically is decided
/// when the program is linked.
pub(crate) fn build_static(
    step: &Step,
    package: &str,
    program: &str,
    profile: &str,
) -> Result<String> {
    let mut cargo = cmd::cargo(&paths::root());
    cargo
        .env("FOREBAY_EBPF_OBJECT", paths::object())
        .args(["rustc", "-p", package, "--bin", program])
        .args(["--profile", profile, "--"])
        // Names of functions stay, for what a panic says.
        .args(["-C", "target-feature=+crt-static", "-C", "strip=debuginfo"]);
    cmd::watched(&mut cargo, |line| step.say(line))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    let path = paths::target().join(folder).join(program);
    let bytes = fs::read(&path).context("cargo has built no program")?;
    ensure!(
        !has_interpreter(&bytes),
        "the program is not static: is there a static libc (Debian: libc6-dev)?"
    );
    Ok("built".to_owned())
}

fn program(profile: Profile) -> PathBuf {
    paths::target().join(profile.names().1).join("forebay")
}

fn image(args: &Args) -> Result<oci::Image> {
    let path = program(args.profile);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let label = |name, value: &str| (name, value.to_owned());
    Ok(oci::Image {
        names: vec![format!("{REPOSITORY}:{}", args.version)],
        layers: vec![vec![
            oci::Entry::folder(PROGRAM[0]),
            oci::Entry::folder(PROGRAM[1]),
            oci::Entry::program(PROGRAM[2], bytes),
        ]],
        start: oci::Start {
            entrypoint: vec![format!("/{}", PROGRAM[2])],
            // The agent is root, the proxy is not: the manifests say which.
            user: String::new(),
        },
        labels: [
            label("org.opencontainers.image.title", "forebay"),
            label(
                "org.opencontainers.image.description",
                "eBPF/XDP-accelerated ingress load balancer for Gateway API",
            ),
            label("org.opencontainers.image.version", &args.version),
            label("org.opencontainers.image.licenses", "Apache-2.0"),
            label(
                "org.opencontainers.image.source",
                "https://github.com/forebay/forebay",
            ),
        ]
        .into(),
    })
}

/// What a registry takes for a tag.
fn tag(text: &str) -> Result<String, String> {
    let usable = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = text.len() <= 128
        && text.starts_with(usable)
        && text.chars().all(|c| usable(c) || c == '.' || c == '-');
    good.then(|| text.to_owned())
        .ok_or_else(|| "a tag is made of letters, digits, '_', '.' and '-'".to_owned())
}

/// Whether an ELF file of this machine's kind (64 bits, little endian) names a dynamic loader.
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at + size)?;
        let number = bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        Some(number)
    };
    let headers = || {
        let first = usize::try_from(number(32, 8)?).ok()?;
        let size = usize::try_from(number(54, 2)?).ok()?;
        let count = usize::try_from(number(56, 2)?).ok()?;
        Some((0..count).map(move |index| first + index * size))
    };
    headers().is_some_and(|mut all| all.any(|at| number(at, 4) == Some(PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_no_colon() {
        assert!(tag("0.1.0-rc.1").is_ok());
        for bad in ["", "a:b", ".a", &"a".repeat(129)] {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_dynamic_program_is_told_from_others() {
        // The tests themselves are dynamic.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&own));
        let mut none = own.clone();
        none[56..58].fill(0);
        assert!(!has_interpreter(&none));
        assert!(!has_interpreter(b"\x7fELF"));
    }
}
