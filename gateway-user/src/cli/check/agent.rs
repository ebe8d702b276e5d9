//! What a process beside the agent need not have itself.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{FILE_SYSTEM, Finding, RIGHTS};

/// Where an agent is looked for if none is named.
const USUAL: &str = "/run/forebay/agent.sock";

/// The agent that holds the privileges here, if there is one: the one that is named, or one that answers at the usual place.
pub(super) fn here(named: Option<&Path>) -> Option<PathBuf> {
    let usual = || UnixStream::connect(USUAL).is_ok().then(|| USUAL.into());
    named.map(Path::to_owned).or_else(usual)
}

/// What is missing here is well if the agent has it. One that is named and does not answer is not.
pub(super) fn take_over(agent: &Path, findings: &mut Vec<Finding>) {
    let mine = |finding: &&mut Finding| {
        !finding.ok && [RIGHTS, FILE_SYSTEM].contains(&finding.check.as_str())
    };
    for finding in findings.iter_mut().filter(mine) {
        finding.ok = true;
        finding.found += "; held by the agent";
        finding.remedy = None;
    }
    let at = agent.display();
    findings.push(match UnixStream::connect(agent) {
        Ok(_) => Finding::good("agent", format!("answers at {at}")),
        Err(error) => Finding::bad(
            "agent",
            format!("does not answer at {at}: {error}"),
            "start `forebay agent`, or name its socket with --agent",
        ),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_held_by_the_agent_if_it_answers() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let missing = || {
            vec![
                Finding::good("kernel", "6.1"),
                Finding::bad(RIGHTS, "missing CAP_BPF", "grant it"),
                Finding::bad("interface eth0", "down", "up"),
            ]
        };
        let mut findings = missing();
        take_over(&socket, &mut findings);
        let last = findings.pop().unwrap();
        assert!(
            !last.ok && last.found.starts_with("does not answer at "),
            "{last:?}"
        );
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut findings = missing();
        take_over(&socket, &mut findings);
        let well: Vec<bool> = findings.iter().map(|finding| finding.ok).collect();
        assert_eq!(well, [true, true, false, true]);
        assert_eq!(findings[1].found, "missing CAP_BPF; held by the agent");
        drop(listener);
    }
}
