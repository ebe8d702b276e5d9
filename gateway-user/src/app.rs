//! Starts the parts of `forebay run`, connects them and stops them in order.
//!
//! One control task owns the state that flows: manifests → inputs → addresses → translation → snapshot → proxy →
//! reports → statuses. It runs on a thread of its own, away from the proxy's workers, and decides nothing: what to do
//! with a state is the business of the pure modules.

pub mod kernel;
mod leave;
mod open_files;
mod source;
mod start;
mod steered;
pub mod view;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::admin;
use crate::admin::early::{self, Early};
use crate::admin::server::BindError;
use crate::allocate::Allocations;
use crate::datapath::{self, Lock};
use crate::drain::{Drain, Phase, Signals};
use crate::file::debounce::until;
use crate::file::keys::{self, KeyError};
use crate::file::merge::Problem;
use crate::file::{read, state};
use crate::k8s::{self, NodeReport};
use crate::proxy::held::Held;
use crate::proxy::{StartError, TicketKeys};
use crate::readiness::{Progress, Readiness};
use crate::settings::Settings;
use crate::snapshot::{BindKey, Generation, ReplicaState, Snapshot};
use crate::status::agreement::{self, Agreement};
use crate::status::{self, Report};
use crate::translate::{Context, Inputs, Translator, zone};

use self::kernel::{Kernel, Refused};
use self::source::Source;
use self::start::{endpoints, load_allocations, open_kernel, start_proxy, sync};
use self::steered::Steered;
use self::view::{Shared, View};

/// How often a drain is looked at, and what must be tried again at most.
const TICK: Duration = Duration::from_millis(50);
/// How long after a change memory is given back: the next one would want it again.
const TIDY: Duration = Duration::from_secs(2);

/// Pause before the kernel's tables, or listeners that could not be opened, are tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long idle connections get after the drain has ended.
const LAST_MOMENT: Duration = Duration::from_millis(200);

/// Addresses given out, below the state directory.
const ALLOCATIONS: &str = "allocations.json";

/// Why the daemon could not start or go on. Each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The directory of manifests cannot be read.
    #[error("--config {dir} cannot be read: {why}; give a directory of manifests", dir = .0.display(), why = .1)]
    Config(PathBuf, String),
    /// There is no API server to talk to.
    #[error(transparent)]
    Kubernetes(#[from] k8s::Error),
    /// An endpoint cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No shared keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The proxy cannot be started.
    #[error(transparent)]
    Proxy(#[from] StartError),
    /// The kernel half cannot be set up.
    #[error(transparent)]
    Datapath(datapath::Error),
    /// The kernel half is not ours to set up.
    #[error("{0}, or use --datapath off, which needs none of them")]
    NotPermitted(datapath::Error),
    /// The system refuses a runtime or the signals.
    #[error(
        "the control runtime cannot be started: {0}; check the limits on processes and open files"
    )]
    Runtime(#[from] std::io::Error),
}

impl From<datapath::Error> for RunError {
    fn from(error: datapath::Error) -> Self {
        match error {
            datapath::Error::NotPermitted { .. } => Self::NotPermitted(error),
            other => Self::Datapath(other),
        }
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// See [`RunError`]; nothing is left running then.
pub fn run(settings: Settings) -> Result<(), RunError> {
    // What is freed of a huge page stays charged to the container until the whole page is, or memory runs out.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages are used");
    }
    datapath::keep_freed_memory(0);
    // Before anything that two daemons cannot both have, and kept until all of it is free. Signals have their default action
    // while it waits.
    let lock = Kernel::lock(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match App::start(settings, lock.clone()).await? {
            Some(app) => app.serve().await,
            // Told to stop before there was anything to serve.
            None => Ok(()),
        }
    })
}

