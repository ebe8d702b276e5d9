//! The ranges of the AddressPools, followed for whoever has to know which addresses may be VIPs and nothing else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};

use super::health::Health;
use super::manager::Manager;
use super::seen::Seen;
use super::start::{Error, WAITING, on_thread};
use super::store::Store;
use super::watcher::Told;
use crate::allocate::PoolRange;
use crate::translate::{Inputs, Kind};

/// Ranges as they are now. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Ranges(Arc<Mutex<Option<Vec<PoolRange>>>>);

impl Ranges {
    /// Connects, which needs no answer yet, and follows the pools on a thread of its own until the process ends.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn follow(&self) -> Result<(), Error> {
        let of_thread = self.clone();
        on_thread(|client| ((), async move { of_thread.run(client).await }))
    }

    /// Those of all pools; none: they have not been read yet.
    #[must_use]
    pub fn now(&self) -> Option<Vec<PoolRange>> {
        let ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.clone()
    }

    pub(super) async fn run(&self, client: kube::Client) {
        let (told, mut changes) = mpsc::channel(WAITING);
        // Nothing is wanted of Secrets; the end of it would end the manager.
        let (_want, wanted) = watch::channel(BTreeSet::new());
        let manager = Manager {
            client,
            kinds: &[Kind::AddressPool],
            namespaces: Vec::new(),
            wanted,
            told,
            seen: Seen::default(),
            health: Health::default(),
        };
        tokio::join!(manager.run(), async {
            let mut store = Store::default();
            let mut read = false;
            while let Some(told) = changes.recv().await {
                match told {
                    // Without the definition there are no pools.
                    Told::Watching(list) => {
                        read |= list.is_empty();
                        store.retain(|id| list.iter().any(|watched| watched.holds(id)));
                    }
                    Told::Changes(changes) => drop(store.apply(changes)),
                    Told::Synced(_) => read = true,
                }
                if read {
                    let ranges = of_pools(store.inputs());
                    *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ranges);
                }
            }
        });
    }
}

/// The ranges of all pools; those that cannot be read are left out.
#[must_use]
pub fn of_pools(inputs: &Inputs) -> Vec<PoolRange> {
    let pools = inputs.address_pools.values();
    let ranges = pools.flat_map(|pool| pool.spec.ranges.iter());
    ranges
        .filter_map(|text| PoolRange::parse(text).ok())
        .collect()
}
