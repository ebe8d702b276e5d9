//! Which nodes may be asked for their path, and with what.

use gateway_common::probe::{PATH, VERSION};

use super::{Facts, Policy};
use crate::agent::message::Refusal;
use crate::datapath::PathQuestion;
use crate::l4::tables::Reach;

impl Policy {
    /// Questions for paths: frames go to nodes on the link only, as the agent itself found them, and for VIPs only.
    ///
    /// # Errors
    /// The first one that is not right.
    pub fn paths(&self, questions: &[PathQuestion], facts: &Facts) -> Result<(), Refusal> {
        for PathQuestion {
            node, vip, message, ..
        } in questions
        {
            if message[..2] != [VERSION, PATH] {
                return Err(Refusal::malformed("a question for a path is none"));
            }
            let on_link = |reach: &Reach| reach.resolved && reach.on_link;
            if !facts.others.contains(node) || !facts.reach.get(node).is_some_and(on_link) {
                return Err(Refusal::denied(format!(
                    "{node} is not asked for its path: it is no listed node on a link of this one"
                )));
            }
            if !facts.vips.contains(vip) {
                return Err(Refusal::denied(format!(
                    "no path is asked for with {vip}: it is no VIP in the table"
                )));
            }
        }
        Ok(())
    }
}
