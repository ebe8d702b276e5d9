//! `cargo xtask cluster demo`: the quick start on a real cluster, command by command as its reader types them, each with
//! what it prints and each checked.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    echo, forebay,
    running::{Running, Wanted},
    wait::{Interrupt, until},
};
use crate::{paths, progress::Steps};

/// Nodes of the cluster.
pub(super) const NODES: u8 = 3;
/// Longest wait for what a command is to show.
const PATIENCE: Duration = Duration::from_secs(120);
const HOST: &str = "test.devopscube.com";
/// Requests beyond the ten that are shown, so that their halves can be told from chance.
const MANY: usize = 200;
/// What `curl` is told at most to wait.
const CURL: &str = "curl -sS --max-time 10";

/// The whole of it.
pub(super) fn run(wanted: &Wanted<'_>, keep: bool) -> Result<()> {
    let steps = Steps::new();
    let interrupt = Interrupt::listen()?;
    let image = forebay::image()?;
    let echo = echo::image(&interrupt)?;
    let name = wanted.name;
    let running = Running::start(&steps, &interrupt, wanted)?;
    let walked = steps
        .run("images", |_| {
            running.load(&[image, echo])?;
            Ok("on every node".to_owned())
        })
        .and_then(|()| walk(&running));
    if walked.is_err() {
        let folder = paths::target().join("cluster").join(name.to_string());
        // What failed matters more than a log that cannot be kept.
        if forebay::keep_logs(&running, &folder).is_ok() {
            println!("what Forebay said is in {}", folder.display());
        }
    }
    if keep {
        println!(
            "the cluster {name} is left running: `cargo xtask cluster status`, and kubectl is {}",
            name.kubectl().display()
        );
        running.keep();
    }
    walked
}

fn walk(running: &Running<'_>) -> Result<()> {
    let show = |command: &str, expected: &[&str]| show(running, command, expected);
    install(running)?;
    show(
        "kubectl apply -f examples/kubernetes-quickstart/pool.yaml \
         -f examples/kubernetes-quickstart/backends.yaml",
        &[
            "addresspool.forebay.dev/quickstart",
            "deployment.apps/backend-v2",
        ],
    )?;
    show("kubectl get deployments -n istio-test", &["3/3", "2/2"])?;
    let address = gateway(running)?;
    show(
        "kubectl apply -f examples/kubernetes-quickstart/route.yaml",
        &["httproute.gateway.networking.k8s.io/backend-route"],
    )?;
    show(
        "kubectl get httproutes -n istio-test",
        &["backend-route", HOST],
    )?;
    show(
        "kubectl apply -f examples/kubernetes-quickstart/destination-rules.yaml",
        &["backend-destination-rule", "backend-v2-destination-rule"],
    )?;
    show(
        "kubectl get destinationrules -n istio-test",
        &[
            "backend-v1.istio-test.svc.cluster.local",
            "backend-v2.istio-test.svc.cluster.local",
        ],
    )?;
    requests(running, &address)
}

/// Definitions and Forebay, until its class is accepted.
fn install(running: &Running<'_>) -> Result<()> {
    let show = |command: &str, expected: &[&str]| show(running, command, expected);
    // The reader installs Gateway API first; the cluster has come with it.
    show(
        "kubectl get crd gateways.gateway.networking.k8s.io",
        &["gateways.gateway.networking.k8s.io"],
    )?;
    show(
        "kubectl apply --server-side -f deploy/crds -f deploy/crds/istio",
        &[
            "addresspools.forebay.dev",
            "destinationrules.networking.istio.io",
        ],
    )?;
    show(
        "kubectl wait --for=condition=Established crd --all --timeout=60s",
        &["addresspools.forebay.dev condition met"],
    )?;
    show(
        "kubectl apply --server-side -f deploy/forebay.yaml",
        &["daemonset.apps/forebay"],
    )?;
    show("kubectl get pods -n forebay-system", &["Running"])?;
    show(
        "kubectl rollout status daemonset/forebay -n forebay-system --timeout=120s",
        &["successfully rolled out"],
    )?;
    show(
        "kubectl get gc",
        &["forebay", "forebay.dev/gateway-controller", "True"],
    )
    .map(drop)
}

/// The Gateway, until it has an address and is programmed; returns the address.
fn gateway(running: &Running<'_>) -> Result<String> {
    let show = |command: &str, expected: &[&str]| show(running, command, expected);
    show(
        "kubectl apply -f examples/kubernetes-quickstart/gateway.yaml",
        &["gateway.gateway.networking.k8s.io/istio-gateway"],
    )?;
    let said = show(
        "kubectl get gateway -n istio-test",
        &["istio-gateway", "forebay", "True"],
    )?;
    let address = cell(&said, "ADDRESS").context("the Gateway shows no address")?;
    let services = show(
        "kubectl get po,svc -l gateway.networking.k8s.io/gateway-name=istio-gateway -n istio-test",
        &["LoadBalancer", "15021", "80", &address],
    )?;
    let ports = cell(&services, "PORT(S)").unwrap_or_default();
    let mut numbers: Vec<&str> = ports
        .split(',')
        .filter_map(|port| port.split([':', '/']).next())
        .collect();
    numbers.sort_unstable();
    ensure!(
        numbers == ["15021", "80"],
        "the Service has the ports {ports} instead of 15021 and 80"
    );
    let external = cell(&services, "EXTERNAL-IP").unwrap_or_default();
    ensure!(
        external == address,
        "the Service has the address {external} instead of {address}"
    );
    Ok(address)
}

