//! Tables of mistakes: what is typed, what is said, the exit code.

use std::net::TcpListener;

use crate::support::*;

/// Runs the words (`@` in them is a directory with an `empty` one and a `file` below) and compares all that is said.
async fn refused(words: &[&str], env: &[(&str, &str)], code: i32, sentences: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let here = dir.path().display().to_string();
    let words: Vec<String> = words.iter().map(|w| w.replace('@', &here)).collect();
    let said = said(program().args(&words).envs(env.iter().copied())).await;
    assert_eq!(said.stdout, "", "{words:?} {env:?}");
    let sentences: String = sentences
        .lines()
        .map(|line| format!("forebay: {}\n", line.trim().replace('@', &here)))
        .collect();
    assert_eq!(said.stderr, sentences, "{words:?} {env:?}");
    assert_eq!(said.code, Some(code), "{words:?} {env:?}");
}

#[tokio::test]
async fn the_command_line() {
    let rows: &[(&[&str], &str)] = &[
        (&[], "no command is given; `forebay --help` lists them"),
        (
            &["frobnicate"],
            "there is no command frobnicate; `forebay --help` lists all",
        ),
        (
            &["stauts"],
            "there is no command stauts; status is a similar one, and `forebay --help` lists all",
        ),
        (
            &["run", "--confg", "x"],
            "there is no flag --confg; --config is a similar one, and `forebay run --help` lists all",
        ),
        (
            &["status", "-x"],
            "there is no flag -x; `forebay status --help` lists all",
        ),
        (
            &["run", "--config", "x", "y"],
            "y is one word too many; `forebay run --help` shows what can be given",
        ),
        (
            &["completion", "csh"],
            "SHELL csh is not possible; give bash, zsh or fish",
        ),
        (
            &["validate"],
            "DIR is missing; `forebay validate --help` shows what has to be given",
        ),
        (
            &["run", "--config"],
            "--config has no value; give one after it",
        ),
        (
            &["run", "--config", "x", "--admin", "off", "--admin", "off"],
            "--admin is given more than once; give it once",
        ),
        (
            &["run"],
            "no source of objects; give a directory of manifests with --config DIR, or --kubernetes",
        ),
        (
            &["run", "--config", ""],
            "--config has no value; give one after it",
        ),
        (
            &["run", "--config", "x", "--kubernetes"],
            "--kubernetes and --config exclude each other; give one of them",
        ),
        (
            &["run", "--config", "x", "--namespaces", "a"],
            "--namespaces limits what is read from the API server; give --kubernetes, or leave it out",
        ),
        (
            &["run", "--config", "x", "--datapath", "xdp"],
            "--datapath xdp is not possible; give auto, native, tcx, generic or off",
        ),
        (
            &[
                "run",
                "--config",
                "x",
                "--datapath",
                "off",
                "--interface",
                "eth0",
                "--forward",
                "l2",
            ],
            "--datapath off uses no interface; leave --interface out
             --datapath off forwards no packets; leave --forward out",
        ),
        (
            &["run", "--config", "x", "--interface", ""],
            "--interface has an empty name; give the name of an uplink",
        ),
        (
            &["run", "--config", "x", "--agent", "s", "--datapath", "off"],
            "--datapath off needs no privileges; leave --agent out, or --datapath off",
        ),
        (
            &["run", "--config", "x", "--agent", "s", "--forward", "udp"],
            "--forward is the agent's business; give it to `forebay agent`, or leave --agent out",
        ),
        (
            &["agent"],
            "the agent gives out no address; name the addresses that may be VIPs with --vips RANGE, manifests with AddressPools with --config DIR, or the AddressPools of a cluster with --kubernetes",
        ),
        (
            &["agent", "--vips", "shop"],
            "--vips shop cannot be read; give an address, a CIDR (192.0.2.0/24) or FIRST-LAST (192.0.2.10-192.0.2.20)",
        ),
        (
            &["agent", "--vips", "192.0.2.1", "--allow-uid", "nobody"],
            "--allow-uid nobody cannot be read; give its number",
        ),
        (
            &["agent", "--vips", "192.0.2.1", "--tunnel-port", "0"],
            "--tunnel-port 0 cannot be read; give a port from 1 to 65535",
        ),
        (
            &["agent", "--vips", "192.0.2.1", "--probe-port", "-1"],
            "--probe-port -1 cannot be read; give a port from 1 to 65535",
        ),
        (
            &["agent", "--vips", "192.0.2.1", "--reserved-port", "0"],
            "--reserved-port 0 cannot be read; give a port from 1 to 65535",
        ),
        (
            &["run", "--config", "x", "--node-name", "Node_1"],
            "node name \"Node_1\" is not a DNS name; give one of lower-case letters, digits, '-' and '.' with --node-name",
        ),
        (
            &["run", "--config", "x", "--node-name", ""],
            "--node-name is empty; give a name or leave it out",
        ),
        (
            &["run", "--config", "x", "--workers", "0"],
            "--workers 0 is out of range; give 1 to 64",
        ),
        (
            &["run", "--config", "x", "--workers", "65"],
            "--workers 65 is out of range; give 1 to 64",
        ),
        (
            &["run", "--config", "x", "--workers", "many"],
            "--workers many cannot be read; give a whole number",
        ),
        (
            &["run", "--config", "x", "--workers", "-1"],
            "--workers -1 cannot be read; give a whole number",
        ),
        (
            &["run", "--config", "x", "--tunnel-port", "-1"],
            "--tunnel-port -1 cannot be read; give a port from 1 to 65535",
        ),
        (
            &["run", "--config", "x", "--drain-timeout", "-1s"],
            "--drain-timeout -1s cannot be read; give a duration such as 60s, 500ms or 1m30s",
        ),
        (
            &["run", "--config", "x", "--kubernetes=true"],
            "--kubernetes takes no value; give it alone or leave it out",
        ),
        (&["validate", ""], "DIR is empty; give it a value"),
        (
            &["explain", "http://a:99999/"],
            "\"http://a:99999/\" is not a URL that this can explain; give one such as http://shop.example.com/cart, grpc://api.example.com/package.Service/Method or udp://192.0.2.1:53",
        ),
        (
            &["run", "--config", "x", "--drain-timeout", "60"],
            "--drain-timeout 60 cannot be read; give a duration such as 60s, 500ms or 1m30s",
        ),
        (
            &["run", "--config", "x", "--tunnel-port", "70000"],
            "--tunnel-port 70000 cannot be read; give a port from 1 to 65535",
        ),
        (
            &["run", "--config", "x", "--probe-port", "0"],
            "--probe-port 0 cannot be read; give a port from 1 to 65535",
        ),
        (
            &["run", "--config", "x", "--tunnel-port", "17411"],
            "--tunnel-port and --probe-port are both 17411; give two different ports",
        ),
        (
            &["run", "--config", "x", "--metrics", "15020"],
            "--metrics 15020 cannot be read; give ADDR:PORT (for example 127.0.0.1:15000), unix:PATH or off",
        ),
        (
            &["run", "--config", "x", "--ready", "unix:"],
            "--ready unix: cannot be read; give a path after unix:",
        ),
        (
            &[
                "run", "--config", "x", "--admin", "[::1]:1", "--ready", "[::1]:1",
            ],
            "--admin and --ready are both [::1]:1; give two different addresses",
        ),
        (
            &["run", "--config", "x", "--access-log", ""],
            "--access-log has no value; give one after it",
        ),
        (
            &["run", "--config", "x", "--log", "loud"],
            "--log loud is not possible; give off, error, warn, info, debug or trace",
        ),
        (
            &["run", "--config", "x", "--log-format", "xml"],
            "--log-format xml is not possible; give text or json",
        ),
        (
            &["status", "--output", "yaml"],
            "--output yaml is not possible; give table or json",
        ),
        (
            &["status", "--admin", "off"],
            "--admin off names no daemon; give ADDR:PORT or unix:PATH",
        ),
        (
            &["explain", "shop.example.com"],
            "\"shop.example.com\" is not a URL that this can explain; give one such as http://shop.example.com/cart, grpc://api.example.com/package.Service/Method or udp://192.0.2.1:53",
        ),
        (
            &["explain", "ftp://shop.example.com/"],
            "\"ftp://shop.example.com/\" is not a URL that this can explain; give one such as http://shop.example.com/cart, grpc://api.example.com/package.Service/Method or udp://192.0.2.1:53",
        ),
        (
            &["explain", "http://shop example/"],
            "\"http://shop example/\" is not a URL that this can explain; give one such as http://shop.example.com/cart, grpc://api.example.com/package.Service/Method or udp://192.0.2.1:53",
        ),
        (
            &["explain", "http://a/", "--method", "G ET"],
            "\"G ET\" is not a method; give one such as GET",
        ),
        (
            &["explain", "http://a/", "--header", "x"],
            "\"x\" is not a header; give NAME:VALUE",
        ),
    ];
    for (words, sentences) in rows {
        refused(words, &[], 2, sentences).await;
    }
}

