//! The suite's report as a page to read, in the same folder.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Deserialize;

/// What the page says and the report does not.
pub(super) struct About<'a> {
    /// `linux 6.18…`, as the machine calls it.
    pub(super) kernel: &'a str,
    pub(super) kubernetes: &'a str,
    pub(super) nodes: u8,
    pub(super) go: &'a str,
    pub(super) seconds: u64,
    /// `3 passed, 0 failed, 7 skipped`.
    pub(super) counts: &'a str,
    /// What was not upstream's own.
    pub(super) note: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    date: String,
    #[serde(rename = "gatewayAPIVersion")]
    version: String,
    #[serde(rename = "gatewayAPIChannel")]
    channel: String,
    implementation: Implementation,
    #[serde(default)]
    profiles: Option<Vec<Profile>>,
    #[serde(default)]
    succeeded_provisional_tests: Vec<String>,
}

#[derive(Deserialize)]
struct Implementation {
    version: String,
}

#[derive(Deserialize)]
struct Profile {
    name: String,
    core: Status,
    extended: Option<Status>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    statistics: Statistics,
    failed_tests: Vec<String>,
    skipped_tests: Vec<String>,
    supported_features: Vec<String>,
    unsupported_features: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Statistics {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// The page for a report.
pub(super) fn page(report: &str, about: &About<'_>) -> Result<String> {
    let mut report: Report =
        serde_saphyr::from_str(report).context("the suite's report is not understood")?;
    let mut profiles = report.profiles.take().unwrap_or_default();
    // The suite writes them in any order.
    profiles.sort_by(|a, b| a.name.cmp(&b.name));
    let mut page = head(&report, about);
    page += &table(&profiles);
    for profile in &profiles {
        page += &features(profile);
    }
    let provisional = list(&report.succeeded_provisional_tests);
    if !provisional.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(page, "\nProvisional tests that passed: {provisional}.\n");
    }
    if let Some(note) = about.note {
        let _ = write!(page, "\n## Not upstream's own\n\n{note}\n");
    }
    Ok(page)
}

fn head(report: &Report, about: &About<'_>) -> String {
    let About {
        kernel,
        kubernetes,
        nodes,
        go,
        seconds,
        counts,
        ..
    } = about;
    let (version, channel) = (&report.version, &report.channel);
    let number = version.trim_start_matches('v');
    format!(
        "# Conformance with Gateway API {number}\n\n\
         Written by `cargo xtask conformance --version {number}`, which runs the official suite on a cluster of its own. The features\n\
         are those that the GatewayClass names in its status. The suite's own report is [gateway-api-{number}.yaml](gateway-api-{number}.yaml).\n\n\
         | | |\n|---|---|\n\
         | Date | {} |\n\
         | Forebay | {} |\n\
         | Gateway API | {version}, {channel} channel |\n\
         | Suite | {version}, built with {go} |\n\
         | Kubernetes | {kubernetes}, {nodes} nodes |\n\
         | Kernel | {kernel} |\n\
         | Duration | {} min {:02} s |\n\
         | All tests of the suite | {counts} |\n",
        report.date,
        report.implementation.version,
        seconds / 60,
        seconds % 60,
    )
}

fn table(profiles: &[Profile]) -> String {
    let mut text =
        "\n| Profile | | Passed | Failed | Skipped |\n|---|---|--:|--:|--:|\n".to_owned();
    for profile in profiles {
        let halves = [
            ("core", Some(&profile.core)),
            ("extended", profile.extended.as_ref()),
        ];
        for (half, status) in halves {
            let Some(Status { statistics: s, .. }) = status else {
                continue;
            };
            let _ = writeln!(
                text,
                "| {} | {half} | {} | {} | {} |",
                profile.name, s.passed, s.failed, s.skipped
            );
        }
    }
    text
}

fn features(profile: &Profile) -> String {
    // Without a single extended test the suite does not tell features.
    let extended = profile.extended.as_ref();
    let both = |of: fn(&Status) -> &Vec<String>| {
        let core = of(&profile.core).iter();
        core.chain(extended.into_iter().flat_map(of))
            .cloned()
            .collect()
    };
    let told = |of: fn(&Status) -> &Vec<String>| extended.map(of).cloned();
    let rows = [
        ("Failed tests", Some(both(|status| &status.failed_tests))),
        ("Skipped tests", Some(both(|status| &status.skipped_tests))),
        (
            "Supported features",
            told(|status| &status.supported_features),
        ),
        (
            "Unsupported features",
            told(|status| &status.unsupported_features),
        ),
    ];
    let mut text = format!("\n## {}\n\n| | | |\n|---|--:|---|\n", profile.name);
    for (name, names) in rows {
        // Writing to a string cannot fail.
        let _ = match names {
            Some(names) => writeln!(text, "| {name} | {} | {} |", names.len(), list(&names)),
            None => writeln!(text, "| {name} | | not told by the suite |"),
        };
    }
    text
}

fn list(names: &[String]) -> String {
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "apiVersion: gateway.networking.k8s.io/v1\ndate: \"2026-11-27T09:00:00Z\"\n\
        gatewayAPIChannel: experimental\ngatewayAPIVersion: v1.7.0\n\
        implementation:\n  contact: [c]\n  organization: forebay\n  project: forebay\n  url: u\n  version: 0.1.0+abc\n\
        kind: ConformanceReport\nmode: default\nprofiles:\n\
        - core:\n    result: success\n    statistics:\n      Failed: 0\n      Passed: 12\n      Skipped: 0\n  \
          name: GATEWAY-HTTP\n  summary: s\n  extended:\n    result: failure\n    failedTests: [X]\n    \
            statistics: {Failed: 1, Passed: 2, Skipped: 0}\n    supportedFeatures: [A, B]\n    \
            unsupportedFeatures: [C]\n\
        - core:\n    result: success\n    statistics: {Failed: 0, Passed: 4, Skipped: 0}\n  name: GATEWAY-GRPC\n  \
          summary: s\nsucceededProvisionalTests: [P]\n";

    fn about(note: Option<&str>) -> About<'_> {
        About {
            kernel: "Linux 6.18.0",
            kubernetes: "1.37.2",
            nodes: 3,
            go: "go1.27.3",
            seconds: 83,
            counts: "18 passed, 1 failed, 70 skipped",
            note,
        }
    }

