//! Everything together: topology, manifests, daemons, backends, client.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    backend::Backends,
    client::{Client, Finished, Load, Outcome},
    daemon::{Daemon, Settings},
    eventually::eventually,
    fixture::{Fixture, HOST, Replica, ReplicaState},
    leftovers::Ledger,
    machine::patience,
    steering::Steering,
    topology::{BACKENDS_V1, BACKENDS_V2, CLIENT, Site, Topology, UPLINK},
};

/// The quick start's VIP: the first address of its pool, and the Gateway's port.
pub const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 100), 80);

/// Longest time for a change of the manifests to reach every node's tables.
pub const CHANGE: Duration = Duration::from_secs(5);

/// Patience for what takes the nodes a second or two where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What differs between rigs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Forebay nodes, 1 to 9.
    pub nodes: u8,
    /// `--forward`.
    pub forward: String,
    /// Base ejection time and interval of the DestinationRules, in seconds.
    pub ejection_seconds: u32,
    /// `--drain-timeout`.
    pub drain_timeout: Duration,
    /// `--workers`.
    pub workers: Option<usize>,
    /// More words of each daemon's command line.
    pub words: &'static [&'static str],
    /// A program, with its words, that becomes each daemon: what limits it.
    pub under: &'static [&'static str],
    /// The first node's uplink is a card of the virtual machine that this runs in.
    pub card: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            forward: "auto".into(),
            ejection_seconds: 30,
            drain_timeout: Duration::from_secs(15),
            workers: None,
            words: &[],
            under: &[],
            card: false,
        }
    }
}

/// A running set of nodes. Fields are dropped in this order: daemons end before their namespaces go.
#[derive(Debug)]
pub struct Rig {
    /// The daemons, in the order of the nodes.
    pub daemons: Vec<Daemon>,
    /// The backends.
    pub backends: Backends,
    /// The client.
    pub client: Client,
    /// The manifests.
    pub fixture: Fixture,
    /// The namespaces.
    pub topology: Topology,
    /// How daemons are started.
    pub settings: Settings,
    /// First local port not yet used by [`Self::ports`], for each node.
    used: Vec<usize>,
    ledger: Ledger,
}

impl Rig {
    /// Makes everything and waits until every node is ready and the first request is answered.
    ///
    /// # Errors
    /// The first step that failed; what was made is removed again.
    pub fn start(ledger: Ledger, options: &Options) -> Result<Self> {
        let directory = PathBuf::from("/run").join(ledger.run());
        ledger.directory(&directory)?;
        let topology = if options.card {
            Topology::with_card(&ledger, options.nodes)?
        } else {
            Topology::new(&ledger, options.nodes)?
        };
        let replica = |site: &Site| Replica {
            name: site.name.clone(),
            address: site.address,
            state: ReplicaState::Ready,
        };
        let fixture = Fixture::new(
            &directory.join("config"),
            topology.nodes.iter().map(replica).collect(),
        )?;
        if options.ejection_seconds != 30 {
            fixture.replace(
                "destination-rules.yaml",
                "30s",
                &format!("{}s", options.ejection_seconds),
            )?;
        }
        let v1 = BACKENDS_V1
            .iter()
            .map(|&address| (address, "hello from backend v1"));
        let v2 = BACKENDS_V2
            .iter()
            .map(|&address| (address, "hello from backend v2"));
        let backends = Backends::start(&topology.backends, &v1.chain(v2).collect::<Vec<_>>())?;
        let settings = Settings {
            config: fixture.directory().to_path_buf(),
            directory,
            forward: options.forward.clone(),
            drain_timeout: options.drain_timeout,
            workers: options.workers,
            words: options.words,
            under: options.under,
        };
        let client = Client::new(&topology.client, CLIENT);
        let used = vec![0; topology.nodes.len()];
        let mut rig = Self {
            daemons: Vec::new(),
            backends,
            client,
            fixture,
            topology,
            settings,
            used,
            ledger,
        };
        rig.start_all()?;
        Ok(rig)
    }

