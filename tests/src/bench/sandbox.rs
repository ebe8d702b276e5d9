//! Runs a benchmark inside namespaces of its own, so that ports and addresses never collide and nothing is left.
//!
//! The program starts itself again below `unshare`: network, mounts and, where peers are started, processes. The kernel removes
//! all of it with the last process, also after SIGKILL. It makes nothing outside except an empty mount point below the output directory.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

/// The hidden flag that tells the second start that it is inside, and what the network outside is called.
const INSIDE: &str = "--inside";

/// Becomes this program once more, inside new namespaces. With `processes`, everything that it starts dies with it.
///
/// Nobody waits outside, so a SIGKILL of the process that was started ends the run too.
pub(crate) fn enter(processes: bool) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the benchmarks make network namespaces: run them as root"
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private"]);
    if processes {
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    }
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let arguments = std::env::args_os().skip(1);
    command
        .arg(program)
        .args(arguments)
        .arg(INSIDE)
        .arg(network()?);
    Err(command.exec()).context("cannot run `unshare`: install util-linux")
}

/// Inside: ends the run on Ctrl-C, brings loopback up and gives a directory in memory for logs and configurations.
///
/// `outside` is the network namespace of the first start: a run that still is in it would change the machine's own network.
pub(crate) fn settle(out: &Path, outside: &str) -> Result<PathBuf> {
    ensure!(
        network()? != outside,
        "{INSIDE} is set by the program itself: leave it out"
    );
    end_on_signal()?;
    let work = out.join("work");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let work = work.canonicalize()?;
    mount("tmpfs", &work, "tmpfs", MountFlags::NOSUID, c"size=2g")
        .context("cannot mount a tmpfs for the run")?;
    ip("link set lo up")?;
    Ok(work)
}

/// The kernel's name of this thread's network namespace.
fn network() -> Result<String> {
    let link =
        fs::read_link("/proc/thread-self/ns/net").context("cannot read the network namespace")?;
    Ok(link.to_string_lossy().into_owned())
}

/// The first process of a namespace ignores signals that it has no handler for, so Ctrl-C needs one.
fn end_on_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let (Ok(mut int), Ok(mut term)) = (
                    signal(SignalKind::interrupt()),
                    signal(SignalKind::terminate()),
                ) else {
                    return;
                };
                tokio::select! { _ = int.recv() => {} _ = term.recv() => {} }
                eprintln!("forebay-bench: ended by a signal");
                std::process::exit(130);
            });
        })?;
    Ok(())
}

/// Runs `ip` with words split at spaces.
pub(crate) fn ip(words: &str) -> Result<()> {
    run("ip", &words.split(' ').collect::<Vec<_>>())
}

/// Runs a tool; what it printed is in the error.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot run `{program}`: install it"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.success(),
        "`{program} {}` failed: {}",
        args.join(" "),
        said.trim()
    );
    Ok(())
}
