//! What a machine is made of: a kernel, its modules, and the first file system with the tests in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{initramfs::Archive, modules, store::Cached};
use crate::{
    build_ebpf, cmd, dist, paths,
    progress::{Step, Steps},
};

/// Beginnings of the names of the scenarios that show most about a kernel: emulated, loading the programs alone takes
/// seconds, and each scenario loads them.
const NAMES: [&str; 13] = [
    "datapath::faults::",
    "datapath::joined::",
    "datapath::machine::",
    "datapath::a_draining_node",
    "datapath::a_restart_adopts",
    "datapath::an_mtu_that",
    "datapath::auto_is_tcx",
    "datapath::attach::a_filter_of",
    "datapath::attach::tcx_stands",
    "scarce::memory",
    "xdp_cookies::",
    "xdp_lookup::",
    "xdp_verdicts::",
];
/// Those among them that start the daemon.
const NAMES_OF_DAEMON: [&str; 2] = ["datapath::joined::pod::", "scarce::"];
/// The same where a machine is to be done within a minute or two: every program is loaded, and the packet table is run.
const NAMES_QUICK: [&str; 2] = ["datapath::machine::every_program", "xdp_verdicts::"];
/// All that depend on the kernel.
const NAMES_ALL: [&str; 3] = ["datapath::", "scarce::", "xdp_"];
/// Those for a kernel that is older than Forebay serves.
const NAMES_BELOW: [&str; 1] = ["datapath::below::"];

/// Longest time for one test, in seconds: emulated, and on processors that others keep busy. The machine's clock goes on meanwhile.
const PATIENCE: u64 = 900;

/// Programs of the tests' crate that run in a machine.
const SCENARIOS: &str = "scenarios";
const BENCH: &str = "forebay-bench";

/// Where program and kernel programs lie in the machine.
const PROGRAM: &str = "/program";
const OBJECT: &str = "/forebay.o";
/// Where the daemon lies in a machine that has it.
const DAEMON: &str = "/forebay";

/// Where a kernel comes from.
pub(super) struct Image {
    from: From,
    /// It is older than Forebay serves.
    pub(super) below: bool,
}

enum From {
    Cache(Cached),
    User { kernel: PathBuf, modules: PathBuf },
}

/// Files that QEMU takes.
pub(super) struct Made {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

/// What was built for the machines.
pub(super) struct Guest {
    init: Vec<u8>,
    /// What it runs, as cargo has built it.
    program: PathBuf,
    /// The same without what only debuggers read.
    stripped: Vec<u8>,
    pub(super) object: Vec<u8>,
    /// The daemon as it is shipped: as cargo has built it, and stripped.
    daemon: Option<(PathBuf, Vec<u8>)>,
    /// xdp-tools that are newer than this machine's may be.
    pub(super) tools: Option<Cached>,
}

impl Image {
    pub(super) fn of_cache(cached: Cached, below: bool) -> Self {
        Self {
            from: From::Cache(cached),
            below,
        }
    }

    pub(super) fn of_user(kernel: PathBuf, modules: PathBuf) -> Self {
        Self {
            from: From::User { kernel, modules },
            below: false,
        }
    }