#[tokio::test]
async fn all_mistakes_of_one_command_line_come_at_once() {
    let words = [
        "run",
        "--workers",
        "0",
        "--node-name",
        "A",
        "--kubernetes",
        "--config",
        "x",
        "--tunnel-port",
        "17411",
    ];
    let sentences = "--kubernetes and --config exclude each other; give one of them
        --tunnel-port and --probe-port are both 17411; give two different ports
        node name \"A\" is not a DNS name; give one of lower-case letters, digits, '-' and '.' with --node-name
        --workers 0 is out of range; give 1 to 64";
    let said = said(program().args(words)).await;
    let want: Vec<String> = sentences
        .lines()
        .map(|line| format!("forebay: {}", line.trim()))
        .collect();
    assert_eq!(said.stderr.lines().collect::<Vec<_>>(), want);
    assert_eq!(said.code, Some(2));
}

#[tokio::test]
async fn the_environment() {
    let rows: &[(&[(&str, &str)], &str)] = &[
        (
            &[("FOREBAY_WORKERS", "x")],
            "FOREBAY_WORKERS=x cannot be read; give a whole number",
        ),
        (
            &[("FOREBAY_WORKERS", "0")],
            "--workers 0 is out of range; give 1 to 64",
        ),
        (
            &[("FOREBAY_DATAPATH", "maybe")],
            "FOREBAY_DATAPATH=maybe is not possible; give auto, native, tcx, generic or off",
        ),
        (
            &[("FOREBAY_DATAPATH", "")],
            "FOREBAY_DATAPATH is empty; give it a value or unset it",
        ),
        (
            &[("FOREBAY_KUBERNETES", "perhaps")],
            "FOREBAY_KUBERNETES=perhaps is not possible; give true or false",
        ),
        (
            &[("FOREBAY_KUBERNETES", "true")],
            "--kubernetes and --config exclude each other; give one of them",
        ),
        (
            &[("FOREBAY_DRAIN_TIMEOUT", "-1s")],
            "FOREBAY_DRAIN_TIMEOUT=-1s cannot be read; give a duration such as 60s, 500ms or 1m30s",
        ),
        (
            &[("FOREBAY_ADMIN", "nowhere")],
            "FOREBAY_ADMIN=nowhere cannot be read; give ADDR:PORT (for example 127.0.0.1:15000), unix:PATH or off",
        ),
        (
            &[("FOREBAY_READY", "")],
            "FOREBAY_READY is empty; give it a value or unset it",
        ),
        (
            &[("FOREBAY_PROBE_PORT", "0")],
            "FOREBAY_PROBE_PORT=0 cannot be read; give a port from 1 to 65535",
        ),
        (
            &[("FOREBAY_NODE_NAME", "")],
            "--node-name is empty; give a name or leave it out",
        ),
    ];
    for (env, sentences) in rows {
        refused(&["run", "--config", "x"], env, 2, sentences).await;
    }
    let empty = [("FOREBAY_CONFIG", "")];
    let sentence = "FOREBAY_CONFIG is empty; give it a value or unset it";
    refused(&["run"], &empty, 2, sentence).await;
}

