//! The ledger of a run: what it made outside its own memory, written down before it is made.
//!
//! The run that ends (also by an error or Ctrl-C) removes what its ledger names. A run that was killed leaves
//! its ledger behind and the next run removes it all. A process is named by its id and start time, so that a
//! recycled id is never killed; ledgers of runs that still live are never touched.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{eventually::eventually, netns};

/// Where ledgers lie.
const LEDGERS: &str = "/run/forebay-demo";

/// Every run's name begins so; names of namespaces and pins begin with the run's name.
pub const PREFIX: &str = "forebay-";

/// A process that cannot be mistaken for a later one with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// Clock ticks from the machine's start to the process's.
    started: u64,
}

impl Process {
    /// The process that has this id now.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the 20th field after it is the start time.
        let fields = stat.rsplit_once(')')?.1;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, started })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Kills it and waits until it is gone.
    fn kill(self) -> Result<()> {
        if !self.lives() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid).context("process id 0")?;
        kill_process(pid, Signal::KILL)
            .with_context(|| format!("cannot kill process {}", self.pid))?;
        eventually(
            &format!("the end of process {}", self.pid),
            Duration::from_secs(5),
            || {
                if self.lives() {
                    Err(anyhow!("it still runs"))
                } else {
                    Ok(())
                }
            },
        )
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Entries {
    owner: Process,
    namespaces: BTreeSet<String>,
    directories: BTreeSet<PathBuf>,
    processes: BTreeSet<Process>,
}

/// What this run made; shared with the thread that waits for Ctrl-C. The last holder cleans up.
#[derive(Clone, Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    run: String,
    file: PathBuf,
    entries: Mutex<Entries>,
    /// A signal came: its thread cleans up and ends the program.
    interrupted: AtomicBool,
}

impl Ledger {
    /// Removes what dead runs left, then opens the ledger of a new run.
    ///
    /// # Errors
    /// If `/run/forebay-demo` cannot be written, or something of a dead run cannot be removed.
    pub fn open() -> Result<Self> {
        fs::create_dir_all(LEDGERS)
            .with_context(|| format!("cannot create {LEDGERS}: are you root?"))?;
        sweep()?;
        let pid = getpid().as_raw_nonzero().get();
        let owner = Process::of(pid).context("cannot read this process's start time from /proc")?;
        Self::create(owner)
    }

    fn create(owner: Process) -> Result<Self> {
        let free = |number: &u32| !ledger_file(&run_name(owner, *number)).exists();
        let run = run_name(owner, (0..).find(free).context("no free run name")?);
        let entries = Entries {
            owner,
            namespaces: BTreeSet::new(),
            directories: BTreeSet::new(),
            processes: BTreeSet::new(),
        };
        let shared = Shared {
            file: ledger_file(&run),
            run,
            entries: Mutex::new(entries),
            interrupted: AtomicBool::new(false),
        };
        shared.write(&shared.lock())?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The run's name, unique among runs on this machine.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.shared.run
    }

    /// Notes a namespace that is about to be made.
    ///
    /// # Errors
    /// If the ledger cannot be written.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.note(|entries| entries.namespaces.insert(name.to_owned()))
    }

    /// Notes a directory (pins, state, configuration) that is about to be made.
    ///
    /// # Errors
    /// If the ledger cannot be written.
    pub fn directory(&self, path: &Path) -> Result<()> {
        self.note(|entries| entries.directories.insert(path.to_path_buf()))
    }

    /// Notes a process that was just started.
    ///
    /// # Errors
    /// If the ledger cannot be written.
    pub fn process(&self, pid: u32) -> Result<()> {
        let pid = i32::try_from(pid).context("process id out of range")?;
        let Some(process) = Process::of(pid) else {
            return Ok(());
        };
        self.note(|entries| entries.processes.insert(process))
    }

    /// Removes everything that the run made, and the ledger; a second call does nothing.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is removed nevertheless and the ledger stays.
    pub fn clean(&self) -> Result<()> {
        self.shared.clean()
    }

    /// Cleans up at the end of the program; does not return if a signal is what ended it.
    ///
    /// # Errors
    /// As [`Self::clean`].
    pub fn end(&self) -> Result<()> {
        while self.shared.interrupted.load(Ordering::SeqCst) {
            thread::park();
        }
        self.clean()
    }

    /// Ctrl-C, SIGTERM and a closed terminal clean up and end the program.
    ///
    /// # Errors
    /// If the thread that waits for them cannot be started.
    pub fn clean_on_signals(&self) -> Result<()> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // Weak: an orderly end of the run does not wait for a signal.
        let shared = Arc::downgrade(&self.shared);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let code = runtime.block_on(first_signal()).unwrap_or_else(|error| {
                    eprintln!("cannot listen for signals: {error}");
                    1
                });
                eprintln!("\nCleaning up");
                if let Some(Err(error)) = shared.upgrade().map(|shared| shared.clean()) {
                    eprintln!("error: {error:#}");
                }
                std::process::exit(code);
            })?;
        Ok(())
    }

    fn note(&self, add: impl FnOnce(&mut Entries) -> bool) -> Result<()> {
        let mut entries = self.shared.lock();
        add(&mut entries);
        self.shared.write(&entries)
    }
}