    /// Lays everything down in `folder`.
    pub(super) fn make(&self, folder: &Path, plan: &Value, guest: &Guest) -> Result<Made> {
        let (kernel, modules) = match &self.from {
            From::User { kernel, modules } => (kernel.clone(), modules.clone()),
            From::Cache(cached) => {
                let unpacked = folder.join("packages");
                cached.unpack(&unpacked)?;
                files(&unpacked)?
            }
        };
        let mut archive = Archive::default();
        archive.console();
        archive.file("/init", &guest.init);
        archive.file("/plan.json", plan.to_string().as_bytes());
        archive.file(OBJECT, &guest.object);
        archive.program_as(PROGRAM, &guest.program, &guest.stripped)?;
        if let Some((path, stripped)) = &guest.daemon {
            archive.program_as(DAEMON, path, stripped)?;
        }
        archive.programs()?;
        archive.manifests()?;
        archive.xdp_tools()?;
        if let Some(tools) = &guest.tools {
            let unpacked = folder.join("tools");
            tools.unpack(&unpacked)?;
            archive.newer_xdp_tools(&unpacked)?;
        }
        for (i, (name, bytes)) in modules::closure(&modules)?.iter().enumerate() {
            archive.file(&format!("/modules/{i:03}-{name}.ko"), bytes);
        }
        let initramfs = folder.join("initramfs.cpio");
        fs::write(&initramfs, archive.finish())
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        Ok(Made { kernel, initramfs })
    }
}

/// Kernel and modules among unpacked packages: the image is in `boot`, or since 6.19 beside the modules.
fn files(unpacked: &Path) -> Result<(PathBuf, PathBuf)> {
    let release = ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .filter_map(|place| fs::read_dir(unpacked.join(place)).ok())
        .flat_map(Iterator::flatten)
        .map(|entry| entry.path())
        .find(|path| path.join("modules.builtin").is_file())
        .with_context(|| hold_no("modules"))?;
    let name = release.file_name().unwrap_or_default().to_string_lossy();
    let boot = unpacked.join("boot").join(format!("vmlinuz-{name}"));
    let places = [boot, release.join("vmlinuz")];
    let kernel = places.into_iter().find(|path| path.is_file());
    Ok((kernel.with_context(|| hold_no("image"))?, release))
}

fn hold_no(what: &str) -> String {
    format!(
        "the kernel's packages hold no {what}, as where the archive has dropped a part of them: another version may be whole (`cargo xtask vm setup`)"
    )
}

/// Which scenarios a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Those that show most in a minute.
    Quick,
    /// Those that show most.
    Usual,
    /// All that depend on the kernel.
    All,
}

/// What a machine is to run, if `filter` is in their names.
pub(super) fn scenarios(below: bool, extent: Extent, filter: &str) -> Value {
    let names: &[&str] = match (below, extent) {
        (true, _) => &NAMES_BELOW,
        (false, Extent::Quick) => &NAMES_QUICK,
        (false, Extent::Usual) => &NAMES,
        (false, Extent::All) => &NAMES_ALL,
    };
    plan(Some(PROGRAM), &[], names, filter)
}

/// A plan of all that start the daemon.
pub(super) fn of_daemon(filter: &str) -> Value {
    plan(Some(PROGRAM), &[], &NAMES_OF_DAEMON, filter)
}

/// The plan of a machine that counts instructions.
pub(super) fn instructions() -> Value {
    let words = ["instructions", "--object", OBJECT, "--work", "/tmp/work"];
    plan(Some(PROGRAM), &words, &["instructions"], "")
}

/// What is counted through the whole stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    /// Packets on interfaces, and requests if there is the daemon.
    Whole,
    /// What of a request the daemon does in user space.
    Apart,
}

/// The plan of one that counts those of packets on interfaces, and of requests.
pub(super) fn stack(guest: &Guest, which: Stack) -> Value {
    let mut words = vec!["stack", "--object", OBJECT, "--work", "/tmp/work"];
    if guest.daemon.is_some() {
        words.push("--requests");
    }
    if which == Stack::Apart {
        words.push("--apart");
    }
    plan(Some(PROGRAM), &words, &["stack"], "")
}

/// A plan of nothing.
pub(super) fn nothing() -> Value {
    plan(None, &[], &[], "")
}

fn plan(program: Option<&str>, words: &[&str], names: &[&str], filter: &str) -> Value {
    json!({
        "program": program,
        "words": words,
        "names": names,
        "filter": filter,
        "seconds": PATIENCE,
        "environment": {
            "PATH": "/bin",
            "HOME": "/root",
            "FOREBAY_EBPF_OBJECT": OBJECT,
            "FOREBAY_BIN": DAEMON,
            "RUST_BACKTRACE": "0",
            // Else the first line that a test prints stands behind its name.
            "RUST_TEST_THREADS": "2",
        },
    })
}

