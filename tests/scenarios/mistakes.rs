//! Bad input that only root can make or meet: interfaces, programs of others, pins, permissions. Each is one sentence that
//! names the thing and what to do, with its exit code, and what already works keeps working.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gateway_common::abi::ABI_VERSION;
use gateway_tests::{
    daemon::{Daemon, program},
    fixture::HOST,
    leftovers::Ledger,
    netns::Netns,
    rig::{Options, Rig},
};
use gateway_user::datapath::attach_pass;

/// A node's namespace with an uplink and no daemon.
struct Bare {
    netns: Netns,
    bpffs: PathBuf,
    directory: tempfile::TempDir,
    _peer: Netns,
    _ledger: Ledger,
}

impl Bare {
    fn new() -> Self {
        let ledger = Ledger::open().unwrap();
        let netns = Netns::new(&ledger, "node").unwrap();
        let peer = Netns::new(&ledger, "peer").unwrap();
        netns
            .veth("eth0", "02:00:00:00:00:01", &peer, "eth0")
            .unwrap();
        netns.checksums_in_software("eth0").unwrap();
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/{}-node", ledger.run()));
        ledger.directory(&bpffs).unwrap();
        let directory = tempfile::tempdir().unwrap();
        for name in ["config", "state"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self {
            netns,
            bpffs,
            directory,
            _peer: peer,
            _ledger: ledger,
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Exit code and all that `forebay run` says with these flags more.
    fn run(&self, by: &[&str], binary: &Path, more: &[&str]) -> (Option<i32>, String) {
        let (config, state) = (self.path("config"), self.path("state"));
        let words = [
            "run",
            "--log",
            "off",
            "--admin",
            "off",
            "--metrics",
            "off",
            "--ready",
            "off",
            "--config",
            &config,
            "--state-dir",
            &state,
            "--node-name",
            "node1",
        ];
        self.said(by, binary, &[&words[..], more].concat())
    }

    fn said(&self, by: &[&str], binary: &Path, words: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new("timeout");
        // A daemon that starts although it should not is ended with another code.
        command.arg("20").args(by).arg(binary).args(words);
        if !words.contains(&"--bpffs") {
            command.arg("--bpffs").arg(&self.bpffs);
        }
        let output = self.netns.output(&mut command).unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    }

    fn refused(&self, more: &[&str], code: i32, sentence: &str) {
        let (got, text) = self.run(&[], &program(), more);
        assert_eq!(text, format!("forebay: {sentence}\n"), "{more:?}");
        assert_eq!(got, Some(code), "{more:?}");
    }
}

#[test]
fn interfaces() {
    let bare = Bare::new();
    bare.refused(
        &["--interface", "nope0"],
        1,
        "interface nope0 does not exist: name an existing one with --interface (`ip link` lists them)",
    );
    bare.refused(
        &[],
        1,
        "there is no default route to take the interface from: name the uplink with --interface (`ip link` lists them)",
    );
    bare.refused(
        &["--interface", "lo", "--datapath", "native"],
        1,
        "interface lo refuses native XDP (Operation not supported (os error 95)): lower the MTU if it is above about 3500 bytes, turn LRO and GRO in hardware off, or use --datapath auto or generic",
    );
    let _foreign = bare.netns.run(|| Ok(attach_pass("eth0").unwrap())).unwrap();
    let native = ["--interface", "eth0", "--datapath", "native"];
    let (code, text) = bare.run(&[], &program(), &native);
    let (start, end) = text.split_once(", id ").unwrap_or_else(|| panic!("{text}"));
    assert_eq!(
        start,
        "forebay: interface eth0 already runs an XDP program that is not Forebay's (program forebay_pass"
    );
    assert_eq!(
        end.trim_start_matches(|c: char| c.is_ascii_digit()),
        "): remove it, or give Forebay another interface with --interface\n"
    );
    assert_eq!(code, Some(1));
}

#[test]
fn pins() {
    let bare = Bare::new();
    // What another version would have left: a map of ours under the name of another one.
    let foreign = bare.netns.run(|| Ok(attach_pass("eth0").unwrap()));
    let native = ["--interface", "eth0", "--datapath", "native"];
    let (code, text) = bare.run(&[], &program(), &native);
    assert_eq!(code, Some(1), "{text}");
    drop(foreign);
    let version = bare.bpffs.join(format!("v{ABI_VERSION}"));
    let other = aya::maps::MapData::from_pin(version.join("STATE")).unwrap();
    fs::remove_file(version.join("PORTS")).unwrap();
    other.pin(version.join("PORTS")).unwrap();
    bare.refused(
        &["--interface", "eth0"],
        1,
        &format!(
            "the pinned map {} has another layout than this forebay's (capacity 8 instead of 1024): stop every forebay on this node and run `forebay detach`",
            version.join("PORTS").display()
        ),
    );
    let words = ["detach"];
    let nobody = Unprivileged::new(&bare);
    let (code, text) = bare.said(&nobody.by(), &nobody.binary, &words);
    assert_eq!(
        text,
        format!(
            "forebay: removing {} is not permitted: run as root or with CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and, for the start, CAP_PERFMON (before Linux 5.8 CAP_SYS_ADMIN)\n",
            version.join("link-lookup").display()
        )
    );
    assert_eq!(code, Some(1));
    assert!(version.join("PORTS").exists());
    // The remedy is one.
    assert_eq!(bare.said(&[], &program(), &words), (Some(0), String::new()));
    assert!(!version.exists());

    let (code, text) = bare.run(
        &[],
        &program(),
        &["--interface", "eth0", "--bpffs", "/proc/forebay"],
    );
    assert_eq!(
        text,
        "forebay: /proc/forebay cannot be used for pinned maps: making it failed (No such file or directory (os error 2)); name another directory with --bpffs\n"
    );
    assert_eq!(code, Some(1));
}

/// A second daemon on the same pins waits for the first one to end, then says who it is; one that was killed holds up nobody.
#[test]
fn two_daemons_on_the_same_pins() {
    let mut rig = Rig::start(
        Ledger::open().unwrap(),
        &Options {
            nodes: 1,
            ..Options::default()
        },
    )
    .unwrap();
    let site = rig.topology.nodes[0].clone();
    let first = rig.daemons[0].pid();
    let bpffs = rig.daemons[0].bpffs().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let config = rig.settings.config.clone();
    let start = |words: &[&str]| {
        let mut command = Command::new("timeout");
        command.arg("30").arg(program()).args(words);
        command.args(["--interface", "eth0", "--bpffs"]).arg(&bpffs);
        command.arg("--config").arg(&config);
        let output = site.netns.output(&mut command).unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let state = directory.path().display().to_string();
    let off = "off";
    let run = [
        "run",
        "--admin",
        off,
        "--metrics",
        off,
        "--ready",
        off,
        "--state-dir",
        &state,
        "--node-name",
        "node1",
    ];
    let agent = ["agent", "--socket", socket.to_str().unwrap()];
    for words in [&run[..], &agent] {
        let begun = Instant::now();
        let (code, text) = start(words);
        let (waits, refused) = text.split_once('\n').unwrap();
        let wait = format!(
            "waiting up to 10s for the forebay (process {first}) that uses the pins in {} to end",
            bpffs.display()
        );
        assert!(waits.ends_with(&wait), "{text}");
        assert_eq!(
            refused,
            format!(
                "forebay: another forebay (process {first}) uses the pins in {}: stop it, or give this one another directory with --bpffs\n",
                bpffs.display()
            )
        );
        assert_eq!(code, Some(1));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    rig.wait_served(0, HOST).unwrap();
    // The next one takes over while the first one ends, and at once from one that was killed.
    let second = Daemon::start(rig.ledger(), &site, &rig.settings).unwrap();
    let mut first = std::mem::replace(&mut rig.daemons[0], second);
    assert!(rig.daemons[0].pid() != first.pid());
    first.terminate(Duration::from_secs(20)).unwrap();
    rig.daemons[0].wait_ready().unwrap();
    rig.wait_served(0, HOST).unwrap();
    rig.daemons[0].kill().unwrap();
    let begun = Instant::now();
    rig.start_again(0).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    rig.wait_served(0, HOST).unwrap();
}

/// The program where an unprivileged user can start it.
struct Unprivileged {
    binary: PathBuf,
    user: [String; 3],
}

impl Unprivileged {
    fn new(bare: &Bare) -> Self {
        let binary = bare.directory.path().join("forebay");
        if !binary.exists() {
            fs::copy(program(), &binary).unwrap();
        }
        let open = fs::Permissions::from_mode(0o777);
        for path in [bare.directory.path(), &bare.directory.path().join("state")] {
            fs::set_permissions(path, open.clone()).unwrap();
        }
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned);
        Self { binary, user }
    }

    fn by(&self) -> Vec<&str> {
        let mut words = vec!["setpriv"];
        words.extend(self.user.iter().map(String::as_str));
        words
    }
}

#[test]
fn an_unprivileged_user() {
    let bare = Bare::new();
    let nobody = Unprivileged::new(&bare);
    let (code, text) = bare.run(&nobody.by(), &nobody.binary, &["--interface", "eth0"]);
    assert_eq!(
        text,
        "forebay: loading the BPF object (its maps) is not permitted: run as root or with CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and, for the start, CAP_PERFMON (before Linux 5.8 CAP_SYS_ADMIN), or use --datapath off, which needs none of them\n"
    );
    assert_eq!(code, Some(1));
}

#[test]
fn a_second_daemon_on_the_node_disturbs_nothing() {
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    let daemon = &rig.daemons[0];
    let site = daemon.site().clone();
    // With pins of its own.
    let bpffs = PathBuf::from(format!("{}-second", daemon.bpffs().display()));
    rig.ledger().directory(&bpffs).unwrap();
    let mut second = Command::new("timeout");
    second
        .args(["20"])
        .arg(program())
        .args([
            "run",
            "--log",
            "off",
            "--interface",
            "eth0",
            "--node-name",
            &site.name,
            "--admin",
        ])
        .arg(daemon.admin())
        .arg("--bpffs")
        .arg(&bpffs)
        .arg("--config")
        .arg(&rig.settings.config);
    let output = site.netns.output(&mut second).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "forebay: --admin {} cannot be opened: the address is in use; give another address or off with --admin\n",
            daemon.admin()
        )
    );
    assert_eq!(output.status.code(), Some(1));
    rig.wait_served(0, HOST).unwrap();
    let status = rig.daemons[0].ask(&["status"]).unwrap();
    assert!(status.contains(": well,"), "{status}");
}
