//! One run of the suite in the hub of a cluster.

use std::{
    fs::File,
    io::Read,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Args, output::Output, suite::Suite};
use crate::{
    cluster::{Running, forebay, until},
    progress::Step,
};

/// Longest run, longer than that of an implementation that fails everywhere.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);
/// Tests that run at the same time.
const PARALLEL: u8 = 8;
/// Seconds that suffice here for what succeeds. The suite takes whole numbers only. A request has a part of the time to
/// consistency: a datagram that comes before its endpoint is lost, and only a later one tells that all is well.
const FAST: [(&str, u32); 19] = [
    ("DefaultTestTimeout", 15),
    ("GWCMustBeAccepted", 15),
    ("GatewayListenersMustHaveConditions", 10),
    ("GatewayMustHaveAddress", 15),
    ("GatewayMustHaveCondition", 15),
    ("GatewayStatusMustHaveListeners", 10),
    ("HTTPRouteMustHaveCondition", 10),
    ("HTTPRouteMustNotHaveParents", 10),
    ("LatestObservedGenerationSet", 10),
    ("ListenerSetListenersMustHaveConditions", 10),
    ("ListenerSetMustHaveCondition", 15),
    ("MaxTimeToConsistency", 10),
    ("NamespacesMustBeReady", 60),
    ("RequestTimeout", 3),
    ("RouteMustHaveParents", 10),
    ("TCPRouteMustHaveCondition", 10),
    ("TLSRouteMustHaveCondition", 10),
    ("UDPRouteMustHaveCondition", 10),
    ("DeleteTimeout", 30),
];

/// What came of it.
pub(super) struct Ran {
    pub(super) output: Output,
    /// The suite's own report.
    pub(super) report: PathBuf,
    pub(super) took: Duration,
}

/// Runs it to its end, however that is; an interrupt ends it.
pub(super) fn run(args: &Args, suite: &Suite, running: &Running<'_>, version: &str) -> Result<Ran> {
    let folder = args.folder();
    let report = folder.join("report.yaml");
    let log = folder.join("suite.log");
    let started = Instant::now();
    let mut output = Output::default();
    running.steps.run("run", |step| {
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let both = file.try_clone().context("cannot share the suite's log")?;
        let mut child = running
            .client()
            .arg(suite.program())
            .args(words(args, version))
            .arg(format!("-report-output={}", report.display()))
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(both)
            .spawn()
            .context("cannot run setpriv")?;
        let mut said =
            File::open(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let ended = until(running.interrupt, "the suite", PATIENCE, || {
            // Asked before reading, so that nothing is missed of one that has ended.
            let status = child.try_wait().context("cannot wait for the suite")?;
            listen(&mut said, &mut output, step)?;
            Ok(status)
        });
        if ended.is_err() {
            child.kill().ok();
            child.wait().context("cannot wait for the suite")?;
        }
        ended?;
        Ok(output.counts())
    })?;
    ensure!(
        !output.is_silent(),
        "the suite said nothing about tests; see {}",
        log.display()
    );
    Ok(Ran {
        output,
        report,
        took: started.elapsed(),
    })
}

fn listen(said: &mut File, output: &mut Output, step: &Step) -> Result<()> {
    let mut new = Vec::new();
    said.read_to_end(&mut new)
        .context("cannot read what the suite says")?;
    if !new.is_empty() {
        output.feed(&String::from_utf8_lossy(&new));
        step.say(&output.counts());
    }
    Ok(())
}

fn words(args: &Args, version: &str) -> Vec<String> {
    let mut words = vec![
        // The package has tests of its own, too.
        "-test.run=^TestConformance$".to_owned(),
        "-test.v=test2json".to_owned(),
        format!("-test.parallel={PARALLEL}"),
        // Bounded here.
        "-test.timeout=0".to_owned(),
        format!("-gateway-class={}", forebay::CLASS),
        format!("-conformance-profiles={}", args.profile.join(",")),
        "-organization=forebay".to_owned(),
        "-project=forebay".to_owned(),
        "-url=https://github.com/forebay/forebay".to_owned(),
        format!("-version={version}"),
        "-contact=https://github.com/forebay/forebay/issues".to_owned(),
        format!("-usable-address={}", forebay::USABLE),
        format!("-unusable-address={}", forebay::UNUSABLE),
    ];
    words.extend(args.run_test.iter().map(|name| format!("-run-test={name}")));
    if args.fast_fail {
        let all = FAST.map(|(name, seconds)| format!("{name}:{seconds}"));
        words.push(format!("-timeout-config-overrides={}", all.join(";")));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_lost_leaves_time_for_others() {
        let seconds = |wanted: &str| {
            let found = FAST.iter().find(|(name, _)| *name == wanted);
            found.expect("a limit of that name").1
        };
        assert!(seconds("RequestTimeout") * 3 <= seconds("MaxTimeToConsistency"));
    }
}
