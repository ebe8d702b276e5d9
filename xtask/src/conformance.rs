//! `cargo xtask conformance`: the official suite of Gateway API, unmodified, against Forebay on a cluster of its own.
//!
//! The suite itself decides by the GatewayClass's status what it tests. Its report goes to `docs/conformance` only when
//! all of it ran with its own limits.

mod output;
mod report;
mod run;
mod suite;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use rustix::system::uname;

use crate::{
    cluster::{self, Channel, Interrupt, Name, Running, forebay},
    cmd, paths,
    progress::Steps,
};
use output::Output;
use report::About;
use suite::Suite;

/// Nodes of the cluster.
const NODES: u8 = 3;
/// What a report is about at least: the profiles whose routes are served.
const PROFILES: [&str; 3] = ["GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-UDP"];

/// What to test, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Version of the suite and of Gateway API's definitions.
    #[arg(long, default_value = suite::NUMBERS[0], value_parser = suite::NUMBERS)]
    version: String,
    /// Only this test of the suite; no report.
    #[arg(long, value_name = "NAME")]
    run_test: Option<String>,
    /// Profiles of the suite; no report without the default ones.
    #[arg(long, value_delimiter = ',', default_values = PROFILES)]
    profile: Vec<String>,
    /// Channel of Gateway API's definitions.
    #[arg(long, value_enum, default_value_t = Channel::Experimental)]
    channel: Channel,
    /// Leave docs/conformance as it is.
    #[arg(long)]
    no_report: bool,
    /// Name of the cluster.
    #[arg(long, default_value = "conf")]
    name: Name,
    /// Leave the cluster running at the end.
    #[arg(long)]
    keep: bool,
    /// Wait seconds where the suite waits minutes, to fail early; no report.
    #[arg(long)]
    fast_fail: bool,
}

impl Args {
    /// Whether this is a run that a report may tell of.
    fn is_whole(&self) -> bool {
        self.run_test.is_none()
            && !self.fast_fail
            && !self.no_report
            && PROFILES
                .iter()
                .all(|wanted| self.profile.iter().any(|profile| profile == wanted))
    }

    /// What the command leaves of every run.
    fn folder(&self) -> PathBuf {
        paths::target().join("conformance").join(&self.version)
    }
}

/// `cargo xtask conformance`.
pub(crate) fn run(args: &Args) -> Result<()> {
    cluster::root()?;
    if args.channel == Channel::None {
        bail!("the suite needs Gateway API's definitions: --channel experimental or standard");
    }
    let steps = Steps::new();
    let interrupt = Interrupt::listen()?;
    // What is tested is what was there at the beginning.
    let version = version()?;
    let image = forebay::image()?;
    let suite = Suite::new(&args.version)?;
    steps.run("suite", |step| suite.provide(step, &interrupt))?;
    let wanted = cluster::Wanted {
        name: &args.name,
        nodes: NODES,
        channel: args.channel,
        gateway_api: &args.version,
    };
    let running = Running::start(&steps, &interrupt, &wanted)?;
    let result = on_cluster(args, &suite, &running, &image, &version);
    if args.keep {
        println!(
            "the cluster {} is left running: `cargo xtask cluster status`",
            args.name
        );
        running.keep();
    }
    result
}

fn on_cluster(
    args: &Args,
    suite: &Suite,
    running: &Running<'_>,
    image: &Path,
    version: &str,
) -> Result<()> {
    let folder = args.folder();
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    running.steps.run("images", |_| {
        running.load(&suite.images())?;
        Ok("of the suite, on every node".to_owned())
    })?;
    let ran =
        forebay::install(running, image).and_then(|()| run::run(args, suite, running, version));
    // The cluster goes, and with it what could tell why.
    let kept = forebay::keep_logs(running, &folder);
    let ran = ran.with_context(|| format!("see {}", folder.display()))?;
    kept?;
    println!("{}", ran.output.counts());
    if args.is_whole() && ran.output.ended.is_some() && !ran.output.passed.is_empty() {
        publish(args, suite, &ran)?;
    }
    judge(&ran.output, &folder.display().to_string())
}

