//! A running daemon with something wrong in its configuration or on its machine: what is said about it, and that all else is
//! served. And one with nothing wrong: the example for a laptop.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

const CLASS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: forebay}
spec: {controllerName: forebay.dev/gateway-controller}
";

/// A Gateway on these ports of 127.0.0.1; listeners are named `a`, `b` and so on. Their one route leads to `backend`.
fn gateway(ports: &[u16], backend: u16) -> String {
    let listeners: String = ('a'..)
        .zip(ports)
        .map(|(name, port)| format!("    - {{name: {name}, protocol: HTTP, port: {port}}}\n"))
        .collect();
    format!(
        "{CLASS}---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: g}}
spec:
  gatewayClassName: forebay
  addresses: [{{value: 127.0.0.1}}]
  listeners:
{listeners}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec: {{parentRefs: [{{name: g}}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: {backend}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"
    )
}

/// A server that says `text` to every request; its port.
async fn server(text: &'static str) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
                        return;
                    }
                }
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", text.len());
                let answer = format!("{head}connection: close\r\n\r\n{text}");
                let _sent = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

async fn get(port: u16, host: &str) -> (u16, String) {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    ask(stream, "/", host).await.unwrap()
}

/// The line below this heading that begins with these words, its cells apart.
fn row(text: &str, heading: &str, first: &str) -> Option<Vec<String>> {
    let (_, table) = text.split_once(&format!("{heading}\n"))?;
    let lines = table.lines().take_while(|line| !line.is_empty());
    let cells = |line: &str| -> Vec<String> {
        let cells = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    lines
        .map(cells)
        .find(|cells| cells.first().is_some_and(|cell| cell == first))
}

#[tokio::test]
async fn the_example_for_a_laptop() {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/laptop/forebay.yaml"
    ))
    .unwrap();
    let port = free_port();
    let (v1, v2) = (server("v1").await, server("v2").await);
    let text = text
        .replace("port: 8080", &format!("port: {port}"))
        .replace("ort: 5678", &format!("ort: {v1}"))
        .replace("ort: 5679", &format!("ort: {v2}"));
    let config = manifests(&[("forebay.yaml", &text)]);
    let daemon = Daemon::start(config.path(), &[], &[]).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(get(port, "test.devopscube.com").await.1);
    }
    answers.sort();
    assert_eq!(answers, ["v1", "v1", "v2", "v2"]);

    // A connection is open until its client has acknowledged the end.
    let status = until("all connections to end", async || {
        let status = daemon.ask(&["status"]).await;
        status.stdout.contains(" 0 open").then_some(status)
    });
    let status = status.await;
    assert_eq!(
        status.stdout,
        "Node node-1: well, configuration 1, serving, 0 open connections

Gateways
  NAME            ADDRESSES  PROGRAMMED
  default/laptop  127.0.0.1  True

Listeners
  GATEWAY         NAME  ROUTES  PROGRAMMED
  default/laptop  http  1       True

Routes
  NAME           PARENT  ACCEPTED  REFS
  default/split  laptop  True      True

Other objects
  KIND          NAME     CONDITION         STATUS  REASON
  GatewayClass  forebay  Accepted          True    Accepted
  GatewayClass  forebay  SupportedVersion  True    SupportedVersion

"
    );
    assert_eq!(status.code, Some(0));
    let routes = daemon.ask(&["routes"]).await;
    let routes: Vec<&str> = routes.stdout.split_whitespace().collect();
    let at = format!("127.0.0.1:{port}");
    assert_eq!(
        routes,
        [
            "ADDRESS",
            "LISTENER",
            "HOST",
            "MATCH",
            "RULE",
            "BACKENDS",
            &at,
            "http",
            "*",
            "prefix",
            "/",
            "default/split/rule/0",
            "default/v1:80=50,default/v2:80=50"
        ]
    );
    let explained = daemon
        .ask(&["explain", &format!("http://a.example:{port}/x")])
        .await;
    assert_eq!(
        explained.stdout,
        format!(
            "{at} (Gateway default/laptop)
  listener  http (host *)
  rule      default/split/rule/0 (prefix /)
   50 %     default/v1:80: 127.0.0.1:{v1}
   50 %     default/v2:80: 127.0.0.1:{v2}
  rule default/split/rule/0 takes it by the prefix /; 2 backends by weight
"
        )
    );
    assert_eq!(explained.code, Some(0));
    let other = daemon.ask(&["explain", "http://a.example:1/"]).await;
    assert_eq!(
        (other.code, other.stdout.as_str()),
        (
            Some(1),
            "no Gateway listens on port 1; `forebay routes` lists what is served\n"
        )
    );
    let endpoints = daemon.ask(&["endpoints"]).await.stdout;
    let cluster = row(&endpoints, "Endpoints", "default/v1:80").unwrap();
    assert_eq!(
        cluster[1..],
        [
            format!("127.0.0.1:{v1}"),
            "usable".into(),
            "0".into(),
            "0".into()
        ]
    );
    let bpf = daemon.ask(&["bpf"]).await;
    assert_eq!(
        (bpf.code, bpf.stdout.as_str()),
        (
            Some(0),
            "this daemon runs with --datapath off: it has no kernel tables\n"
        )
    );
    let dump: serde_json::Value =
        serde_json::from_str(&daemon.ask(&["dump"]).await.stdout).unwrap();
    let pages: Vec<&String> = dump.as_object().unwrap().keys().collect();
    assert_eq!(pages, ["certs", "config", "endpoints", "stats", "status"]);
    let said = daemon.ask(&["dump", "--output", "json"]).await.stdout;
    assert!(serde_json::from_str::<serde_json::Value>(&said).is_ok());
    let tables = daemon.ask(&["dump", "--output", "table"]).await.stdout;
    for heading in ["Gateways", "Listeners", "Routes", "Clusters", "Endpoints"] {
        assert!(tables.contains(&format!("\n{heading}\n")), "{tables}");
    }

    let drained = daemon.ask(&["drain"]).await;
    assert_eq!(
        (drained.code, drained.stdout.as_str()),
        (Some(0), "draining\n")
    );
    // The answer comes once that is so.
    assert_eq!(daemon.admin("/status").await["drain"], "draining");
    let (ended, log) = daemon.terminate().await;
    assert_eq!(ended.code(), Some(0));
    // The built-in listener's port is fixed: somebody else on this machine may have it.
    let mut complaints = log.lines().filter(|line| !line.contains(":15021"));
    let complaint = complaints.find(|line| line.contains("ERROR") || line.contains("WARN"));
    assert_eq!(complaint, None, "{log}");
}