/// Builds what runs the scenarios.
pub(super) fn build(steps: &Steps) -> Result<Guest> {
    build_ebpf::build(steps)?;
    let words = ["test", "--test", SCENARIOS, "--no-run"];
    guest(steps, SCENARIOS, &words, &paths::object())
}

/// Builds what counts instructions.
pub(super) fn build_bench(steps: &Steps) -> Result<Guest> {
    build_ebpf::build(steps)?;
    build_ebpf::build_bench(steps)?;
    let object = paths::target().join("ebpf/forebay-bench.o");
    guest(steps, BENCH, &["build", "--bin", BENCH], &object)
}

/// Builds everything that is the same for all machines, with one program of the tests' crate.
fn guest(steps: &Steps, name: &str, words: &[&str], object: &Path) -> Result<Guest> {
    steps.run("the first process", |step| {
        dist::build_static(step, "vm-init", "vm-init", "dev")
    })?;
    let program = steps.run_for(name, |step| {
        let mut cargo = cmd::cargo(&paths::root());
        Ok((built(step, &mut cargo, name, words)?, "built".to_owned()))
    })?;
    Ok(Guest {
        init: read(&paths::target().join("debug/vm-init"))?,
        stripped: stripped(&program, name)?,
        object: read(object)?,
        program,
        daemon: None,
        tools: None,
    })
}

impl Guest {
    /// The same with other kernel programs.
    pub(super) fn with_object(&self, object: Vec<u8>) -> Self {
        Self {
            init: self.init.clone(),
            program: self.program.clone(),
            stripped: self.stripped.clone(),
            object,
            daemon: None,
            tools: None,
        }
    }

    /// The same with the daemon, built as it is shipped: what it does for a request is to be what it does on a cluster.
    pub(super) fn with_daemon(self, steps: &Steps) -> Result<Self> {
        steps.run("forebay", |step| {
            cmd::release(step, "gateway-user", "forebay")
        })?;
        self.with_daemon_at(paths::target().join("release/forebay"))
    }

    /// The same with the daemon as one static program, quickly built: what takes time in it is the kernel's.
    pub(super) fn with_daemon_for_tests(self, steps: &Steps) -> Result<Self> {
        steps.run("forebay", |step| {
            dist::build_static(step, "gateway-user", "forebay", "dev")
        })?;
        self.with_daemon_at(paths::target().join("debug/forebay"))
    }

    /// The same with the daemon of another checkout at `root`, with the kernel programs of `object`. What is built stays in `target`.
    pub(super) fn with_daemon_of(
        self,
        step: &Step,
        root: &Path,
        target: &Path,
        object: &Path,
    ) -> Result<Self> {
        let mut cargo = cmd::cargo(root);
        cargo.env("CARGO_TARGET_DIR", target);
        cmd::release_by(step, cargo, object, ("gateway-user", "forebay"))?;
        self.with_daemon_at(target.join("release/forebay"))
    }

    fn with_daemon_at(self, path: PathBuf) -> Result<Self> {
        let stripped = stripped(&path, "forebay")?;
        Ok(Self {
            daemon: Some((path, stripped)),
            ..self
        })
    }

    /// Whether the program has a test that `plan` wants: a machine that would run none need not be started.
    pub(super) fn has_test_of(&self, plan: &Value) -> Result<bool> {
        let mut list = Command::new(&self.program);
        let listed = cmd::output(list.args(["--list", "--format", "terse"]))?;
        Ok(listed.lines().any(|line| is_wanted(line, plan)))
    }

    /// Whether the daemon is a part of it.
    pub(super) const fn has_daemon(&self) -> bool {
        self.daemon.is_some()
    }