/// Flags that keep a start away from the machine's own ports and directories.
const QUIET: [&str; 12] = [
    "run",
    "--datapath",
    "off",
    "--log",
    "off",
    "--state-dir",
    "@/state",
    "--access-log",
    "off",
    "--metrics",
    "off",
    "--node-name=node-1",
];

#[tokio::test]
async fn what_cannot_be_started() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let rows: &[(&[&str], &str)] = &[
        (
            &["--config", "@/none"],
            "--config @/none cannot be read: it does not exist; give a directory of manifests",
        ),
        (
            &["--config", "@/file"],
            "--config @/file cannot be read: it is not a directory; give a directory of manifests",
        ),
        (
            &["--config", "@/empty", "--admin", &taken],
            "--admin TAKEN cannot be opened: the address is in use; give another address or off with --admin",
        ),
        (
            &["--config", "@/empty", "--admin", "off", "--ready", &taken],
            "--ready TAKEN cannot be opened: the address is in use; give another address or off with --ready",
        ),
        (
            &["--config", "@/empty", "--admin", "192.0.2.1:1"],
            "--admin 192.0.2.1:1 cannot be opened: this machine has no such address; give another address or off with --admin",
        ),
        (
            &["--config", "@/empty", "--admin", "unix:@/none/admin"],
            "--admin unix:@/none/admin cannot be opened: its directory does not exist; give another address or off with --admin",
        ),
        (
            &["--config", "@/empty", "--admin", "unix:@/file"],
            "--admin unix:@/file cannot be opened: the address is in use; give another address or off with --admin",
        ),
    ];
    for (more, sentence) in rows {
        let words = [&QUIET[..], more].concat();
        refused(&words, &[], 1, &sentence.replace("TAKEN", &taken)).await;
    }
    let quiet = |flag: &str, value: &'static str| {
        let at = QUIET.iter().position(|word| *word == flag).unwrap();
        let mut words = QUIET.to_vec();
        words[at + 1] = value;
        words.extend(["--config", "@/empty", "--admin", "off", "--ready", "off"]);
        words
    };
    let mut metrics = quiet("--metrics", "TAKEN");
    let at = metrics.iter().position(|word| *word == "TAKEN").unwrap();
    metrics[at] = &taken;
    let sentence = "--metrics TAKEN cannot be opened: the address is in use; give another address or off with --metrics";
    refused(&metrics, &[], 1, &sentence.replace("TAKEN", &taken)).await;
    let logs = [
        ("@/none/log", "its directory does not exist"),
        ("@/empty", "it is a directory"),
    ];
    for (path, why) in logs {
        let words = quiet("--access-log", path);
        let sentence = format!(
            "--access-log {path} cannot be opened: {why}; give a file that can be written, stdout or off"
        );
        refused(&words, &[], 1, &sentence).await;
    }
}