#[tokio::test]
async fn a_broken_file_disturbs_nothing_and_is_named_until_it_is_mended() {
    let port = free_port();
    let good = gateway(&[port], server("ok").await);
    let bad =
        "apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {ports: [{port: x}]}\n";
    let config = manifests(&[
        ("good.yaml", &good),
        ("bad.yaml", bad),
        ("worse.yaml", "a: ["),
    ]);
    let daemon = Daemon::start(config.path(), &[], &[]).await;
    assert_eq!(get(port, "a").await, (200, "ok".into()));
    let status = daemon.ask(&["status"]).await;
    assert_eq!(status.code, Some(1));
    assert_eq!(
        row(&status.stdout, "Errors", "bad.yaml").unwrap(),
        [
            "bad.yaml",
            "Service other",
            "spec.ports[0].port",
            "expected a whole number from 0 to 65535, got the string \"x\""
        ]
    );
    assert_eq!(
        row(&status.stdout, "Errors", "worse.yaml").unwrap(),
        [
            "worse.yaml",
            "-",
            "-",
            "the file cannot be parsed: unclosed bracket '[' at line 1, column 4"
        ]
    );
    let said = "bad.yaml: Service other: field spec.ports[0].port: expected a whole number from 0 to 65535, got the string \"x\"\n";
    assert!(daemon.log().contains(said), "{}", daemon.log());

    // The good one breaks as well: what was read from it stays.
    std::fs::write(config.path().join("good.yaml"), "{").unwrap();
    until("the broken file is named", || async {
        let status = daemon.ask(&["status"]).await;
        let row = row(&status.stdout, "Errors", "good.yaml")?;
        row.last()?
            .ends_with("; what was last read from it stays")
            .then_some(())
    })
    .await;
    assert_eq!(get(port, "a").await, (200, "ok".into()));

    std::fs::write(config.path().join("good.yaml"), &good).unwrap();
    for name in ["bad.yaml", "worse.yaml"] {
        std::fs::remove_file(config.path().join(name)).unwrap();
    }
    until("all is well", || async {
        (daemon.ask(&["status"]).await.code == Some(0)).then_some(())
    })
    .await;
    assert_eq!(get(port, "a").await, (200, "ok".into()));
    assert_eq!(daemon.terminate().await.0.code(), Some(0));
}