    /// The run's ledger.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Ends all daemons in an orderly way and starts them with another `--forward`.
    ///
    /// # Errors
    /// If one does not end or does not become ready.
    pub fn restart_with_forward(&mut self, forward: &str) -> Result<()> {
        forward.clone_into(&mut self.settings.forward);
        let bound = self.settings.drain_timeout + Duration::from_secs(10);
        for daemon in &mut self.daemons {
            daemon.terminate(bound)?;
        }
        self.start_all()
    }

    /// Starts the daemon of one node again.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_again(&mut self, index: usize) -> Result<()> {
        let mut daemon = Daemon::start(&self.ledger, &self.topology.nodes[index], &self.settings)?;
        daemon.wait_ready()?;
        self.daemons[index] = daemon;
        Ok(())
    }

    /// Says in the manifests where a node's replica is in its life.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn mark(&mut self, index: usize, state: ReplicaState) -> Result<()> {
        let name = self.topology.nodes[index].name.clone();
        self.fixture.set_replicas(|replicas| {
            for replica in replicas.iter_mut().filter(|replica| replica.name == name) {
                replica.state = state;
            }
        })
    }

    /// Waits until a node that drains stops being ready: its last socket is gone.
    ///
    /// # Errors
    /// If that does not happen within the drain timeout and a bit.
    pub fn wait_drained(&self, index: usize) -> Result<()> {
        let daemon = &self.daemons[index];
        let what = format!("the end of {}'s drain", daemon.site().name);
        let bound = self.settings.drain_timeout + CHANGE;
        eventually(&what, bound, || match daemon.readiness() {
            Ok((200, _)) => bail!("it still holds sockets"),
            _ => Ok(()),
        })
    }

    /// A pod ends in an orderly way, and its endpoint goes, as in Kubernetes.
    ///
    /// # Errors
    /// If the daemon does not end within the drain timeout and a bit.
    pub fn leave(&mut self, index: usize) -> Result<()> {
        let bound = self.settings.drain_timeout + patience(CHANGE);
        self.daemons[index].terminate(bound)?;
        let name = self.topology.nodes[index].name.clone();
        self.fixture
            .set_replicas(|replicas| replicas.retain(|replica| replica.name != name))
    }

    /// A new pod in the place of one that has left: listed, started, ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn come_back(&mut self, index: usize) -> Result<()> {
        let site = &self.topology.nodes[index];
        let replica = Replica {
            name: site.name.clone(),
            address: site.address,
            state: ReplicaState::Joining,
        };
        self.fixture
            .set_replicas(|replicas| replicas.push(replica))?;
        self.start_again(index)?;
        self.mark(index, ReplicaState::Ready)
    }

    /// The node that says that it speaks for [`VIP`].
    ///
    /// # Errors
    /// If none or more than one does.
    pub fn announcer(&self) -> Result<usize> {
        let vip = VIP.ip().to_string();
        let mut speakers = Vec::new();
        for (index, daemon) in self.daemons.iter().enumerate() {
            let status = daemon.status()?;
            let announcing = status["datapath"]["announcing"].as_array();
            if announcing.is_some_and(|all| all.iter().any(|address| *address == *vip)) {
                speakers.push(index);
            }
        }
        match speakers[..] {
            [one] => Ok(one),
            _ => bail!("nodes that speak for {vip}, from 0: {speakers:?}"),
        }
    }

    /// Lets the client find the VIP by asking the link, no longer by an entry that a test has made.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn ask_the_link(&self) -> Result<()> {
        let client = &self.topology.client;
        client.ip(&format!("neigh del {} dev {UPLINK}", VIP.ip()))
    }

    /// Makes the switch deliver to this node.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn deliver_to(&self, index: usize) -> Result<()> {
        self.topology.deliver_to(index, *VIP.ip())
    }

    /// Owners as they should be with the replicas as they are written.
    #[must_use]
    pub fn steering(&self) -> Steering {
        let replicas = self.fixture.replicas();
        let member =
            |replica: &'_ Replica| (replica.name.clone(), replica.state == ReplicaState::Ready);
        Steering::new(self.fixture.seed(), replicas.iter().map(member))
    }

    /// `count` local ports, not used before, whose connections belong to this node.
    ///
    /// # Errors
    /// If the node owns too few.
    pub fn ports(&mut self, index: usize, count: usize) -> Result<Vec<u16>> {
        let site = self
            .topology
            .nodes
            .get(index)
            .with_context(|| format!("there is no node {}", index + 1))?;
        let ports = self.steering().ports_of(&site.name, CLIENT, VIP);
        let from = self.used[index];
        let Some(chosen) = ports.get(from..from + count) else {
            bail!(
                "{} owns {} ports, {} are used and {count} more are wanted",
                site.name,
                ports.len(),
                from
            );
        };
        self.used[index] += count;
        Ok(chosen.to_vec())
    }

    /// A load to the VIP whose connections all belong to one node, which the switch delivers to as well.
    ///
    /// # Errors
    /// If the node owns too few ports.
    pub fn load_through(&mut self, index: usize, host: &str, count: usize) -> Result<Load> {
        self.deliver_to(index)?;
        Ok(Load {
            ports: self.ports(index, count)?,
            ..Load::new(VIP, host, count)
        })
    }

    /// Polls through one node until `host` answers 200.
    ///
    /// # Errors
    /// The last answer, after 30 s.
    pub fn wait_served(&mut self, index: usize, host: &str) -> Result<()> {
        eventually(&format!("an answer of {host}"), patience(PATIENCE), || {
            let load = Load {
                timeout: Duration::from_secs(2),
                ..self.load_through(index, host, 1)?
            };
            let finished = self.client.send(load)?;
            match finished.first().map(|request| &request.outcome) {
                Some(Outcome::Answer(answer)) if answer.status == 200 => Ok(()),
                other => bail!("{other:?}"),
            }
        })
    }

    /// Waits until every node's table is the one of [`Self::steering`] and every node holds every other for well:
    /// from then on a new connection belongs to the node that [`Self::owner_of`] names.
    ///
    /// # Errors
    /// What still differs, after 30 s.
    pub fn wait_agreed(&self) -> Result<()> {
        let shares = self.steering().shares();
        for daemon in &self.daemons {
            let what = format!("the agreed table on {}", daemon.site().name);
            eventually(&what, patience(PATIENCE), || {
                agrees(&daemon.status()?, &shares)
            })?;
        }
        Ok(())
    }

    /// The name of the node that owns a finished request's connection.
    #[must_use]
    pub fn owner_of(steering: &Steering, finished: &Finished) -> String {
        let client = SocketAddrV4::new(CLIENT, finished.port);
        steering.owner(client, VIP).unwrap_or("none").to_owned()
    }

    fn start_all(&mut self) -> Result<()> {
        self.daemons.clear();
        for site in &self.topology.nodes {
            self.daemons
                .push(Daemon::start(&self.ledger, site, &self.settings)?);
        }
        for daemon in &mut self.daemons {
            daemon.wait_ready()?;
        }
        for index in 0..self.daemons.len() {
            self.wait_served(index, HOST)?;
        }
        self.wait_agreed()?;
        self.backends.forget_all();
        Ok(())
    }
}

/// Whether a node's status shows these nodes with these numbers of rows, and none of them unwell.
///
/// # Errors
/// What differs.
pub fn agrees(status: &Value, shares: &BTreeMap<String, usize>) -> Result<()> {
    let nodes = status["datapath"]["nodes"].as_array();
    let nodes = nodes.context("the status lists no nodes")?;
    let rows = |node: &Value| {
        let name = node["name"].as_str().unwrap_or_default().to_owned();
        let rows = node["rows"].as_u64().and_then(|n| usize::try_from(n).ok());
        (name, rows.unwrap_or(usize::MAX))
    };
    let owned: BTreeMap<String, usize> = nodes.iter().map(rows).collect();
    ensure!(owned == *shares, "rows {owned:?} instead of {shares:?}");
    for node in nodes {
        let probes = &node["probes"];
        let well =
            probes.is_null() || probes["standing"] == "answering" && probes["proxy_alive"] == true;
        ensure!(well && node["dead"] == false, "{node} is not well");
    }
    Ok(())
}