#[tokio::test]
async fn without_a_way_to_an_api_server_it_does_not_start() {
    let words = ["run", "--kubernetes", "--datapath", "off"];
    let said = said(
        program()
            .args(words)
            .env("KUBECONFIG", "/nowhere/kubeconfig"),
    )
    .await;
    assert_eq!((said.code, said.stderr.lines().count()), (Some(1), 1));
    for part in [
        "forebay: there is no way to the API server: ",
        "\"/nowhere/kubeconfig\"",
        "; run in a pod with a service account, or name a kubeconfig in KUBECONFIG",
    ] {
        assert!(said.stderr.contains(part), "{}", said.stderr);
    }
}

#[tokio::test]
async fn nodes_without_shared_keys_do_not_start() {
    let slice = "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: forebay-1, namespace: forebay-system, labels: {kubernetes.io/service-name: forebay}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.11], nodeName: node-1}, {addresses: [192.0.2.12], nodeName: node-2}]
";
    let secret = |data: &str| {
        format!(
            "{slice}---
apiVersion: v1
kind: Secret
metadata: {{name: forebay-keys, namespace: forebay-system}}
data: {{{data}}}
"
        )
    };
    let rows = [
        (
            slice.to_owned(),
            "2 nodes are listed but there is no Secret forebay-system/forebay-keys; add it with 16 random bytes as hash-seed, the same on every node",
        ),
        (
            secret("other: AAAA"),
            "Secret forebay-system/forebay-keys: hash-seed is missing; give 16 random bytes in base64",
        ),
        (
            secret("hash-seed: '!'"),
            "Secret forebay-system/forebay-keys: hash-seed is not base64; give 16 random bytes in base64",
        ),
        (
            secret("hash-seed: AAAA"),
            "Secret forebay-system/forebay-keys: hash-seed is not 16 bytes long; give 16 random bytes in base64",
        ),
    ];
    for (text, sentence) in rows {
        let config = manifests(&[("a.yaml", &text)]);
        let path = config.path().display().to_string();
        // Other tests open the port of the default while this one runs.
        let words = [&QUIET[..], &["--ready", "off", "--config", &path]].concat();
        refused(&words, &[], 1, sentence).await;
    }
}

