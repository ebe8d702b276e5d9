//! Leaving: by this node's own decision, or as long as the list of replicas says so.

use std::time::Instant;

use super::App;
use crate::drain::Phase;
use crate::snapshot::{Replica, ReplicaState};

impl App {
    /// Begins to drain where the list says that this node does, and serves as before where it says so no more.
    pub(super) fn follow_list(&mut self) {
        let leaves = |replica: &Replica| {
            replica.name == self.settings.node_name && replica.state == ReplicaState::Draining
        };
        if self.shared.view().snapshot.replicas.iter().any(leaves) {
            self.start_drain(false);
        } else if self.drain.take_back() {
            tracing::info!("the list of replicas does not say any more that this node drains");
            self.progress.drained = false;
            self.shared.set_drain(self.drain.phase());
            self.shared.proxy.end_drain();
        }
    }

    /// Begins to drain unless that has happened already. The kernel is told of its `own` decision alone: the list may change.
    pub(super) fn start_drain(&mut self, own: bool) {
        if let Some(kernel) = self.shared.kernel().filter(|_| own) {
            kernel.drain();
        }
        if !self.drain.start(Instant::now(), own) {
            return;
        }
        tracing::info!(
            open = self.shared.proxy.open_connections(),
            "draining; ends with the last connection, at the latest after {:?}",
            self.settings.drain_timeout
        );
        self.shared.set_drain(self.drain.phase());
        self.shared.proxy.drain();
    }

    /// Looks how far the drain has come.
    pub(super) fn tick(&mut self) -> Phase {
        let proxy = &self.shared.proxy;
        let open = proxy.open_connections() + proxy.open_sessions();
        let phase = self.drain.look(Instant::now(), open);
        self.shared.set_drain(phase);
        if phase == Phase::Drained && !self.progress.drained {
            tracing::info!(open, "drained");
            self.progress.drained = true;
            self.readiness.set(&self.progress);
        }
        phase
    }
}
