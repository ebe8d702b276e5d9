//! Manifests and command lines with mistakes in them, made at random from good ones: each is refused or read, and what is
//! read goes through everything that is computed from it without a panic.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use gateway_user::allocate::{Allocations, allocate};
use gateway_user::args::{Cli, one_sentence};
use gateway_user::file::merge::Files;
use gateway_user::file::read::{Content, Listing};
use gateway_user::l4::tables::{Planner, Settings};
use gateway_user::l7::outlier::{Counters, Detector, Outlier};
use gateway_user::snapshot::Snapshot;
use gateway_user::status::merge;
use gateway_user::translate::{Context, translate};
use proptest::collection::vec;
use proptest::prelude::*;

/// What is written into a manifest.
const PIECES: [&str; 34] = [
    "0",
    "-1",
    "1",
    "65536",
    "4294967296",
    "18446744073709551615",
    "1e308",
    ".nan",
    "null",
    "~",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[]]",
    "5000000000000000h",
    "1ms",
    "0s",
    "0.0.0.0",
    "::",
    "255.255.255.255",
    "0.0.0.0/0",
    "::/0",
    "*",
    "*.",
    "a.b",
    "/",
    "&a",
    "*a",
    "\n---\n",
    "\n  ",
    ":",
    "- ",
    "\u{0}é\u{10ffff}",
];

/// One mistake: where, as a share of the text, how long, and what is there instead.
#[derive(Clone, Debug)]
enum Edit {
    /// Some bytes are gone.
    Cut(f64, usize),
    /// A piece stands there.
    Put(f64, usize),
    /// A value is another one.
    Value(f64, usize),
    /// A line stands there twice, or elsewhere.
    Line(f64, f64),
}

