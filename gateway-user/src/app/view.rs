//! What the control task shows to whoever asks: the admin endpoint, the metrics.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::kernel::Kernel;
use crate::drain::Phase;
use crate::file::merge::Problem;
use crate::k8s;
use crate::proxy::Proxy;
use crate::snapshot::Snapshot;
use crate::status::ObjectStatus;

/// One configuration with what became of it.
#[derive(Debug, Default)]
pub struct View {
    /// What is served.
    pub snapshot: Arc<Snapshot>,
    /// The status of every object.
    pub statuses: Arc<Vec<ObjectStatus>>,
    /// What is wrong with the files.
    pub problems: Vec<Problem>,
}

/// The parts of the daemon that others look at.
#[derive(Debug)]
pub struct Shared {
    /// Name of this node.
    pub node: String,
    /// The data plane.
    pub proxy: Proxy,
    /// When the daemon started.
    pub started: Instant,
    view: ArcSwap<View>,
    drain: watch::Sender<Phase>,
    kernel: OnceLock<Kernel>,
    /// Of the API server, if objects come from one.
    pub kubernetes: Option<k8s::Meters>,
}

impl Shared {
    /// Nothing is served yet.
    #[must_use]
    pub fn new(node: String, proxy: Proxy, kubernetes: Option<k8s::Meters>) -> Self {
        Self {
            node,
            kubernetes,
            proxy,
            started: Instant::now(),
            view: ArcSwap::default(),
            drain: watch::Sender::default(),
            kernel: OnceLock::new(),
        }
    }

    /// The thread of the datapath; none with `--datapath off`.
    #[must_use]
    pub fn kernel(&self) -> Option<&Kernel> {
        self.kernel.get()
    }

    /// Names the thread of the datapath, once.
    pub fn set_kernel(&self, kernel: Kernel) {
        // A second one is never started.
        drop(self.kernel.set(kernel));
    }

    /// The newest view.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Shows a new view.
    pub fn set(&self, view: View) {
        self.view.store(Arc::new(view));
    }

    /// How far this node's drain has come.
    #[must_use]
    pub fn drain(&self) -> Phase {
        *self.drain.borrow()
    }

    /// Waits until this node drains or has drained.
    pub async fn drain_begins(&self) {
        let mut drain = self.drain.subscribe();
        // The sender lives in this object.
        let _phase = drain.wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// Shows how far the drain has come.
    pub fn set_drain(&self, phase: Phase) {
        self.drain
            .send_if_modified(|shown| std::mem::replace(shown, phase) != phase);
    }
}
