//! Frames that are for this machine, as the configuration of the programs holds them.

use std::collections::BTreeSet;

use gateway_common::abi::{Config, mac_word};
use serde::{Deserialize, Serialize};

/// Which frames on the uplinks are for this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// MACs that they carry; none: not known.
    pub macs: BTreeSet<[u8; 6]>,
    /// VLANs in which they are taken.
    pub vlans: BTreeSet<u16>,
}

impl Frames {
    /// As the configuration holds it. More MACs than fit there mean that nobody looks at them; of the VLANs the first ones
    /// fit.
    pub(super) fn write(&self, config: &mut Config) {
        if self.macs.len() <= config.own_macs.len() {
            for (word, mac) in config.own_macs.iter_mut().zip(&self.macs) {
                *word = mac_word(*mac);
            }
        }
        for (place, vlan) in config.vlans.iter_mut().zip(&self.vlans) {
            *place = *vlan;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_macs_are_none_and_of_the_vlans_the_first_ones_fit() {
        let mac = |last: u8| [2, 0, 0, 0, 0, last];
        let mut frames = Frames {
            macs: [mac(1), mac(2)].into(),
            vlans: [9, 7, 5, 3, 1].into(),
        };
        let mut config = Config::default();
        frames.write(&mut config);
        assert_eq!(config.own_macs, [0x0100_0000_0002, 0x0200_0000_0002, 0, 0]);
        assert_eq!(config.vlans, [1, 3, 5, 7]);
        frames.macs = (1..=5).map(mac).collect();
        let mut config = Config::default();
        frames.write(&mut config);
        assert_eq!(config.own_macs, [0; 4]);
    }
}