/// Copies the report to where reports are kept, and writes the page beside it.
fn publish(args: &Args, suite: &Suite, ran: &run::Ran) -> Result<()> {
    let report = fs::read_to_string(&ran.report)
        .with_context(|| format!("cannot read {}", ran.report.display()))?;
    let system = uname();
    let page = report::page(
        &report,
        &About {
            kernel: &format!(
                "{} {}",
                system.sysname().to_string_lossy(),
                system.release().to_string_lossy()
            ),
            kubernetes: cluster::KUBERNETES,
            nodes: NODES,
            go: &suite.go()?,
            seconds: ran.took.as_secs(),
            counts: &ran.output.counts(),
            note: suite.note().as_deref(),
        },
    )?;
    let folder = paths::root().join("docs/conformance");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (end, text) in [("yaml", report), ("md", page)] {
        let path = folder.join(format!("gateway-api-{}.{end}", args.version));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Says what failed, and fails then.
fn judge(output: &Output, folder: &str) -> Result<()> {
    for test in output
        .failed
        .iter()
        .map(String::as_str)
        .chain(output.unfinished())
    {
        println!("\nFAIL  {test}");
        output.tail(test).for_each(|line| println!("      {line}"));
    }
    match output.ended {
        Some(true) if output.passed.is_empty() => bail!("no test ran; see {folder}"),
        Some(true) => Ok(()),
        Some(false) if !output.failed.is_empty() => {
            bail!("{} tests failed; see {folder}", output.failed.len())
        }
        ended => {
            println!("\nFAIL  the suite");
            output.tail("").for_each(|line| println!("      {line}"));
            let how = if ended.is_some() {
                "failed"
            } else {
                "did not come to its end"
            };
            bail!("the suite {how}; see {folder}")
        }
    }
}

/// `0.1.0+COMMIT`, and whether the tree is the commit's.
fn version() -> Result<String> {
    let git = |words: &[&str]| {
        let mut git = Command::new("git");
        // The checkout may be another user's than root's.
        git.args(["-c", "safe.directory=*", "-C"]);
        cmd::output(git.arg(paths::root()).args(words))
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--", ".", ":!docs/conformance"])?;
    let more = if changed.is_empty() { "" } else { ".modified" };
    Ok(format!("{}+{commit}{more}", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &str) -> Args {
        let words = ["conformance"].into_iter().chain(words.split_whitespace());
        Command::try_parse_from(words).ok().unwrap().args
    }

    #[test]
    fn only_whole_runs_are_reported() {
        assert!(args("").is_whole());
        assert!(
            args("--version 1.6.3 --profile GATEWAY-TLS,GATEWAY-UDP,GATEWAY-GRPC,GATEWAY-HTTP")
                .is_whole()
        );
        for words in [
            "--run-test A",
            "--fast-fail",
            "--no-report",
            "--profile GATEWAY-GRPC",
        ] {
            assert!(!args(words).is_whole(), "{words}");
        }
    }

    #[test]
    fn what_did_not_run_has_not_passed() {
        let judged = |text: &str| {
            let mut output = Output::default();
            output.feed(text);
            judge(&output, "F").map_err(|error| error.to_string())
        };
        let pass = "--- PASS: T/A (0.1s)\n";
        let ended = "--- PASS: T (0.1s)\n";
        assert_eq!(judged(&format!("{pass}{ended}")), Ok(()));
        assert_eq!(judged(ended).unwrap_err(), "no test ran; see F");
        let failed = "--- FAIL: T/B (0.1s)\n--- FAIL: T (0.1s)\n";
        assert_eq!(judged(failed).unwrap_err(), "1 tests failed; see F");
        let setup = "--- FAIL: T (0.1s)\n";
        assert_eq!(judged(setup).unwrap_err(), "the suite failed; see F");
        let panic = "the suite did not come to its end; see F";
        assert_eq!(judged(pass).unwrap_err(), panic);
    }
}
