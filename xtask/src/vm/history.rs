//! The chart of all counts that were recorded, from the history of the file that holds them.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, Result};

use super::{
    chart::{self, Panel, Point},
    counts::{self, Recorded},
};
use crate::{cmd, paths};

/// The picture, below the checkout.
const CHART: &str = "docs/benchmarks/instructions.svg";
/// Records that it shows at most: the last ones.
const MOST: usize = 40;

/// The paths that are shown: the way of most packets, and what costs most.
const PATHS: [&str; 8] = [
    "not a VIP: TCP",
    "ACK, own row, 10k flows",
    "ACK to another node, MAC rewrite, 10k flows",
    "ACK to another node, UDP, 10k flows",
    "IPv6 ACK to another node, UDP over IPv6, 10k flows",
    "ACK out of the tunnel, own row, 10k flows",
    "second chance, hit among 10k sockets",
    "SYN flood, 1M sources, own row, answered by cookies",
];

/// One record: what the axis calls it, and its counts.
type Version = (String, Recorded);

/// Draws the chart of the records that are committed and of the file as it is now.
pub(super) fn draw() -> Result<String> {
    let versions = versions()?;
    let path = paths::root().join(CHART);
    fs::write(&path, chart::render(&panels(&versions, &PATHS)))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!("{CHART}, {} records", versions.len()))
}

fn versions() -> Result<Vec<Version>> {
    let git =
        |words: &[&str]| cmd::output(Command::new("git").args(words).current_dir(paths::root()));
    let log = git(&["log", "--reverse", "--format=%h %cs", "--", counts::FILE])?;
    let mut versions: Vec<Version> = Vec::new();
    for line in log.lines() {
        let Some((commit, date)) = line.split_once(' ') else {
            continue;
        };
        // A commit that removed the file is no record, nor is one whose form has since changed.
        let text = git(&["show", &format!("{commit}:{}", counts::FILE)]);
        if let Some(recorded) = text
            .ok()
            .and_then(|text| counts::parse(text.as_bytes()).ok())
        {
            versions.push((date.to_owned(), recorded));
        }
    }
    let now = counts::read()?;
    if versions.last().is_none_or(|(_, last)| *last != now) {
        let date = cmd::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
        versions.push((date, now));
    }
    let first = versions.len().saturating_sub(MOST);
    Ok(versions.split_off(first))
}

/// A panel for each path that was ever counted, with a line for each kernel.
fn panels(versions: &[Version], paths: &[&str]) -> Vec<Panel> {
    let panel = |path: &&str| {
        let mut lines: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
        for (at, (date, recorded)) in versions.iter().enumerate() {
            for (kernel, counts) in recorded {
                if let Some(count) = counts.instructions.get(*path) {
                    let point = Point {
                        at,
                        date: date.clone(),
                        count: *count,
                    };
                    lines.entry(kernel).or_default().push(point);
                }
            }
        }
        let lines = lines.into_iter();
        Panel {
            title: (*path).to_owned(),
            lines: lines
                .map(|(name, points)| (name.to_owned(), points))
                .collect(),
        }
    };
    let panels = paths.iter().map(panel);
    panels.filter(|panel| !panel.lines.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::counts::Counts;

    fn recorded(kernels: &[(&str, u64)]) -> Recorded {
        let counts = |count: u64| Counts {
            release: String::new(),
            object: String::new(),
            instructions: [("own".to_owned(), count)].into(),
        };
        let kernels = kernels.iter();
        kernels
            .map(|(id, count)| ((*id).to_owned(), counts(*count)))
            .collect()
    }

    #[test]
    fn each_kernel_has_its_line_and_paths_that_were_never_counted_have_none() {
        let versions = [
            ("2026-01-01".to_owned(), recorded(&[("6.1", 100)])),
            (
                "2026-01-02".to_owned(),
                recorded(&[("6.1", 90), ("6.12", 95)]),
            ),
        ];
        let panels = panels(&versions, &["own", "other"]);
        assert_eq!(panels.len(), 1);
        let lines: Vec<(&str, Vec<(usize, u64)>)> = panels[0]
            .lines
            .iter()
            .map(|(name, points)| {
                let points = points.iter().map(|point| (point.at, point.count));
                (name.as_str(), points.collect())
            })
            .collect();
        assert_eq!(
            lines,
            [("6.1", vec![(0, 100), (1, 90)]), ("6.12", vec![(1, 95)])]
        );
    }
}
