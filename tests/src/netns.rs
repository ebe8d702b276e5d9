//! Network namespaces: made by name, entered by a thread of their own.
//!
//! Only the network namespace is entered. `ip netns exec` would also put a new `/sys` over the BPF file
//! system and the cgroups, which the daemon needs.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{eventually::eventually, leftovers::Ledger};

/// A named network namespace; the ledger of the run removes it.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace `<run>-<name>` with its loopback up and IPv6 off. Where that is turned on, interfaces do not look for
    /// duplicates of their addresses: until they have, for up to two seconds, nothing can ask for a neighbour.
    ///
    /// # Errors
    /// The first `ip` command that failed, with what it said.
    pub fn new(ledger: &Ledger, name: &str) -> Result<Self> {
        let name = format!("{}-{name}", ledger.run());
        ledger.namespace(&name)?;
        ip(&format!("netns add {name}"))?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        Ok(netns)
    }

    /// The one that this machine's first process is in, under a name: for a machine that is one box by itself.
    ///
    /// # Errors
    /// The first `ip` command that failed, with what it said.
    pub fn of_machine(ledger: &Ledger) -> Result<Self> {
        let name = format!("{}-machine", ledger.run());
        ledger.namespace(&name)?;
        ip(&format!("netns attach {name} 1"))?;
        let netns = Self { name };
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered; otherwise whatever `work` returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            self.enter()?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
    }

    /// Moves the calling thread into the namespace, for good. A child process starts where its thread is.
    ///
    /// # Errors
    /// If the namespace does not exist or this is not root.
    pub fn enter(&self) -> Result<()> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter namespace {}", self.name))
    }

    /// Starts a program inside the namespace, in a process group of its own: Ctrl-C is for us alone.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        use std::os::unix::process::CommandExt;
        let program = command.get_program().to_string_lossy().into_owned();
        command.process_group(0);
        self.run(|| {
            command
                .spawn()
                .with_context(|| format!("cannot start {program}"))
        })
    }

    /// Runs a program inside the namespace to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null());
        self.run(|| {
            command
                .output()
                .with_context(|| format!("cannot run {program}"))
        })
    }

    /// `ip` inside the namespace; words are separated by spaces.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn ip(&self, words: &str) -> Result<()> {
        ip(&format!("-n {} {words}", self.name)).map(drop)
    }

    /// Loads rules of `nft` inside the namespace, in its own words.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let done = self.output(Command::new("nft").arg(rules))?;
        anyhow::ensure!(
            done.status.success(),
            "nft: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
        Ok(())
    }

    /// Writes a sysctl below `/proc/sys`.
    ///
    /// # Errors
    /// If there is no such sysctl or it refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{path}");
        self.run(|| {
            std::fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
        })
    }

    /// Makes a veth pair between an interface here and one in `other`, both up.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn veth(&self, name: &str, mac: &str, other: &Self, peer: &str) -> Result<()> {
        let there = &other.name;
        // From inside: the kernel refuses a name that the caller's namespace has, wherever the interface is to be.
        self.ip(&format!(
            "link add {name} address {mac} type veth peer name {peer} netns {there}"
        ))?;
        self.ip(&format!("link set {name} up"))?;
        other.ip(&format!("link set {peer} up"))
    }

    /// Makes a bridge, up, without spanning tree.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn bridge(&self, name: &str) -> Result<()> {
        self.ip(&format!(
            "link add {name} type bridge stp_state 0 forward_delay 0"
        ))?;
        self.ip(&format!("link set {name} up"))
    }

    /// Gives an interface an address.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn address(&self, interface: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        self.ip(&format!("address add {address}/{prefix} dev {interface}"))
    }

    /// Turns checksum offload on sending off: packets of native XDP on veth must carry whole checksums.
    ///
    /// # Errors
    /// What `ethtool` said.
    pub fn checksums_in_software(&self, interface: &str) -> Result<()> {
        let done = self.output(Command::new("ethtool").args(["-K", interface, "tx", "off"]))?;
        if !done.status.success() {
            bail!(
                "ethtool -K {interface} tx off: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(())
    }
}

/// Waits until packets to these addresses of the calling thread's namespace reach its own stack. The kernel routes to an
/// address of IPv6 only a while after it has taken it, on a thread of its own.
///
/// # Errors
/// The last try's error, after 10 s.
pub fn wait_local(addresses: impl IntoIterator<Item = impl Into<IpAddr>>) -> Result<()> {
    for address in addresses {
        let address = address.into();
        eventually(
            &format!("a route to {address}"),
            Duration::from_secs(10),
            || {
                // Bound there as well: some other route may lead there, but only an address of this host can be bound to.
                let socket = UdpSocket::bind((address, 0))?;
                socket.connect((address, 9)).map_err(Into::into)
            },
        )?;
    }
    Ok(())
}

/// `ip` in the namespace of the calling thread; words are separated by spaces.
///
/// # Errors
/// What `ip` said.
pub fn ip(words: &str) -> Result<String> {
    let done = Command::new("ip")
        .args(words.split(' '))
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip: is iproute2 installed?")?;
    if !done.status.success() {
        bail!(
            "ip {words}: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