/// The requests of somebody outside of the cluster, who has the name in a file of hosts.
fn requests(running: &Running<'_>, address: &str) -> Result<()> {
    let hosts = running.name.state().join("hosts");
    let line = format!("{address} {HOST}");
    println!("\n$ echo '{line}' >> /etc/hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n{line}\n"))
        .with_context(|| format!("cannot write {}", hosts.display()))?;
    // Routes reach the proxies at once, but not by the time that kubectl has ended.
    until(running.interrupt, "an answer", PATIENCE, || {
        let mut once = outside(running, &hosts, &format!("{CURL} --fail {HOST}"));
        Ok(once
            .output()
            .context("cannot run curl")?
            .status
            .success()
            .then_some(()))
    })?;
    println!("\n$ for i in {{1..10}}; do curl {HOST}; done");
    let ten = curls(running, &hosts, 10)?;
    print!("{ten}");
    let (one, two) = halves(&ten)?;
    ensure!(
        one + two == 10 && one > 0 && two > 0,
        "{one} of v1 and {two} of v2"
    );
    let (one, two) = halves(&curls(running, &hosts, MANY)?)?;
    println!("\n{MANY} more: {one} of v1, {two} of v2");
    ensure!(
        one + two == MANY && one.abs_diff(two) <= MANY / 4,
        "that is not about half each"
    );
    Ok(())
}

fn curls(running: &Running<'_>, hosts: &Path, number: usize) -> Result<String> {
    let text = format!("set -e; for i in {{1..{number}}}; do {CURL} --fail {HOST}; done");
    let said = outside(running, hosts, &text)
        .output()
        .context("cannot run bash")?;
    ensure!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// A line for `bash` in the hub, with a file of hosts that nobody else sees.
fn outside(running: &Running<'_>, hosts: &Path, line: &str) -> Command {
    let mut command = running.client();
    command
        .args(["unshare", "--mount", "bash", "-c"])
        .arg(format!("mount --bind \"$0\" /etc/hosts && {{ {line}; }}"))
        .arg(hosts)
        .stdin(Stdio::null());
    for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command
}

/// How many lines are of either version.
fn halves(said: &str) -> Result<(usize, usize)> {
    let (mut one, mut two) = (0, 0);
    for line in said.lines() {
        match line {
            "hello from backend v1" => one += 1,
            "hello from backend v2" => two += 1,
            other => bail!("an answer is {other:?}"),
        }
    }
    Ok((one, two))
}

/// Runs a command of `kubectl` until it prints what is expected, and shows it as it was then.
fn show(running: &Running<'_>, command: &str, expected: &[&str]) -> Result<String> {
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    println!("\n$ {command}");
    let mut said = String::new();
    let found = until(running.interrupt, command, PATIENCE, || {
        running.alive()?;
        let output = Command::new(running.name.kubectl())
            .args(&words)
            .current_dir(paths::root())
            .stdin(Stdio::null())
            .output()
            .context("cannot run kubectl")?;
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        let all = expected.iter().all(|part| said.contains(part));
        Ok((output.status.success() && all).then_some(()))
    });
    print!("{said}");
    found.with_context(|| format!("it does not show all of {}", expected.join(", ")))?;
    Ok(said)
}

/// What the first row below a column's head says; columns begin where their heads do.
fn cell(table: &str, head: &str) -> Option<String> {
    let mut lines = table.lines().skip_while(|line| !line.contains(head));
    let at = lines.next()?.find(head)?;
    let cell = lines.next()?.get(at..)?.split_whitespace().next()?;
    Some(cell.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found_below_their_heads() {
        let table = "NAME            CLASS     ADDRESS        PROGRAMMED   AGE\n\
                     istio-gateway   forebay   10.231.0.128   True         3s\n";
        assert_eq!(cell(table, "ADDRESS").unwrap(), "10.231.0.128");
        let table = "NAME   READY\npod/a   1/1\n\nNAME        TYPE           EXTERNAL-IP    PORT(S)\n\
                     service/a   LoadBalancer   10.231.0.128   15021/TCP,80:31000/TCP\n";
        assert_eq!(cell(table, "PORT(S)").unwrap(), "15021/TCP,80:31000/TCP");
        assert_eq!(cell("NAME\n", "NAME"), None);
        assert_eq!(cell(table, "ADDRESS"), None);
    }

    #[test]
    fn a_strange_answer_is_no_half() {
        let said = "hello from backend v1\nhello from backend v2\nhello from backend v1\n";
        assert_eq!(halves(said).unwrap(), (2, 1));
        assert!(halves("no healthy upstream\n").is_err());
    }
}