impl Shared {
    fn clean(&self) -> Result<()> {
        let entries = self.lock();
        if !self.file.exists() {
            return Ok(());
        }
        remove_all(&entries)?;
        fs::remove_file(&self.file)
            .with_context(|| format!("cannot remove {}", self.file.display()))
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        let text =
            serde_json::to_string_pretty(entries).context("cannot write the ledger as JSON")?;
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &self.file)
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // The entries are whole after each note, so a panic elsewhere does not make them wrong.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The exit code that the first signal asks for.
async fn first_signal() -> io::Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => Ok(130),
        _ = terminate.recv() => Ok(143),
        _ = hangup.recv() => Ok(129),
    }
}

fn run_name(owner: Process, number: u32) -> String {
    let pid = owner.pid;
    if number == 0 {
        format!("{PREFIX}{pid}")
    } else {
        format!("{PREFIX}{pid}-{number}")
    }
}

fn ledger_file(run: &str) -> PathBuf {
    Path::new(LEDGERS).join(format!("{run}.json"))
}

/// Removes what runs left whose process is gone; returns their names.
///
/// # Errors
/// If something cannot be removed or a ledger cannot be read.
pub fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    let Ok(ledgers) = fs::read_dir(LEDGERS) else {
        return Ok(swept);
    };
    for file in ledgers.flatten().map(|entry| entry.path()) {
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let entries: Entries = serde_json::from_str(&text)
            .with_context(|| format!("{} is no ledger: remove it by hand", file.display()))?;
        if entries.owner.lives() {
            continue;
        }
        remove_all(&entries).with_context(|| format!("cleaning up after {}", file.display()))?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        swept.push(
            file.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
    }
    Ok(swept)
}

fn remove_all(entries: &Entries) -> Result<()> {
    let mut failed = Vec::new();
    let mut note = |result: Result<()>| failed.extend(result.err());
    for process in &entries.processes {
        note(process.kill());
    }
    for path in &entries.directories {
        note(remove_directory(path));
    }
    for name in &entries.namespaces {
        if Path::new("/run/netns").join(name).exists() {
            note(netns::ip(&format!("netns delete {name}")).map(drop));
        }
    }
    match failed.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// Removes a directory that lies where a run may have made it.
fn remove_directory(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with(PREFIX) {
        bail!(
            "{} is not a directory of a run: its name does not begin with {PREFIX}",
            path.display()
        );
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// What exists on the machine of the kind that runs make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Names of network namespaces.
    pub namespaces: BTreeSet<String>,
    /// Links in the namespace of the calling thread.
    pub links: BTreeSet<String>,
    /// Entries of the BPF file system.
    pub pins: BTreeSet<String>,
    /// Processes of Forebay and of the demo.
    pub processes: BTreeSet<Process>,
    /// Ledgers.
    pub ledgers: BTreeSet<String>,
}

/// Takes stock.
#[must_use]
pub fn inventory() -> Inventory {
    let ours = |name: &String| name.starts_with(PREFIX);
    Inventory {
        namespaces: names("/run/netns").into_iter().filter(ours).collect(),
        links: names("/sys/class/net"),
        pins: names("/sys/fs/bpf").into_iter().filter(ours).collect(),
        processes: names("/proc")
            .iter()
            .filter_map(|pid| forebay_process(pid))
            .collect(),
        ledgers: names(LEDGERS),
    }
}

fn names(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn forebay_process(pid: &str) -> Option<Process> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = program.file_name()?.to_string_lossy().into_owned();
    if matches!(name.as_str(), "forebay" | "forebay-demo") {
        Process::of(pid.parse().ok()?)
    } else {
        None
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("clean-up: {error:#}");
        }
    }
}
