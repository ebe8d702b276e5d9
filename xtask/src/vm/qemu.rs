//! One virtual machine: started, watched, ended.
//!
//! QEMU's exit code says nothing: it is 0 after a panic too. Under `--accel auto` KVM is taken only if a machine has been
//! seen to run with it: the device may be there and yet run no ordinary kernel.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::emulator;
use crate::cluster::wait::{Interrupt, until};

/// The processor that is emulated: a fixed one, since what a kernel patches in itself depends on it.
const CPU: &str = "Nehalem";

/// How the machine's instructions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Accel {
    /// KVM if a machine runs with it here, else emulation.
    Auto,
    /// By this machine's processor.
    Kvm,
    /// By emulation.
    Tcg,
}

/// What the clock of a machine counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// Time, as it passes here.
    Time,
    /// Instructions, a nanosecond each. There are no cards then, with which QEMU before 10 was seen to go wrong.
    Instructions,
    /// The same with a second processor, on which the kernel counts what is done in user space apart from its own.
    InstructionsApart,
}

/// A machine to run.
pub(super) struct Machine<'a> {
    /// Kernel image.
    pub(super) kernel: &'a Path,
    /// Its first file system.
    pub(super) initramfs: &'a Path,
    /// Directory for what it says: `console.log`, `results.jsonl`, `qemu.log`.
    pub(super) folder: &'a Path,
    /// KVM or emulation, never `Auto`.
    pub(super) accel: Accel,
    /// What the kernel is told at its start besides, with a blank before it.
    pub(super) words: &'a str,
    /// What its clock counts.
    pub(super) clock: Clock,
    /// Longest time to its end.
    pub(super) bound: Duration,
}

/// What a machine has besides.
pub(super) struct Fitting {
    /// Memory, in MiB.
    pub(super) memory: u32,
    /// Cards and their cables, as QEMU's words. A path there is one from the machine's folder: those of sockets are short.
    pub(super) cards: Vec<String>,
    /// Network namespace of QEMU's own, as words before the program: what cables need of this machine's kernel is made there, and
    /// ends with QEMU.
    pub(super) apart: &'static [&'static str],
}

impl Machine<'_> {
    /// Runs it to its end; `each` is called with every new line of results. Ends it at the bound and at an interrupt.
    pub(super) fn run(&self, interrupt: &Interrupt, mut each: impl FnMut(&str)) -> Result<()> {
        let mut running = self.start(&self.usual())?;
        let what = "the virtual machine's end";
        let ended = until(interrupt, what, self.bound, || {
            Ok(running.ended(&mut each)?.then_some(()))
        });
        drop(running);
        ended
    }

    /// Starts it and returns at once.
    pub(super) fn start(&self, fitting: &Fitting) -> Result<Running> {
        let log = File::create(self.folder.join("qemu.log")).context("cannot create a log")?;
        let mut command = self.command(fitting)?;
        command
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log)
            // Ctrl-C reaches this program, which ends the machine.
            .process_group(0);
        let child = command.spawn().context("cannot start QEMU")?;
        Ok(Running {
            child,
            results: self.folder.join("results.jsonl"),
            told: 0,
        })
    }

    /// Two cards on one hub: what one sends the other receives; and where this machine can have it, one whose offloads the guest
    /// cannot turn off. None where instructions are counted.
    fn usual(&self) -> Fitting {
        let counts = self.clock != Clock::Time;
        let count = if counts { 0 } else { 2 };
        let apart = if counts { None } else { apart() };
        let card = |i: u8| {
            [
                "-netdev".to_owned(),
                format!("hubport,id=net{i},hubid=0"),
                "-device".to_owned(),
                format!("virtio-net-pci,netdev=net{i},mac=52:54:00:00:00:0{}", i + 1),
            ]
        };
        let fixed = apart.iter().flat_map(|_| FIXED.map(str::to_owned));
        Fitting {
            memory: 1024,
            cards: (0..count).flat_map(card).chain(fixed).collect(),
            apart: apart.unwrap_or_default(),
        }
    }

    fn command(&self, fitting: &Fitting) -> Result<Command> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            _ => ("tcg", CPU),
        };
        let mut command = Command::new("nice");
        command.args(["-n", "10"]).args(fitting.apart);
        command.args(emulator::program());
        command.args(["-machine", "pc", "-accel", accel, "-cpu", cpu]);
        // A second processor made every emulated run slower. The first one keeps the time, and its tick is what tells where a
        // processor is; on one without a tick every entry into the kernel is noted instead.
        let (processors, tickless) = match self.clock {
            Clock::InstructionsApart => ("2", " nohz_full=1"),
            _ => ("1", ""),
        };
        command.args(["-m", &fitting.memory.to_string(), "-smp", processors]);
        command.args(["-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot"]);
        command.args(["-serial", &format!("file:{}", at("console.log"))]);
        // It may be the user's, given from where the user is.
        let kernel = std::path::absolute(self.kernel).context("where is the kernel?")?;
        command.arg("-kernel").arg(kernel);
        command.arg("-initrd").arg(self.initramfs);
        let words = "console=ttyS0 panic=-1 net.ifnames=0 quiet loglevel=5";
        command.args(["-append", &format!("{words}{tickless}{}", self.words)]);
        command.args(["-device", "virtio-serial-pci"]);
        let results = format!("file,id=results,path={}", at("results.jsonl"));
        command.args(["-chardev", &results]);
        command.args([
            "-device",
            "virtserialport,chardev=results,name=forebay.results",
        ]);
        if self.clock != Clock::Time {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        command.args(&fitting.cards);
        Ok(command)
    }
}

