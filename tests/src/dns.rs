//! DNS servers and clients of other people: dnsmasq answers, dig and dnsperf ask.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{eventually::eventually, leftovers::Ledger, netns::Netns};

/// The name that every server knows, each with an address of its own.
pub const NAME: &str = "who.test";

/// One dnsmasq; killed when dropped.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Starts a server that answers [`NAME`] with `answer`, and waits for its first answer.
    ///
    /// # Errors
    /// If dnsmasq is not installed or does not answer.
    pub fn start(
        ledger: &Ledger,
        netns: &Netns,
        address: Ipv4Addr,
        answer: Ipv4Addr,
    ) -> Result<Self> {
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
            ])
            .args([
                "--conf-file=/dev/null",
                "--pid-file=",
                "--user=root",
                "--port=53",
            ])
            .arg(format!("--listen-address={address}"))
            .arg(format!("--address=/{NAME}/{answer}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = netns
            .spawn(&mut command)
            .context("is dnsmasq installed? `cargo xtask setup` does it")?;
        ledger.process(child.id())?;
        let server = Self(child);
        eventually(
            &format!("dnsmasq on {address}"),
            Duration::from_secs(10),
            || match ask(netns, address)? {
                Some(found) if found == answer => Ok(()),
                found => bail!("it answered {found:?}"),
            },
        )?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only for one that ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks a server once for [`NAME`] with dig, from a port of dig's choice; no answer within 2 s is none.
///
/// # Errors
/// If dig cannot be run.
pub fn ask(netns: &Netns, server: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
    let mut dig = Command::new("dig");
    dig.args(["+short", "+tries=1", "+timeout=2", "+notcp"])
        .arg(format!("@{server}"))
        .arg(NAME);
    let done = netns
        .output(&mut dig)
        .context("is dig installed? `cargo xtask setup` does it")?;
    let text = String::from_utf8_lossy(&done.stdout);
    Ok(text.lines().find_map(|line| line.trim().parse().ok()))
}

/// A running dnsperf; killed when dropped.
#[derive(Debug)]
pub struct Load(Option<Child>);

/// What dnsperf saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Queries sent.
    pub sent: u64,
    /// Queries answered.
    pub completed: u64,
    /// Queries without an answer.
    pub lost: u64,
}

impl Load {
    /// Begins to ask `server` for [`NAME`] from `clients` ports, `rate` times a second, for `length`.
    ///
    /// # Errors
    /// If dnsperf is not installed.
    pub fn start(
        ledger: &Ledger,
        netns: &Netns,
        directory: &Path,
        server: Ipv4Addr,
        (clients, rate): (u32, u32),
        length: Duration,
    ) -> Result<Self> {
        let queries = directory.join("queries.txt");
        std::fs::write(&queries, format!("{NAME} A\n"))
            .with_context(|| format!("cannot write {}", queries.display()))?;
        let mut command = Command::new("dnsperf");
        command
            .args(["-s", &server.to_string(), "-t", "3"])
            .args(["-c", &clients.to_string(), "-Q", &rate.to_string()])
            .args(["-l", &length.as_secs().to_string()])
            .arg("-d")
            .arg(&queries)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = netns
            .spawn(&mut command)
            .context("is dnsperf installed? `cargo xtask setup` does it")?;
        ledger.process(child.id())?;
        Ok(Self(Some(child)))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it says nothing that can be read.
    pub fn finish(mut self) -> Result<Tally> {
        let child = self.0.take().context("it has ended already")?;
        let done = child
            .wait_with_output()
            .context("cannot wait for dnsperf")?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .ok_or_else(|| anyhow!("dnsperf does not say {name:?}:\n{text}"))
        };
        Ok(Tally {
            sent: number("Queries sent:")?,
            completed: number("Queries completed:")?,
            lost: number("Queries lost:")?,
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Fails only for one that ended before.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
