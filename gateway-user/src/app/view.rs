//! What the control task shows to whoever asks: the admin endpoint, the metrics.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::kernel::Kernel;
use crate::drain::Phase;
use crate::file::merge::Problem;
use crate::proxy::Proxy;
use crate::snapshot::Snapshot;
use crate::status::ObjectStatus;

/// One configuration with what became of it.
#[derive(Debug, Default)]
pub struct View {
    /// What is served.
    pub snapshot: Arc<Snapshot>,
    /// The status of every object.
    pub statuses: Vec<ObjectStatus>,
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
    drain: AtomicU8,
    kernel: OnceLock<Kernel>,
}

impl Shared {
    /// Nothing is served yet.
    #[must_use]
    pub fn new(node: String, proxy: Proxy) -> Self {
        Self {
            node,
            proxy,
            started: Instant::now(),
            view: ArcSwap::default(),
            drain: AtomicU8::new(0),
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
        match self.drain.load(Relaxed) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Drained,
        }
    }

    /// Shows how far the drain has come.
    pub fn set_drain(&self, phase: Phase) {
        self.drain.store(
            match phase {
                Phase::Serving => 0,
                Phase::Draining => 1,
                Phase::Drained => 2,
            },
            Relaxed,
        );
    }
}