#[tokio::test]
async fn what_an_api_server_would_refuse_leaves_the_last_good_version_serving() {
    let port = free_port();
    let rule = "networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d}\nspec: {host: web, trafficPolicy: {outlierDetection: {maxEjectionPercent: 100}}}\n";
    let good = format!(
        "{}---\napiVersion: {rule}",
        gateway(&[port], server("ok").await)
    );
    let config = manifests(&[("all.yaml", &good)]);
    let daemon = Daemon::start(config.path(), &[], &[]).await;
    let write = |text: &str| std::fs::write(config.path().join("all.yaml"), text).unwrap();
    for (from, to, object, field, sentence) in [
        (
            format!("port: {port}}}"),
            "port: 0}".to_owned(),
            "Gateway g",
            "spec.listeners[0].port",
            "expected a whole number from 1 to 65535, got 0",
        ),
        (
            "rules: [{".to_owned(),
            "rules: [{matches: [{path: {type: Foo}}], ".to_owned(),
            "HTTPRoute r",
            "spec.rules[0].matches[0].path.type",
            "expected Exact, PathPrefix or RegularExpression, got \"Foo\"",
        ),
        (
            "{name: web, port: 80}]}]".to_owned(),
            "{name: web, port: 80, weight: 1000001}]}]".to_owned(),
            "HTTPRoute r",
            "spec.rules[0].backendRefs[0].weight",
            "expected a whole number from 0 to 1000000, got 1000001",
        ),
        (
            "[{name: http, port: 80}]".to_owned(),
            "[{name: http, port: 80, protocol: Foo}]".to_owned(),
            "Service web",
            "spec.ports[0].protocol",
            "expected TCP, UDP or SCTP, got \"Foo\"",
        ),
        (
            "maxEjectionPercent: 100".to_owned(),
            "maxEjectionPercent: 101".to_owned(),
            "DestinationRule d",
            "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
            "expected a whole number from 0 to 100, got 101",
        ),
    ] {
        let bad = good.replace(&from, &to);
        assert_ne!(bad, good);
        write(&bad);
        let sentence = format!("{sentence}; its last good version stays");
        let row = until("the object is named", || async {
            let status = daemon.ask(&["status"]).await;
            let row = row(&status.stdout, "Errors", "all.yaml")?;
            (status.code == Some(1)).then_some(row)
        })
        .await;
        assert_eq!(row, ["all.yaml", object, field, &sentence]);
        let said = format!("all.yaml: {object}: field {field}: {sentence}\n");
        assert!(daemon.log().contains(&said), "{}", daemon.log());
        assert_eq!(get(port, "a").await, (200, "ok".into()), "{object} {field}");
        // It stays as it was in all: no condition tells of what is not in effect.
        let status = daemon.ask(&["status"]).await;
        assert!(
            !status.stdout.contains("Not as asked for"),
            "{}",
            status.stdout
        );
        write(&good);
        until("all is well", || async {
            (daemon.ask(&["status"]).await.code == Some(0)).then_some(())
        })
        .await;
    }
    // What every schema admits takes effect, and is a condition.
    write(&good.replace(
        "rules: [{",
        "rules: [{matches: [{path: {type: RegularExpression, value: \"/[\"}}], ",
    ));
    until("the condition is told", || async {
        let status = daemon.ask(&["status"]).await;
        (status.stdout.contains("UnsupportedValue") && !status.stdout.contains("Errors\n"))
            .then_some(())
    })
    .await;
    assert_eq!(get(port, "a").await.0, 404);
    assert_eq!(daemon.terminate().await.0.code(), Some(0));
}

