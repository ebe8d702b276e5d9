//! Whether the local proxy is alive, and how many second-chance hops it may cost.
//!
//! Both keep a word or two in the state array. CPUs race on them without harm: a lost update delays a judgement
//! by one packet.

use super::Tables;
use crate::abi::{LiveConfig, state};

/// Whether the proxy has beaten, and lately enough. A limit of 0 jiffies means that it is not watched.
#[inline(always)]
pub(super) fn proxy_alive<T: Tables>(tables: &T, config: LiveConfig<'_>) -> bool {
    if config.beat_limit_jiffies() == 0 {
        return true;
    }
    let beat = tables.heartbeat();
    if beat == 0 {
        return false;
    }
    let now = tables.jiffies();
    if tables.state(state::BEAT_VALUE) != beat {
        // The time first: whoever sees the new value must not meet the old time.
        tables.set_state(state::BEAT_JIFFIES, now);
        tables.set_state(state::BEAT_VALUE, beat);
        return true;
    }
    now.wrapping_sub(tables.state(state::BEAT_JIFFIES)) <= u64::from(config.beat_limit_jiffies())
}

/// Takes one second-chance hop from this window's budget. A limit of 0 means that there is none.
#[inline(always)]
pub(super) fn take_hop<T: Tables>(tables: &T, config: LiveConfig<'_>) -> bool {
    if config.hop_limit() == 0 {
        return true;
    }
    let now = tables.jiffies();
    if now.wrapping_sub(tables.state(state::HOP_WINDOW)) >= u64::from(config.hop_window_jiffies()) {
        tables.set_state(state::HOP_WINDOW, now);
        tables.set_state(state::HOP_COUNT, 1);
        return true;
    }
    let sent = tables.state(state::HOP_COUNT);
    if sent >= u64::from(config.hop_limit()) {
        return false;
    }
    tables.set_state(state::HOP_COUNT, sent + 1);
    true
}