impl Edit {
    fn of(&self, text: &mut String) {
        let at = |text: &str, share: f64| {
            let mut at = (share * text.len() as f64) as usize;
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        match *self {
            Self::Cut(share, length) => {
                let from = at(text, share);
                let mut to = (from + length).min(text.len());
                while !text.is_char_boundary(to) {
                    to += 1;
                }
                text.replace_range(from..to, "");
            }
            Self::Put(share, piece) => {
                let from = at(text, share);
                text.insert_str(from, PIECES[piece % PIECES.len()]);
            }
            Self::Value(share, piece) => {
                let from = at(text, share);
                let Some(colon) = text[from..].find(": ").map(|colon| from + colon + 2) else {
                    return;
                };
                let end = text[colon..]
                    .find('\n')
                    .map_or(text.len(), |end| colon + end);
                text.replace_range(colon..end, PIECES[piece % PIECES.len()]);
            }
            Self::Line(share, to) => {
                let from = text[..at(text, share)]
                    .rfind('\n')
                    .map_or(0, |from| from + 1);
                let end = text[from..]
                    .find('\n')
                    .map_or(text.len(), |end| from + end + 1);
                let line = text[from..end].to_owned();
                let to = at(text, to);
                text.insert_str(text[..to].rfind('\n').map_or(0, |to| to + 1), &line);
            }
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let share = || 0.0..1.0;
    let edit = prop_oneof![
        1 => (share(), 1usize..40).prop_map(|(at, length)| Edit::Cut(at, length)),
        1 => (share(), any::<usize>()).prop_map(|(at, piece)| Edit::Put(at, piece)),
        4 => (share(), any::<usize>()).prop_map(|(at, piece)| Edit::Value(at, piece)),
        2 => (share(), share()).prop_map(|(from, to)| Edit::Line(from, to)),
    ];
    vec(edit, 1..5)
}

/// All manifests of the examples and of the golden pairs, by path.
fn manifests() -> Vec<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    for folder in [
        "../examples/quickstart",
        "../examples/dns",
        "../examples/filters",
        "tests/golden",
    ] {
        for entry in std::fs::read_dir(here.join(folder)).expect("the folder exists") {
            let path = entry.expect("an entry").path();
            let name = path.to_string_lossy();
            if name.ends_with(".yaml") && !name.ends_with(".out.yaml") {
                texts.push(std::fs::read_to_string(&path).expect("it can be read"));
            }
        }
    }
    texts.sort();
    texts
}

/// Objects of one directory through all that is computed from them.
fn compute(files: &mut Files, text: String) -> Snapshot {
    files.update(Listing {
        files: BTreeMap::from([("a.yaml".to_owned(), Content::Text(text))]),
        ..Listing::default()
    });
    let merged = files.merged();
    let mut last = Snapshot::default();
    for on_cluster in [true, false] {
        let allocations = allocate(&merged.inputs, on_cluster, &Allocations::default());
        let context = Context {
            on_cluster,
            allocations: &allocations,
            zone: None,
        };
        let translation = translate(&merged.inputs, &context);
        std::hint::black_box(merge(&translation, &[]));
        last = translation.snapshot;
    }
    for problem in merged.problems.iter().chain(&merged.ignored) {
        assert!(!problem.to_string().contains('\n'), "{problem}");
    }
    last
}

/// The kernel's tables, now and later.
fn tables(snapshot: &Snapshot) {
    let settings = Settings {
        hash_key: [1, 2],
        encapsulate_always: false,
        tunnel_port: 17_410,
        probe_port: 17_411,
        probe_keys: [[3, 4], [0, 0]],
        ticks_per_second: 250,
        drain_timeout: Duration::from_secs(60),
    };
    let own = IpAddr::from([192, 0, 2, 11]);
    let mut planner = Planner::new(settings, "node1", own);
    planner.groups(snapshot);
    planner.on_snapshot(snapshot, Duration::ZERO);
    planner.desired();
    planner.on_snapshot(&Snapshot::default(), Duration::from_secs(1));
    planner.handle_timeout(Duration::from_secs(100));
    planner.desired();
}

/// The endpoints' health, over some sweeps.
fn health(snapshot: &Snapshot) {
    let (key, counters) = ("endpoint", Counters::default());
    for cluster in &snapshot.clusters {
        let mut now = Instant::now();
        let mut outliers = Outlier::new();
        outliers.configure(now, cluster.policy.outlier.as_ref(), [key]);
        for _ in 0..3 {
            outliers.on_detection(now, &key, Detector::Consecutive5xx, &counters);
            std::hint::black_box(outliers.ejected_until(&key));
            now = outliers.poll_timeout().unwrap_or(now);
            outliers.handle_timeout(now, |_| Some(&counters));
        }
    }
}

#[test]
fn mistakes_in_manifests_end_in_problems_or_conditions() {
    let manifests = manifests();
    assert!(manifests.len() > 30, "only {} manifests", manifests.len());
    let cases = std::env::var("FOREBAY_MUTATIONS").map_or(200, |n| n.parse().expect("a number"));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    });
    let strategy = (prop::sample::select(manifests), edits());
    let done = runner.run(&strategy, |(good, edits)| {
        let mut bad = good.clone();
        edits.iter().for_each(|edit| edit.of(&mut bad));
        let mut files = Files::default();
        compute(&mut files, good);
        let snapshot = compute(&mut files, bad);
        tables(&snapshot);
        health(&snapshot);
        Ok(())
    });
    done.expect("no mistake breaks anything");
}

/// Words of command lines, some of which make sense together.
const WORDS: [&str; 44] = [
    "run",
    "agent",
    "status",
    "validate",
    "explain",
    "routes",
    "endpoints",
    "check",
    "dump",
    "bpf",
    "drain",
    "detach",
    "vips",
    "rows",
    "nodes",
    "counters",
    "trace",
    "--config",
    "--kubernetes",
    "--node-name",
    "--interface",
    "--datapath",
    "--drain-timeout",
    "--workers",
    "--admin",
    "--metrics",
    "--output",
    "json",
    "--vips",
    "--tunnel-port",
    "0",
    "-1",
    "65536",
    "18446744073709551616",
    "1h",
    "99999999999999999999s",
    "4294967295h4294967295h",
    "off",
    "unix:",
    "0.0.0.0:0",
    "::/0",
    "\u{0}é",
    "",
    "--",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3_000) })]

    #[test]
    fn mistakes_on_the_command_line_end_in_one_sentence(
        words in vec((prop::sample::select(&WORDS[..]), prop::option::of(prop::sample::select(&WORDS[..]))), 0..7),
    ) {
        let words: Vec<String> = std::iter::once("forebay".to_owned())
            .chain(words.into_iter().map(|(word, value)| match value {
                Some(value) if word.starts_with("--") => format!("{word}={value}"),
                _ => word.to_owned(),
            }))
            .collect();
        if let Err(error) = Cli::try_parse_from(&words)
            && error.use_stderr()
        {
            let said = one_sentence(&error, &words, |_| None);
            prop_assert!(!said.is_empty() && !said.contains('\n'), "{words:?}: {said:?}");
        }
    }
}