/// The control task.
struct App {
    settings: Settings,
    source: Source,
    reported: BTreeSet<Problem>,
    allocations: Allocations,
    /// What it remembers makes a change cost no more than what it touches.
    translator: Translator,
    generation: Generation,
    shared: Arc<Shared>,
    readiness: Readiness,
    progress: Progress,
    /// When the kernel's tables are tried again.
    program_again: Option<Instant>,
    /// Listeners that could not be opened, and why.
    failed: Vec<(BindKey, String)>,
    /// The kernel's tables are those of the configuration.
    programmed: bool,
    /// What the kernel's half was told.
    steered: Steered,
    /// VIPs that this node may not serve, and why.
    refused: Refused,
    /// What all nodes serve.
    agreement: Agreement,
    /// When sockets are tried again.
    listen_again: Option<Instant>,
    /// When to give back what the last change left free.
    tidy_at: Option<Instant>,
    drain: Drain,
    drain_asked: Arc<Notify>,
    /// A signal came: the process ends with the drain.
    stopping: Option<Instant>,
    signals: Signals,
}

impl App {
    /// Starts everything; none if it was told to stop meanwhile.
    async fn start(settings: Settings, lock: Option<Lock>) -> Result<Option<Self>, RunError> {
        let mut signals = Signals::new()?;
        let mut source = Source::open(&settings.source)?;
        let [admin, metrics, ready] = endpoints(&settings).await?;
        let readiness = Readiness::default();
        ready.serve(admin::api::readiness(readiness.clone()));
        // What follows may wait for the API server.
        let admin = Early::serve(admin, early::admin(readiness.clone()));
        let metrics = Early::serve(metrics, admin::metrics::early(source.meters()));
        if !sync(&mut source, &settings, &readiness, &mut signals).await {
            return Ok(None);
        }
        // After the endpoints: a second daemon with other pins, started by mistake, ends before it touches the kernel.
        let mut driver = open_kernel(&settings, &source, lock)?;
        let held = driver.as_ref().map(|driver| Held::new(driver.hash_key()));
        let counted = held.clone();
        open_files::make_room();
        let late = Arc::<OnceLock<Kernel>>::default();
        let proxy = start_proxy(&settings, &readiness, driver.as_mut(), held, &late)?;
        let shared = Arc::new(Shared::new(
            settings.node_name.clone(),
            proxy,
            source.meters(),
        ));
        if let (Some(driver), Some(held)) = (driver, counted) {
            let kernel = Kernel::start(driver, Arc::clone(&shared), settings.probes, held)?;
            shared.set_kernel(late.get_or_init(|| kernel).clone());
        }
        let drain_asked = Arc::new(Notify::new());
        admin.go_on(admin::api::router(
            Arc::clone(&shared),
            Arc::clone(&drain_asked),
        ));
        metrics.go_on(admin::metrics::router(Arc::clone(&shared)));
        let mut app = Self {
            source,
            reported: BTreeSet::new(),
            allocations: load_allocations(&settings),
            translator: Translator::default(),
            generation: 0,
            readiness,
            progress: Progress::default(),
            program_again: None,
            failed: Vec::new(),
            programmed: false,
            steered: Steered::new(shared.kernel()),
            shared,
            refused: Refused::new(),
            agreement: Agreement::default(),
            tidy_at: None,
            listen_again: None,
            drain: Drain::new(settings.drain_timeout),
            drain_asked,
            stopping: None,
            signals,
            settings,
        };
        app.reconfigure().await;
        start::tell_fallbacks(&app.shared, &app.source).await;
        datapath::settle_memory();
        Ok(Some(app))
    }

    async fn serve(mut self) -> Result<(), RunError> {
        let drain_asked = Arc::clone(&self.drain_asked);
        let mut looked = Instant::now();
        loop {
            let wake = self.due().map(|due| due.max(looked + TICK));
            tokio::select! {
                () = self.source.next() => self.reconfigure().await,
                () = self.steered.refuses() => self.reconfigure().await,
                () = self.signals.next() => {
                    if self.stopping.is_some() {
                        tracing::warn!("told to stop again: stopping at once");
                        break;
                    }
                    self.stopping = Some(Instant::now());
                    self.start_drain(true);
                }
                () = drain_asked.notified() => self.start_drain(true),
                () = until(wake) => {
                    looked = Instant::now();
                    if self.tick() == Phase::Drained && self.drain.is_known(self.stopping, looked) {
                        break;
                    }
                    self.program_again().await;
                    self.listen_again().await;
                    if self.agreement.due().is_some_and(|due| due <= looked) {
                        self.reconfigure().await;
                    }
                    if self.tidy_at.take_if(|at| *at <= looked).is_some() {
                        datapath::return_freed_memory();
                    }
                }
            }
        }
        let last_moment = Instant::now() + LAST_MOMENT;
        if self.shared.proxy.open_connections() > 0 {
            // While VIPs are local: else nobody hears of his connection's end. With none open, a SYN that comes now is better lost.
            self.shared.proxy.shutdown(last_moment);
        }
        if let Some(kernel) = self.shared.kernel() {
            kernel.stop().await;
        }
        self.shared.proxy.shutdown(last_moment);
        self.source.stop().await;
        tracing::info!("stopped");
        Ok(())
    }

