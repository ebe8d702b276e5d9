//! Whom a driver has probed.

use gateway_common::rendezvous::name_hash;

use super::Driver;
use crate::datapath::prober::{Target, Targets};
use crate::l4::liveness::PeerId;
use crate::l4::tables::ListedNode;

impl Driver {
    /// Whom to probe with the tables as they are.
    pub(super) fn targets(&self) -> Targets {
        let settings = self.planner.settings();
        let hash = |node: &ListedNode| name_hash(settings.hash_key, &node.member.name);
        let mut targets = Targets {
            fingerprint: self.planner.fingerprint(),
            port: settings.probe_port,
            keys: settings.probe_keys,
            ..Targets::default()
        };
        for node in self.planner.listed() {
            let address = node.member.address;
            if node.own {
                targets.own = Some((address, node.index, hash(node)));
                continue;
            }
            targets.peers.push(Target {
                id: PeerId {
                    name: node.member.name.clone(),
                    name_hash: hash(node),
                    address,
                },
                index: node.index,
                episode: node.member.episode.is_some(),
            });
        }
        targets
    }
}
