//! Builds the kernel programs: `target/ebpf/forebay.o`, its SHA-256 and what it was built with.
//!
//! The same sources and toolchain give the same bytes in every checkout: paths are remapped, DWARF is
//! stripped after it has become BTF, and the compiler's crate ids do not depend on where the checkout lies
//! (see [`wrapper`]). Nothing is built when nothing has changed. The object is never committed.

mod stack;
pub(crate) mod wrapper;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cmd, paths,
    progress::{Step, Steps},
    setup, source,
    toolchain::{self, Toolchain},
};

const TARGET: &str = "bpfel-unknown-none";
const PROGRAM: &str = "forebay-ebpf";

/// What the object depends on, below the checkout.
const INPUTS: [&str; 5] = [
    "Cargo.toml",
    "gateway-common/Cargo.toml",
    "gateway-common/src",
    "gateway-ebpf",
    "xtask/src/build_ebpf.rs",
];

/// `cargo xtask build-ebpf`.
pub(crate) fn run(verify: bool) -> Result<()> {
    let steps = Steps::new();
    build(&steps)?;
    if verify { verify_anew(&steps) } else { Ok(()) }
}

fn verify_anew(steps: &Steps) -> Result<()> {
    steps.run("the same bytes elsewhere", verify_elsewhere)
}

/// Whether another checkout gives the bytes of the object that was built here; built there only if this was not seen for these inputs before.
pub(crate) fn verify(steps: &Steps) -> Result<()> {
    let here = Checkout::new(paths::root(), paths::target().join("ebpf"))?;
    let seen = here.out.join("verified");
    let inputs = here.fingerprint()?;
    let hash = here
        .up_to_date(&inputs)
        .context("the eBPF object was changed while it was looked at")?;
    let mark = format!("{inputs} {hash}\n");
    if fs::read_to_string(&seen).is_ok_and(|text| text == mark) {
        return Ok(());
    }
    verify_anew(steps)?;
    fs::write(&seen, mark).with_context(|| format!("cannot write {}", seen.display()))
}

/// The build as one step of another command.
pub(crate) fn build(steps: &Steps) -> Result<()> {
    steps.run("eBPF object", |step| {
        let checkout = Checkout::new(paths::root(), paths::target().join("ebpf"))?;
        checkout.build_if_changed(step)
    })
}

/// The object with the programs of the benchmarks beside the others, as one step of another command.
pub(crate) fn build_bench(steps: &Steps) -> Result<()> {
    steps.run("eBPF object to measure", |step| {
        let checkout = Checkout::new(paths::root(), paths::target().join("ebpf"))?;
        let bench = Checkout {
            name: "forebay-bench",
            features: &["--features", "bench"],
            ..checkout
        };
        bench.build_if_changed(step)
    })
}

/// The object to measure of another checkout at `root`, with this checkout's tools. What is built lies beside this checkout's own, so
/// that the next one of the kind takes seconds.
pub(crate) fn build_bench_of(step: &Step, root: PathBuf) -> Result<Vec<u8>> {
    let checkout = Checkout::new(root, paths::target().join("ebpf/other"))?;
    let bench = Checkout {
        name: "forebay-bench",
        features: &["--features", "bench"],
        ..checkout
    };
    bench.build_if_changed(step)?;
    fs::read(bench.object()).context("cannot read the other checkout's object")
}

/// The object of another checkout at `root` in the same way; where it lies.
pub(crate) fn build_of(step: &Step, root: PathBuf) -> Result<PathBuf> {
    let checkout = Checkout::new(root, paths::target().join("ebpf/other"))?;
    checkout.build_if_changed(step)?;
    Ok(checkout.object())
}

/// A copy of the sources and where its object goes.
struct Checkout {
    root: PathBuf,
    out: PathBuf,
    /// The object's name without its extension.
    name: &'static str,
    features: &'static [&'static str],
    toolchain: Toolchain,
    linker: PathBuf,
}

impl Checkout {
    fn new(root: PathBuf, out: PathBuf) -> Result<Self> {
        let linker = setup::bpf_linker_path()?;
        if !linker.is_file() {
            bail!(
                "no bpf-linker at {}: run `cargo xtask setup`",
                linker.display()
            );
        }
        Ok(Self {
            root,
            out,
            name: "forebay",
            features: &[],
            toolchain: toolchain::require()?,
            linker,
        })
    }

    fn build_if_changed(&self, step: &Step) -> Result<String> {
        let inputs = self.fingerprint()?;
        if let Some(hash) = self.up_to_date(&inputs) {
            return Ok(format!("unchanged {}", &hash[..12]));
        }
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot create {}", self.out.display()))?;
        cmd::watched(&mut self.compiler()?, |line| step.say(line))?;
        let object = self.object();
        let built = self
            .out
            .join("build")
            .join(TARGET)
            .join("release")
            .join(PROGRAM);
        strip(&built, &object)?;
        let bytes =
            fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        // Programs of the benchmarks are for this machine and those that were measured to take them.
        if self.features.is_empty() {
            let (stack, chain) = stack::check(&bytes)?;
            step.say(&format!("{stack} bytes of stack: {chain}"));
        }
        let hash = hex(&Sha256::digest(&bytes));
        self.note(&hash, &inputs)?;
        Ok(format!(
            "{} bytes, {} by rustc {}",
            bytes.len(),
            &hash[..12],
            self.toolchain.describe()
        ))
    }

    fn object(&self) -> PathBuf {
        self.out.join(format!("{}.o", self.name))
    }

