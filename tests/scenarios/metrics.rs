//! What `/metrics` shows of the quick start on the real datapath: every closed reason, and few series. And what an idle daemon
//! keeps in memory.

use std::collections::BTreeMap;
use std::process::Command;

use gateway_common::abi::Counter;
use gateway_tests::{
    demo::curls::curls,
    leftovers::Ledger,
    rig::{Options, Rig},
};
use gateway_user::proxy::scan::Reason;

/// Samples by name and labels.
fn scrape(rig: &Rig) -> BTreeMap<String, f64> {
    let netns = &rig.daemons[0].site().netns;
    let mut curl = Command::new("curl");
    curl.args(["-sf", "http://127.0.0.1:15020/metrics"]);
    let output = netns.output(&mut curl).unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn the_quick_start_shows_every_reason_in_less_than_a_thousand_series() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    curls(&mut rig).unwrap();
    let samples = scrape(&rig);
    println!("{} series", samples.len());
    assert!(samples.len() < 1_000, "{}", samples.len());
    for reason in Reason::ALL {
        let name = format!("forebay_requests_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(samples.get(&name), Some(&0.0), "{name}");
    }
    let packets = |counter: &Counter| {
        let name = format!("forebay_xdp_packets_total{{reason=\"{}\"}}", counter.name());
        *samples.get(&name).unwrap_or_else(|| panic!("no {name}"))
    };
    let counts: Vec<f64> = Counter::ALL.iter().map(packets).collect();
    assert!(counts.iter().all(|count| *count >= 0.0));
    // Some of the connections were this node's.
    assert!(packets(&Counter::OwnSyn) > 0.0 && packets(&Counter::LookupRedirected) > 0.0);
    let served = ["backend-v1", "backend-v2"].map(|service| {
        let name = format!(
            "forebay_cluster_requests_total{{cluster=\"istio-test/{service}:80\",class=\"2xx\"}}"
        );
        samples
            .get(&name)
            .copied()
            .unwrap_or_else(|| panic!("no {name}"))
    });
    assert!(served[0] + served[1] > 0.0, "{served:?}");
}

/// Most memory of its own that an idle daemon keeps, in KiB. An unoptimised build keeps some more than the one that is measured by
/// the benchmark; making a loader alone costs twice as much for a moment.
const OWN_KIB: u64 = 12 * 1024;

#[test]
fn an_idle_daemon_with_its_kernel_half_is_small() {
    let rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    for daemon in &rig.daemons {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap()
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .unwrap()
        };
        let own = kib("RssAnon:");
        println!("own {own} KiB, resident {} KiB", kib("VmRSS:"));
        assert!(own < OWN_KIB, "{own} KiB");
    }
}