/// The listener at `127.0.0.1:{failing}` cannot be served for this reason; the other one is.
async fn one_listener_fails(by: &[&str], failing: u16, sentence: &str) {
    let port = free_port();
    let text = gateway(&[failing, port], server("ok").await);
    let config = manifests(&[("a.yaml", &text)]);
    // Ready, or this would not return.
    let daemon = Daemon::start(config.path(), by, &[]).await;
    assert_eq!(get(port, "a").await, (200, "ok".into()));
    let sentence = format!("cannot listen on 127.0.0.1:{failing}: {sentence}");
    let status = daemon.ask(&["status"]).await;
    assert_eq!(status.code, Some(1));
    assert_eq!(
        row(
            &status.stdout,
            "Not as asked for",
            "Gateway default/g listener a"
        )
        .unwrap(),
        [
            "Gateway default/g listener a",
            "Programmed",
            "Invalid",
            &format!("127.0.0.1:{failing} on node node-1: {sentence}")
        ]
    );
    assert_eq!(
        row(&status.stdout, "Gateways", "default/g").unwrap()[2],
        "True"
    );
    assert!(
        daemon.log().contains(&format!("ERROR {sentence}")),
        "{}",
        daemon.log()
    );
    assert_eq!(daemon.terminate().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_port_that_another_process_has() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    let sentence =
        "the port is in use by another process; stop that process or change the listener's port";
    one_listener_fails(&[], taken, sentence).await;
}

#[tokio::test]
async fn a_port_that_another_process_gives_up() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let config = manifests(&[("a.yaml", &gateway(&[port], server("ok").await))]);
    let daemon = Daemon::start(config.path(), &[], &[]).await;
    assert_eq!(daemon.ask(&["status"]).await.code, Some(1));
    drop(other);
    until("the listener is opened", || async {
        (daemon.ask(&["status"]).await.code == Some(0)).then_some(())
    })
    .await;
    assert_eq!(get(port, "a").await, (200, "ok".into()));
    assert_eq!(daemon.terminate().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_port_below_1024_without_the_capability() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim() != "1024" {
        // Some container runtimes open these ports to everybody: there is nothing to refuse then.
        println!("skipped: unprivileged ports begin at {}", first.trim());
        return;
    }
    let drop: &[&str] = if rustix::process::geteuid().is_root() {
        &["setpriv", "--bounding-set=-net_bind_service"]
    } else {
        &[]
    };
    let sentence = "ports below 1024 need CAP_NET_BIND_SERVICE; grant it to forebay (setcap cap_net_bind_service=+ep), use --datapath auto, or change the listener's port";
    one_listener_fails(drop, 1023, sentence).await;
}

#[tokio::test]
async fn the_quick_start_has_less_than_a_thousand_series() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/quickstart");
    let daemon = Daemon::start(config.as_ref(), &[], &["--workers", "8"]).await;
    let text = daemon.page("metrics", "/metrics").await;
    assert!(text.ends_with("# EOF\n"));
    let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    println!("{} series", series.len());
    assert!(series.len() < 1_000, "{}", series.len());
    for reason in gateway_user::proxy::scan::Reason::ALL {
        let line = format!("forebay_requests_refused_total{{reason=\"{reason}\"}} 0");
        assert!(series.contains(&&*line), "{line}");
    }
    for cluster in ["istio-test/backend-v1:80", "istio-test/backend-v2:80"] {
        let of = format!("cluster=\"{cluster}\"");
        assert!(series.iter().any(|line| line.contains(&of)), "{of}\n{text}");
    }
    assert_eq!(daemon.terminate().await.0.code(), Some(0));
}

