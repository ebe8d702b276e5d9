//! Where packets go, as the kernel's half was last told.
//!
//! Most changes are about what is said over connections: the kernel's half has nothing to do for them and is not asked.

use std::sync::Arc;

use tokio::sync::watch;

use super::kernel::{Kernel, Refused};
use super::view::Shared;
use crate::snapshot::Snapshot;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Steered {
    /// What it was told if all of it could be done: the part of the snapshot, and the sockets that packets end in, as
    /// [`crate::proxy::Proxy::listeners`] has them.
    told: Option<(Snapshot, Vec<u64>)>,
    /// What it refuses; none without a kernel's half.
    refused: Option<watch::Receiver<Refused>>,
}

impl Steered {
    pub(super) fn new(kernel: Option<&Kernel>) -> Self {
        Self {
            told: None,
            refused: kernel.map(Kernel::refused),
        }
    }

    /// Brings the kernel's tables in line with a snapshot whose sockets are open, if they are not. Returns what this node may
    /// not serve.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) async fn follow(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
    ) -> Result<Refused, String> {
        let Some(kernel) = shared.kernel() else {
            return Ok(Refused::new());
        };
        let listeners = shared.proxy.listeners();
        let told = self.told.as_ref();
        if told.is_some_and(|(last, sockets)| *sockets == listeners && last.steers_like(snapshot)) {
            return Ok(Refused::new());
        }
        self.told = None;
        let steering = snapshot.steering();
        let refused = kernel.publish(Arc::new(steering.clone())).await?;
        if refused.is_empty() {
            self.told = Some((steering, listeners));
        }
        Ok(refused)
    }

    /// Waits until something is refused of what could be done. Safe to cancel.
    pub(super) async fn refuses(&mut self) {
        // Else it is asked for again anyway.
        if self.told.is_some()
            && let Some(refused) = &mut self.refused
            && refused.wait_for(|now| !now.is_empty()).await.is_ok()
        {
            self.told = None;
            return;
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::BindKey;

    #[tokio::test]
    async fn what_is_refused_later_is_asked_for_again() {
        let (sender, refused) = watch::channel(Refused::new());
        let mut steered = Steered {
            told: Some((Snapshot::default(), vec![1])),
            refused: Some(refused),
        };
        let soon = std::time::Duration::ZERO;
        let waits = tokio::time::timeout(soon, steered.refuses()).await;
        assert!(waits.is_err(), "nothing is refused");
        let vip = BindKey::from(std::net::SocketAddr::from(([192, 0, 2, 1], 80)));
        sender.send_replace(vec![(vip, "no".to_owned())]);
        steered.refuses().await;
        assert!(steered.told.is_none(), "it is told anew");
        let waits = tokio::time::timeout(soon, steered.refuses()).await;
        assert!(waits.is_err(), "it is asked for again anyway");
    }
}