    /// The same with what counts instructions as another checkout at `root` has it. What is built stays in `target`.
    pub(super) fn with_bench_of(self, step: &Step, root: &Path, target: &Path) -> Result<Self> {
        let mut cargo = cmd::cargo(root);
        cargo.env("CARGO_TARGET_DIR", target);
        let program = built(step, &mut cargo, BENCH, &["build", "--bin", BENCH])?;
        Ok(Self {
            stripped: stripped(&program, BENCH)?,
            program,
            ..self
        })
    }
}

/// Whether a line of a test program's list is a test of the plan, as `vm-init` chooses them.
fn is_wanted(line: &str, plan: &Value) -> bool {
    let Some(test) = line.strip_suffix(": test") else {
        return false;
    };
    let names = plan["names"].as_array().into_iter().flatten();
    let mut names = names.filter_map(Value::as_str);
    names.any(|name| test.starts_with(name))
        && plan["filter"]
            .as_str()
            .is_none_or(|part| test.contains(part))
}

/// A program without what only debuggers read.
pub(super) fn stripped(program: &Path, name: &str) -> Result<Vec<u8>> {
    let folder = paths::target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let stripped = folder.join(name);
    build_ebpf::strip(program, &stripped)?;
    let bytes = read(&stripped)?;
    fs::remove_file(&stripped).context("cannot remove the stripped program")?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Has cargo build a program, the same one that runs on this machine.
fn built(step: &Step, cargo: &mut Command, name: &str, words: &[&str]) -> Result<PathBuf> {
    cargo
        .env("FOREBAY_EBPF_OBJECT", paths::object())
        .args(words)
        .args(["-p", "gateway-tests", "--message-format", "json"]);
    step.say("cargo");
    let said = cmd::output(cargo)?;
    let path = said.lines().find_map(|line| program_of(line, name));
    let path = path.with_context(|| format!("cargo has built no {name}"))?;
    ensure!(path.is_file(), "cargo has built no {}", path.display());
    Ok(path)
}

/// The program in a message of cargo about what is called so.
fn program_of(line: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_it = message["target"]["name"] == name;
    is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"scenarios"},"executable":"/t/scenarios-1"}"#;
        let found = program_of(line, "scenarios");
        assert_eq!(found, Some(PathBuf::from("/t/scenarios-1")));
        assert_eq!(program_of(line, "x"), None);
        assert_eq!(program_of("{}", "x"), None);
    }

    #[test]
    fn a_test_is_wanted_by_its_beginning_and_a_part_of_its_name() {
        let wanted = |line: &str, filter: &str| {
            let plan = scenarios(false, Extent::All, filter);
            is_wanted(line, &plan)
        };
        assert!(wanted("datapath::machine::a: test", ""));
        assert!(wanted("datapath::machine::a: test", "machine"));
        assert!(!wanted("datapath::machine::a: test", "wire"));
        assert!(!wanted("wire::a: test", "wire"));
        assert!(!wanted("12 tests, 0 benchmarks", ""));
    }

    #[test]
    fn kernels_are_found_in_both_layouts_of_packages() {
        let folder = std::env::temp_dir().join(format!("forebay-layout-{}", std::process::id()));
        for (modules, kernel) in [
            ("lib/modules/6.1", "boot/vmlinuz-6.1"),
            ("usr/lib/modules/7.3", "usr/lib/modules/7.3/vmlinuz"),
        ] {
            let place = folder.join(modules);
            fs::create_dir_all(&place).unwrap();
            fs::create_dir_all(folder.join("boot")).unwrap();
            fs::write(place.join("modules.builtin"), "").unwrap();
            let error = files(&folder).unwrap_err().to_string();
            assert!(
                error.starts_with("the kernel's packages hold no image"),
                "{error}"
            );
            fs::write(folder.join(kernel), "").unwrap();
            assert_eq!(files(&folder).unwrap(), (folder.join(kernel), place));
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}