/// A card whose offloads the guest cannot turn off. The guest is offered them at all only by a tap.
const FIXED: [&str; 4] = [
    "-netdev",
    "tap,id=fixed,ifname=fixed,script=no,downscript=no",
    "-device",
    "virtio-net-pci,netdev=fixed,mac=52:54:00:00:00:03,ctrl_guest_offloads=off",
];

/// What puts a program into a network namespace in which it may make a tap; none if this machine does not let its user.
fn apart() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [
        &["unshare", "--net"],
        &["unshare", "--user", "--map-root-user", "--net"],
    ];
    let mut tun = fs::OpenOptions::new();
    tun.read(true).write(true).open("/dev/net/tun").ok()?;
    WAYS.into_iter().find(|words| {
        let mut tried = Command::new(words[0]);
        tried.args(&words[1..]);
        tried.args(["ip", "tuntap", "add", "dev", "fixed", "mode", "tap"]);
        tried.stdin(Stdio::null()).stderr(Stdio::null());
        tried.status().is_ok_and(|status| status.success())
    })
}

/// Hands over the whole lines after the first `told` bytes; says how many bytes that were.
fn tell(results: &Path, told: usize, each: &mut impl FnMut(&str)) -> usize {
    let text = fs::read(results).unwrap_or_default();
    let fresh = text.get(told..).unwrap_or_default();
    let Some(end) = fresh.iter().rposition(|byte| *byte == b'\n') else {
        return 0;
    };
    for line in String::from_utf8_lossy(&fresh[..end]).lines() {
        each(line);
    }
    end + 1
}

/// A machine that ends with this.
pub(super) struct Running {
    child: Child,
    results: PathBuf,
    told: usize,
}

impl Running {
    /// Whether it has ended; `each` is called with every line of results that is new.
    pub(super) fn ended(&mut self, mut each: impl FnMut(&str)) -> Result<bool> {
        let ended = self.child.try_wait().context("cannot wait for QEMU")?;
        self.told += tell(&self.results, self.told, &mut each);
        Ok(ended.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether KVM is worth a try on this machine: not where it could only be nested without the processor's help.
pub(super) fn kvm_is_likely() -> bool {
    let opens = File::options().read(true).write(true).open("/dev/kvm");
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    opens.is_ok() && has_virtualisation(&flags)
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| {
        line.split_whitespace()
            .any(|flag| flag == "svm" || flag == "vmx")
    })
}

/// A directory for a machine that goes with this.
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Makes it empty.
    pub(super) fn new(path: PathBuf, keep: bool) -> Result<Self> {
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, keep })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

/// Starts the clock of a machine.
pub(super) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let started = Instant::now();
    work().map(|done| (done, started.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_without_the_processors_help_is_not_tried() {
        assert!(has_virtualisation("flags\t\t: fpu vmx sse"));
        assert!(!has_virtualisation("flags\t\t: fpu sse vmxnet\nbugs: svm"));
    }

    #[test]
    fn only_whole_lines_are_told_and_each_once() {
        let path = std::env::temp_dir().join(format!("forebay-tell-{}", std::process::id()));
        let mut heard = Vec::new();
        fs::write(&path, "one\ntw").unwrap();
        let told = tell(&path, 0, &mut |line: &str| heard.push(line.to_owned()));
        fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let more = tell(&path, told, &mut |line: &str| heard.push(line.to_owned()));
        assert_eq!(
            tell(&path, told + more, &mut |_: &str| panic!("told twice")),
            0
        );
        assert_eq!(heard, ["one", "two", "three"]);
        fs::remove_file(&path).unwrap();
    }
}