/// Whoever looks at a node that waits is told what it waits for.
#[tokio::test]
async fn the_endpoints_answer_while_the_api_server_does_not() {
    let own = tempfile::tempdir().unwrap();
    let path = |name: &str| own.path().join(name);
    let config = format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{}'}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
",
        free_port()
    );
    std::fs::write(path("kubeconfig"), config).unwrap();
    let mut command = program();
    command.args([
        "run",
        "--kubernetes",
        "--datapath",
        "off",
        "--node-name",
        "node-1",
    ]);
    command.arg("--state-dir").arg(path("state"));
    for endpoint in ["admin", "metrics", "ready"] {
        command.arg(format!("--{endpoint}"));
        command.arg(format!("unix:{}", path(endpoint).display()));
    }
    command.env("KUBECONFIG", path("kubeconfig"));
    let log = std::fs::File::create(path("log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let _child = command.spawn().unwrap();
    let page = async |endpoint: &str, page: &str| {
        let socket = path(endpoint);
        until(endpoint, || async {
            crate::support::get(&socket, page).await.ok()
        })
        .await
    };
    let waits = "the API server has not said which kinds it serves";
    let (status, body) = page("metrics", "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "forebay_build_info",
        "forebay_kubernetes_watch_errors_total 0",
    ] {
        assert!(body.contains(line), "{body}");
    }
    assert_eq!(
        page("ready", "/healthz/live").await,
        (200, "alive\n".into())
    );
    let not_ready = (503, format!("not ready: {waits}\n"));
    assert_eq!(page("ready", "/healthz/ready").await, not_ready);
    let starts = format!("{{\"error\":\"this node starts: {waits}\"}}");
    assert_eq!(page("admin", "/status").await, (503, starts));
    let admin = format!("unix:{}", path("admin").display());
    let said = said(program().args(["status", "--admin", &admin])).await;
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains(waits), "{}", said.stderr);
}

/// The list of replicas, in which this node is the only one.
fn replicas(terminating: bool) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: forebay-1, namespace: forebay-system, labels: {{kubernetes.io/service-name: forebay}}}}
addressType: IPv4
ports: []
endpoints:
- addresses: [127.0.0.1]
  nodeName: node-1
  conditions: {{ready: {}, serving: true, terminating: {terminating}}}
",
        !terminating
    )
}

/// The head of an answer to a request that lets the connection stay open.
async fn head(port: u16) -> String {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

#[tokio::test]
async fn a_drain_that_the_list_takes_back_leaves_nothing_behind() {
    let port = free_port();
    let config = manifests(&[
        ("all.yaml", &gateway(&[port], server("ok").await)),
        ("replicas.yaml", &replicas(false)),
    ]);
    let daemon = Daemon::start(config.path(), &[], &[]).await;
    let close = "\r\nconnection: close\r\n";
    // Twice: what is taken back can come again.
    for _ in 0..2 {
        assert!(!head(port).await.contains(close));
        std::fs::write(config.path().join("replicas.yaml"), replicas(true)).unwrap();
        until("drained", async || {
            (daemon.admin("/status").await["drain"] == "drained").then_some(())
        })
        .await;
        assert_eq!(daemon.ready().await, 503);
        assert!(head(port).await.contains(close));
        std::fs::write(config.path().join("replicas.yaml"), replicas(false)).unwrap();
        until("ready again", async || {
            (daemon.ready().await == 200).then_some(())
        })
        .await;
        assert_eq!(daemon.admin("/status").await["drain"], "serving");
    }
    assert!(!head(port).await.contains(close));

    // What somebody asked this node for is not taken back.
    daemon.ask(&["drain"]).await;
    for terminating in [true, false] {
        let before = daemon.admin("/status").await["generation"].clone();
        std::fs::write(config.path().join("replicas.yaml"), replicas(terminating)).unwrap();
        until("the change", async || {
            (daemon.admin("/status").await["generation"] != before).then_some(())
        })
        .await;
    }
    until("drained", async || {
        (daemon.ready().await == 503).then_some(())
    })
    .await;
    assert!(head(port).await.contains(close));
    assert_eq!(daemon.terminate().await.0.code(), Some(0));
}