#[tokio::test]
async fn where_no_daemon_answers() {
    let commands: [&[&str]; 8] = [
        &["status"],
        &["routes"],
        &["endpoints"],
        &["certs"],
        &["bpf"],
        &["dump"],
        &["drain"],
        &["explain", "http://a/"],
    ];
    let free = format!("127.0.0.1:{}", free_port());
    for command in commands {
        let rows = [
            (
                free.as_str(),
                format!("no daemon answers at {free}: connection refused; start one with `forebay run`, or name its admin endpoint with --admin"),
            ),
            (
                "unix:@/none",
                "no daemon answers at unix:@/none: it does not exist; start one with `forebay run`, or name its admin endpoint with --admin".to_owned(),
            ),
        ];
        for (at, sentence) in rows {
            refused(&[command, &["--admin", at]].concat(), &[], 1, &sentence).await;
        }
    }
}

#[tokio::test]
async fn the_tables_of_the_kernel() {
    let rows: &[(&[&str], i32, &str)] = &[
        (
            &["frobnicate"],
            2,
            "there is no command frobnicate; `forebay bpf --help` lists all",
        ),
        (
            &["row"],
            2,
            "there is no command row; rows is a similar one, and `forebay bpf --help` lists all",
        ),
        (
            &["vips", "x"],
            2,
            "x is one word too many; `forebay bpf vips --help` shows what can be given",
        ),
        (
            &["vips", "--output", "xml"],
            2,
            "--output xml is not possible; give table or json",
        ),
        (
            &["rows", "65536"],
            2,
            "ROW 65536 cannot be read; give a row from 0 to 65535",
        ),
        (
            &["rows", "--address", "1.2.3.4:5"],
            2,
            "2 values required for '--address <CLIENT:PORT> <VIP:PORT/PROTOCOL>' but 1 was provided; `forebay bpf rows --help` lists the flags",
        ),
        (
            &["rows", "--address", "1.2.3.4", "1.2.3.4:5"],
            2,
            "--address 1.2.3.4 cannot be read; give ADDR:PORT or ADDR:PORT/PROTOCOL, for example 192.0.2.1:80/tcp or [2001:db8::1]:53/udp",
        ),
        (
            &["rows", "--address", "1.2.3.4:5", "1.2.3.4:5/sctp"],
            2,
            "--address 1.2.3.4:5/sctp cannot be read; give tcp or udp as the protocol",
        ),
        (
            &["rows", "--address", "1.2.3.4:5/tcp", "1.2.3.4:5"],
            2,
            "--address 1.2.3.4:5 names the client with a protocol; give it behind the VIP",
        ),
        (
            &["rows", "--address", "1.2.3.4:5", "[2001:db8::1]:5"],
            2,
            "--address 1.2.3.4:5 [2001:db8::1]:5 mixes IPv4 and IPv6; give two addresses of one kind",
        ),
        (
            &["rows", "7", "--address", "1.2.3.4:5", "1.2.3.4:6"],
            2,
            "rows and --address exclude each other; give one of them",
        ),
        (
            &["trace", "--address", "x"],
            2,
            "--address x cannot be read; give an address, for example 192.0.2.1 or 2001:db8::1",
        ),
        (
            &["trace", "--port", "0"],
            2,
            "--port 0 cannot be read; give a port from 1 to 65535",
        ),
        (
            &["trace", "--vip", "192.0.2.1:x"],
            2,
            "--vip 192.0.2.1:x cannot be read; give ADDR, ADDR:PORT or ADDR:PORT/PROTOCOL",
        ),
        (
            &["trace", "--vip", "192.0.2.1:80/icmp"],
            2,
            "--vip 192.0.2.1:80/icmp cannot be read; give tcp or udp as the protocol",
        ),
        (
            &["trace", "--sample", "0"],
            2,
            "--sample 0 cannot be read; give a whole number from 1 to 4294967295",
        ),
        (
            &["trace", "--count", "0"],
            2,
            "--count 0 cannot be read; give a whole number from 1 on",
        ),
        (
            &["trace", "--timeout", "soon"],
            2,
            "--timeout soon cannot be read; give a duration such as 60s, 500ms or 1m30s",
        ),
        (
            &["vips", "--bpffs", "@/empty"],
            1,
            "no kernel tables of this forebay are pinned below @/empty: start one with `forebay run`, or name its directory with --bpffs",
        ),
        (
            &["counters", "--bpffs", "@/file"],
            1,
            "no kernel tables of this forebay are pinned below @/file: start one with `forebay run`, or name its directory with --bpffs",
        ),
    ];
    for (words, code, sentence) in rows {
        let words = [&["bpf"], *words].concat();
        refused(&words, &[], *code, sentence).await;
    }
    let env = [("FOREBAY_BPFFS", "/nowhere")];
    let sentence = "no kernel tables of this forebay are pinned below /nowhere: start one with `forebay run`, or name its directory with --bpffs";
    for command in ["vips", "rows", "nodes", "counters", "trace"] {
        refused(&["bpf", command], &env, 1, sentence).await;
    }
}