    /// The keys of probes and session tickets may change while we run; that of the flow hash never does.
    fn follow_keys(&self, inputs: &Inputs) {
        match keys::from_secret(inputs) {
            Ok(Some(keys)) => {
                if let Some(current) = keys.ticket {
                    let previous = keys.ticket_previous.as_ref().map(<[u8; 16]>::as_slice);
                    let tickets = TicketKeys::new(&current, previous);
                    self.shared.proxy.set_ticket_keys(tickets);
                }
                if let Some(kernel) = self.shared.kernel() {
                    kernel.set_probe_keys(keys.probe_keys());
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!("the keys stay as they were: {error}"),
        }
    }

    /// Takes the objects as they are now all the way to the proxy and the statuses.
    async fn reconfigure(&mut self) {
        let problems = self.source.problems();
        for problem in problems.difference(&self.reported) {
            tracing::error!("{problem}");
        }
        self.reported.clone_from(&problems);
        let allocations = self.source.allocate(&self.allocations);
        let inputs = self.source.inputs();
        let context = Context {
            on_cluster: self.source.on_cluster(),
            allocations: &allocations,
            zone: zone(inputs, &self.settings.node_name),
        };
        let mut translation = self.translator.translate(inputs, &context);
        self.generation += 1;
        translation.snapshot.generation = self.generation;
        self.follow_keys(inputs);
        let published = self.shared.proxy.publish(&translation.snapshot);
        for (bind, why) in new_failures(&self.failed, &published.failed) {
            tracing::error!(listener = %std::net::SocketAddr::from(*bind), "{why}");
        }
        let snapshot = Arc::new(translation.snapshot.clone());
        self.refused = self.program(&snapshot).await;
        self.source.is_live();
        self.listen_again = (!published.failed.is_empty()).then(|| Instant::now() + AGAIN);
        self.failed = published.failed;
        let reports = self.reports(&snapshot);
        let view = View {
            statuses: Arc::new(status::merge(&translation, &reports)),
            snapshot,
            problems: problems.into_iter().collect(),
        };
        tracing::info!(
            generation = self.generation,
            listeners = view.snapshot.binds.len(),
            rules = view.snapshot.rules.len(),
            clusters = view.snapshot.clusters.len(),
            "configuration is live"
        );
        self.source.publish(&view.statuses);
        self.shared.set(view);
        self.follow_list();
        if allocations != self.allocations {
            self.allocations = allocations;
            self.save_allocations();
        }
        self.tidy_at = Some(Instant::now() + TIDY);
        self.progress.source_synced = true;
        self.progress.translated = true;
        self.readiness.set(&self.progress);
    }

    /// Says what this node serves, and returns what is known of that of all nodes.
    fn reports(&mut self, snapshot: &Snapshot) -> Vec<Report> {
        let failed = self.failed.iter().chain(&self.refused);
        let mut own = Report {
            node: self.settings.node_name.clone(),
            generation: self.generation,
            failed_listeners: failed.cloned().collect(),
            ..Report::default()
        };
        if !self.source.on_cluster() {
            return vec![own];
        }
        let fingerprint = agreement::fingerprint(snapshot, self.source.inputs());
        if self.programmed {
            self.source.report(NodeReport {
                fingerprint,
                failed_listeners: own.failed_listeners.clone(),
            });
        }
        let said = self.source.reports();
        let (mut others, mut lagging) = (Vec::new(), Vec::new());
        let ready = snapshot.replicas.iter();
        for replica in ready.filter(|r| r.state == ReplicaState::Ready && r.name != own.node) {
            let said = said.and_then(|said| said.get(&replica.name));
            if said.is_none_or(|said| said.fingerprint != fingerprint) {
                lagging.push(replica.name.clone());
            }
            others.extend(said.map(|said| Report {
                node: replica.name.clone(),
                failed_listeners: said.failed_listeners.clone(),
                ..Report::default()
            }));
        }
        let binds = snapshot.binds.iter();
        let binds = binds.map(|(key, bind)| (*key, bind.gateway.clone()));
        let leads = said.is_some();
        own.pending_listeners = self.agreement.look(binds, leads, &lagging, Instant::now());
        others.insert(0, own);
        others
    }

    /// Tries again to open what could not be opened: whoever had the port may be gone. Statuses follow if anything changed.
    async fn listen_again(&mut self) {
        if self.listen_again.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let snapshot = Arc::clone(&self.shared.view().snapshot);
        if self.shared.proxy.publish(&snapshot).failed == self.failed {
            self.listen_again = Some(Instant::now() + AGAIN);
        } else {
            self.reconfigure().await;
        }
    }

    /// Tries again what the kernel's half did not do: what stood in the way may be gone, as pools that an agent had not read
    /// yet. Statuses follow if anything changed.
    async fn program_again(&mut self) {
        if self.program_again.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let snapshot = Arc::clone(&self.shared.view().snapshot);
        let before = self.programmed;
        if self.program(&snapshot).await == self.refused && self.programmed == before {
            self.readiness.set(&self.progress);
        } else {
            self.reconfigure().await;
        }
    }

    /// Brings the kernel's tables in line; what fails or is refused is tried again. Returns what this node may not serve.
    async fn program(&mut self, snapshot: &Snapshot) -> Refused {
        let programmed = self.steered.follow(&self.shared, snapshot).await;
        self.programmed = programmed.is_ok();
        self.progress.maps_programmed |= self.programmed;
        let again = programmed
            .as_ref()
            .map_or(true, |refused| !refused.is_empty());
        self.program_again = again.then(|| Instant::now() + AGAIN);
        programmed.unwrap_or_else(|why| {
            tracing::error!("the kernel tables cannot follow the configuration: {why}");
            self.refused.clone()
        })
    }

    /// On a cluster they are in the statuses.
    fn save_allocations(&self) {
        if self.allocations.gateways.is_empty() || self.source.on_cluster() {
            return;
        }
        let path = self.settings.state_dir.join(ALLOCATIONS);
        let result = serde_json::to_vec_pretty(&self.allocations)
            .map_err(std::io::Error::other)
            .and_then(|bytes| state::write(&path, &bytes));
        if let Err(error) = result {
            tracing::warn!(
                "addresses from pools may change at the next start: {} cannot be written: {}; give a directory that can be written with --state-dir",
                path.display(),
                read::phrase(&error)
            );
        }
    }

    /// When there is something to look at though nobody says so: an idle node has nothing.
    fn due(&self) -> Option<Instant> {
        let drain = (self.drain.phase() != Phase::Serving).then(Instant::now);
        let all = [
            drain,
            self.program_again,
            self.listen_again,
            self.agreement.due(),
            self.tidy_at,
        ];
        all.into_iter().flatten().min()
    }
}

/// What did not fail in the same way before: the log says it once, however often the configuration changes meanwhile.
fn new_failures<'a>(
    before: &'a [(BindKey, String)],
    now: &'a [(BindKey, String)],
) -> impl Iterator<Item = &'a (BindKey, String)> {
    now.iter().filter(|failure| !before.contains(failure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Transport;

    #[test]
    fn a_listener_that_stays_closed_is_told_once() {
        let failure = |port, why: &str| {
            let vip = std::net::SocketAddr::from(([192, 0, 2, 1], port));
            (BindKey::new(vip, Transport::Tcp), why.to_owned())
        };
        let before = [failure(80, "in use"), failure(81, "in use")];
        let now = [
            failure(80, "in use"),
            failure(81, "not permitted"),
            failure(82, "in use"),
        ];
        let told: Vec<_> = new_failures(&before, &now).collect();
        assert_eq!(told, [&now[1], &now[2]]);
        assert_eq!(new_failures(&[], &before).count(), 2);
    }
}
