//! Whether this node is ready, shared by the readiness endpoint and the proxy's built-in listener on the VIPs.
//!
//! Ready means: every source synced, the translation live, the maps programmed (datapath on) and every listener
//! serving or reported failed. It stays so while draining, until the last VIP socket is gone. The application
//! sets it; whoever answers only reads.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

/// How far the node has come. The default is a node that has just started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The source has been read completely at least once.
    pub source_synced: bool,
    /// What that waits for, where it is known.
    pub waits_for: Option<String>,
    /// A translation has been given to the proxy.
    pub translated: bool,
    /// The kernel's tables hold that translation, or there is no datapath.
    pub maps_programmed: bool,
    /// Listeners that neither serve nor are reported failed.
    pub listeners_open: usize,
    /// Draining has ended: no VIP socket is left.
    pub drained: bool,
}

impl Progress {
    /// Why the node is not ready; `None` = ready.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        if self.drained {
            Some("drained: no connection is left".into())
        } else if !self.source_synced {
            let why = self.waits_for.as_deref();
            Some(why.unwrap_or("the manifests have not been read yet").into())
        } else if !self.translated {
            Some("the configuration is not live yet".into())
        } else if !self.maps_programmed {
            Some("the kernel tables are not programmed yet".into())
        } else if self.listeners_open > 0 {
            Some(format!(
                "{} listeners are not serving yet",
                self.listeners_open
            ))
        } else {
            None
        }
    }
}

/// The shared answer.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<ArcSwapOption<String>>);

impl Default for Readiness {
    fn default() -> Self {
        let readiness = Self(Arc::default());
        readiness.set(&Progress::default());
        readiness
    }
}

impl Readiness {
    /// Takes over how far the node has come.
    pub fn set(&self, progress: &Progress) {
        self.0.store(progress.reason().map(Arc::new));
    }

    /// Why the node is not ready; `None` = ready.
    #[must_use]
    pub fn reason(&self) -> Option<Arc<String>> {
        self.0.load_full()
    }

    /// Status code and body of an answer to `GET /healthz/ready`.
    #[must_use]
    pub fn answer(&self) -> (http::StatusCode, String) {
        match self.reason() {
            None => (http::StatusCode::OK, "ready\n".into()),
            Some(reason) => (
                http::StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {reason}\n"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_reason() {
        let readiness = Readiness::default();
        let mut progress = Progress::default();
        let mut bodies = Vec::new();
        let mut step = |change: fn(&mut Progress)| {
            change(&mut progress);
            readiness.set(&progress);
            let (status, body) = readiness.answer();
            bodies.push((status.as_u16(), body));
        };
        step(|_| ());
        step(|p| p.source_synced = true);
        step(|p| (p.translated, p.listeners_open) = (true, 2));
        step(|p| p.maps_programmed = true);
        step(|p| p.listeners_open = 0);
        step(|p| p.drained = true);
        let want = [
            (503, "not ready: the manifests have not been read yet\n"),
            (503, "not ready: the configuration is not live yet\n"),
            (503, "not ready: the kernel tables are not programmed yet\n"),
            (503, "not ready: 2 listeners are not serving yet\n"),
            (200, "ready\n"),
            (503, "not ready: drained: no connection is left\n"),
        ];
        assert_eq!(bodies, want.map(|(status, body)| (status, body.to_owned())));
    }
}