    #[test]
    fn a_page_says_what_the_report_says() {
        let page = page(REPORT, &about(Some("A module is replaced."))).unwrap();
        for part in [
            "# Conformance with Gateway API 1.7.0\n",
            "| Forebay | 0.1.0+abc |\n",
            "| Suite | v1.7.0, built with go1.27.3 |\n",
            "| Duration | 1 min 23 s |\n",
            "|--:|\n| GATEWAY-GRPC | core | 4 | 0 | 0 |\n| GATEWAY-HTTP | core | 12 | 0 | 0 |\n\
             | GATEWAY-HTTP | extended | 2 | 1 | 0 |\n\n",
            "## GATEWAY-HTTP\n\n| | | |\n|---|--:|---|\n| Failed tests | 1 | X |\n| Skipped tests | 0 |  |\n\
             | Supported features | 2 | A, B |\n| Unsupported features | 1 | C |\n",
            "| Supported features | | not told by the suite |\n",
            "Provisional tests that passed: P.\n",
            "## Not upstream's own\n\nA module is replaced.\n",
        ] {
            assert!(page.contains(part), "{part}\nis not in\n{page}");
        }
    }

    #[test]
    fn a_run_that_came_to_no_test_has_no_profiles() {
        let (head, _) = REPORT.split_once("profiles:").unwrap();
        let page = page(&format!("{head}profiles: null\n"), &about(None)).unwrap();
        assert!(page.ends_with("|--:|\n"), "{page}");
    }
}