#[tokio::test]
async fn what_answers_is_no_daemon() {
    let rows = [
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "status 404 Not Found",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "its answer is not JSON",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", "invalid HTTP version parsed"),
    ];
    for (response, why) in rows {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let other = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).unwrap();
            stream.write_all(response.as_bytes()).unwrap();
        });
        let sentence = format!("{at} does not answer like a Forebay daemon: {why}; check --admin");
        refused(&["status", "--admin", &at.to_string()], &[], 1, &sentence).await;
        other.join().unwrap();
    }
}

#[tokio::test]
async fn a_check_names_what_is_not_there() {
    let said = said(program().args(["check", "--interface", "nope0", "--output", "json"])).await;
    assert_eq!((said.code, said.stderr.as_str()), (Some(1), ""));
    let findings: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let all = findings.as_array().unwrap();
    let of = all
        .iter()
        .find(|f| f["check"] == "interface nope0")
        .unwrap();
    assert_eq!(
        (
            of["ok"].as_bool(),
            of["found"].as_str(),
            of["remedy"].as_str()
        ),
        (
            Some(false),
            Some("there is no such interface"),
            Some("name an existing one with --interface; ip link lists them")
        )
    );
}

#[tokio::test]
async fn help_names_every_command() {
    let said = said(program().arg("--help")).await;
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    for command in [
        "run",
        "agent",
        "status",
        "validate",
        "explain",
        "routes",
        "endpoints",
        "certs",
        "check",
        "dump",
        "bpf",
        "drain",
        "detach",
    ] {
        assert!(
            said.stdout.contains(&format!("\n  {command} ")),
            "{command}"
        );
        let one = crate::support::said(program().args([command, "--help"])).await;
        assert_eq!((one.code, one.stderr.as_str()), (Some(0), ""), "{command}");
        assert!(one.stdout.contains("\nUsage: forebay"), "{}", one.stdout);
    }
}
