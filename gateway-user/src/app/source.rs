//! Where objects come from: files, or the API server.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::RunError;
use crate::allocate::{self, Allocation, Allocations, allocate};
use crate::file::merge::{Files, Problem};
use crate::file::{keys, read, watch::Watch};
use crate::k8s;
use crate::settings;
use crate::snapshot::ObjectKey;
use crate::status::ObjectStatus;
use crate::translate::Inputs;

/// The objects as they are now.
pub(super) enum Source {
    Files {
        watch: Box<Watch>,
        files: Box<Files>,
    },
    Kubernetes(Box<k8s::Source>),
}

impl Source {
    /// Reads files; of an API server nothing has been read then.
    pub(super) fn open(source: &settings::Source) -> Result<Self, RunError> {
        match source {
            settings::Source::Files(directory) => Self::files(directory),
            settings::Source::Kubernetes(options) => {
                let source = k8s::start(options.clone())?;
                Ok(Self::Kubernetes(Box::new(source)))
            }
        }
    }

    fn files(directory: &Path) -> Result<Self, RunError> {
        let mut files = Files::default();
        let listing = read::read(directory, &BTreeSet::new());
        if let Some(why) = listing.unreadable.get("") {
            return Err(RunError::Config(directory.to_owned(), why.clone()));
        }
        files.update(listing);
        Ok(Self::Files {
            watch: Box::new(Watch::new(directory)),
            files: Box::new(files),
        })
    }

    /// Whether the objects come from Kubernetes.
    pub(super) fn on_cluster(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }

    /// What has to come before anything can be served; none: it is there. With `keys`: those that the nodes share too.
    pub(super) fn waits_for(&self, keys: bool) -> Option<String> {
        let Self::Kubernetes(source) = self else {
            return None;
        };
        let no_keys = || {
            let key = ObjectKey::new(keys::NAMESPACE, keys::NAME);
            (keys && !source.inputs().secrets.contains_key(&key))
                .then(|| format!("Secret {key} is not there yet"))
        };
        source.waits_for().or_else(no_keys)
    }

    /// Waits for changes. Safe to cancel.
    pub(super) async fn next(&mut self) {
        match self {
            Self::Files { watch, files } => while !files.update(watch.next().await) {},
            Self::Kubernetes(source) => source.next().await,
        }
    }

    pub(super) fn inputs(&self) -> &Inputs {
        match self {
            Self::Files { files, .. } => &files.merged().inputs,
            Self::Kubernetes(source) => source.inputs(),
        }
    }

    pub(super) fn problems(&self) -> BTreeSet<Problem> {
        match self {
            Self::Files { files, .. } => files.merged().problems.clone(),
            Self::Kubernetes(source) => source.problems(),
        }
    }

    /// What is counted of the conversation with an API server.
    pub(super) fn meters(&self) -> Option<k8s::Meters> {
        match self {
            Self::Files { .. } => None,
            Self::Kubernetes(source) => Some(source.meters()),
        }
    }

    /// What was read last is live.
    pub(super) fn is_live(&mut self) {
        if let Self::Kubernetes(source) = self {
            source.is_live();
        }
    }

    /// Has the objects carry these statuses, where they are objects of a cluster.
    pub(super) fn publish(&mut self, statuses: &Arc<Vec<ObjectStatus>>) {
        if let Self::Kubernetes(source) = self {
            source.publish(Arc::clone(statuses));
        }
    }

    /// Tells the node that writes statuses what this one serves.
    pub(super) fn report(&self, report: k8s::NodeReport) {
        if let Self::Kubernetes(source) = self {
            source.report(report);
        }
    }

    /// Says something about this node where the objects of a cluster are.
    pub(super) fn remark(&self, remark: k8s::Remark) {
        if let Self::Kubernetes(source) = self {
            source.remark(remark);
        }
    }

    /// What the other nodes say, if this one writes statuses.
    pub(super) fn reports(&self) -> Option<&k8s::Reports> {
        match self {
            Self::Kubernetes(source) if source.leads() => Some(source.reports()),
            Self::Kubernetes(_) | Self::Files { .. } => None,
        }
    }

    /// Ends what it does besides reading.
    pub(super) async fn stop(self) {
        if let Self::Kubernetes(source) = self {
            source.stop().await;
        }
    }

    /// Which Gateway has which addresses. `before`: the last answer, or what was kept of it.
    pub(super) fn allocate(&self, before: &Allocations) -> Allocations {
        let Self::Kubernetes(source) = self else {
            return allocate(self.inputs(), false, before);
        };
        let mut existing = Allocations::default();
        for (key, addresses) in source.addresses() {
            let addresses = addresses.clone();
            let problem = None;
            let allocation = Allocation { addresses, problem };
            existing.gateways.insert(key.clone(), allocation);
        }
        if !source.leads() {
            return allocate::follow(source.inputs(), &existing);
        }
        // What has just been given out is not in any status yet.
        existing.gateways.extend(before.gateways.clone());
        allocate(source.inputs(), true, &existing)
    }
}