    /// The object's hash if it was built from these very inputs and nobody touched it since.
    fn up_to_date(&self, inputs: &str) -> Option<String> {
        let bytes = fs::read(self.object()).ok()?;
        let noted: Value = serde_json::from_str(
            &fs::read_to_string(self.out.join(format!("{}.json", self.name))).ok()?,
        )
        .ok()?;
        let hash = hex(&Sha256::digest(&bytes));
        (noted["inputs"] == inputs && noted["sha256"] == hash.as_str()).then_some(hash)
    }

    fn compiler(&self) -> Result<Command> {
        let linker_dir = self
            .linker
            .parent()
            .context("bpf-linker has no directory")?
            .to_path_buf();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(std::iter::once(linker_dir).chain(std::env::split_paths(&path)))
                .context("a directory in PATH contains a colon")?;
        let mut cargo = Command::new(&self.toolchain.cargo);
        toolchain::clean(&mut cargo)
            .current_dir(self.root.join("gateway-ebpf"))
            .args([
                "build",
                "--release",
                "--locked",
                "--target",
                TARGET,
                "-Z",
                "build-std=core",
            ])
            .args(self.features)
            .env("CARGO_TARGET_DIR", self.out.join("build"))
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags().join("\u{1f}"))
            .env("RUSTC", &self.toolchain.rustc)
            .env(
                "RUSTC_WRAPPER",
                std::env::current_exe().context("cannot tell where this program is")?,
            )
            .env(wrapper::MARK, "1")
            .env("PATH", path);
        if !self.toolchain.is_nightly() {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        Ok(cargo)
    }

    fn flags(&self) -> Vec<String> {
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        vec![
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            "-Ctarget-cpu=v3".to_owned(),
            // Later ones win: a cargo home inside the checkout is still the cargo home.
            remap(&self.root, "/forebay"),
            remap(&toolchain::cargo_home(), "/cargo"),
            remap(&self.toolchain.sysroot, "/rust"),
        ]
    }

    fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new();
        digest.update(&self.toolchain.version);
        digest.update(setup::BPF_LINKER);
        for input in INPUTS {
            for file in source::files(&self.root.join(input))? {
                let bytes =
                    fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                let name = file.strip_prefix(&self.root).unwrap_or(&file);
                digest.update(name.as_os_str().as_encoded_bytes());
                digest.update((bytes.len() as u64).to_le_bytes());
                digest.update(bytes);
            }
        }
        Ok(hex(&digest.finalize()))
    }

    fn note(&self, hash: &str, inputs: &str) -> Result<()> {
        let write = |name: String, text: String| {
            let path = self.out.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let about = json!({
            "sha256": hash,
            "inputs": inputs,
            "rustc": self.toolchain.version.lines().collect::<Vec<_>>(),
            "bpf-linker": setup::BPF_LINKER,
            "llvm": toolchain::LLVM_MAJOR,
        });
        let name = self.name;
        write(format!("{name}.o.sha256"), format!("{hash}  {name}.o\n"))?;
        write(format!("{name}.json"), format!("{about:#}\n"))
    }
}

/// Copies a program or an object without what only debuggers read.
pub(crate) fn strip(from: &Path, to: &Path) -> Result<()> {
    let tool = format!("llvm-objcopy-{}", toolchain::LLVM_MAJOR);
    let tool = if cmd::is_there(&tool) {
        tool
    } else {
        "llvm-objcopy".to_owned()
    };
    let fresh = to.with_extension("o.new");
    cmd::output(
        Command::new(tool)
            .arg("--strip-debug")
            .arg(from)
            .arg(&fresh),
    )?;
    let same = fs::read(&fresh).and_then(|new| Ok(new == fs::read(to)?));
    // Whoever embeds the same bytes need not be built again.
    if same.unwrap_or(false) {
        return fs::remove_file(&fresh)
            .with_context(|| format!("cannot remove {}", fresh.display()));
    }
    // One rename: nobody ever embeds half an object.
    fs::rename(&fresh, to).with_context(|| format!("cannot write {}", to.display()))
}

fn verify_elsewhere(step: &Step) -> Result<String> {
    let here = fs::read(paths::target().join("ebpf/forebay.o"))
        .context("cannot read target/ebpf/forebay.o")?;
    let copy = std::env::temp_dir().join(format!(
        "forebay-verify-{}/a/rather/deeper/copy",
        std::process::id()
    ));
    let clean = copy.ancestors().nth(4).unwrap_or(&copy).to_path_buf();
    let built = build_copy(step, &copy);
    fs::remove_dir_all(&clean).with_context(|| format!("cannot remove {}", clean.display()))?;
    let there = built?;
    if here != there {
        let (here, there) = (hex(&Sha256::digest(&here)), hex(&Sha256::digest(&there)));
        bail!("the object depends on where it is built: {here} here, {there} in another directory");
    }
    Ok(hex(&Sha256::digest(&here)))
}

fn build_copy(step: &Step, copy: &Path) -> Result<Vec<u8>> {
    let root = paths::root();
    for input in INPUTS.iter().copied() {
        for file in source::files(&root.join(input))? {
            let to = copy.join(
                file.strip_prefix(&root)
                    .context("a source lies outside the checkout")?,
            );
            fs::create_dir_all(to.parent().unwrap_or(copy))
                .context("cannot create the copy's directory")?;
            fs::copy(&file, &to).with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    let checkout = Checkout::new(copy.to_path_buf(), copy.join("target/ebpf"))?;
    checkout.build_if_changed(step)?;
    fs::read(checkout.object()).context("cannot read the copy's object")
}

/// The SHA-256 of an object, as its note has it, or of anything else.
pub(crate) fn hex_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
