//! Whether the local proxy is alive, and the budgets: second-chance hops, SYNs, messages.
//!
//! They keep a word or two in the state arrays. CPUs race on them without harm: a lost update delays a judgement
//! by one packet.

use super::Tables;
use crate::abi::{LiveConfig, state};

/// How the local proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    /// It beats.
    Alive,
    /// It has beaten lately, but since its last beat a SYN found no listening socket: it may have died. Connections that
    /// other nodes took over since then are not to be reset here.
    Doubtful,
    /// It has not beaten for too long, or never.
    Silent,
}

/// How the local proxy does. A limit of 0 jiffies means that it is not watched.
#[inline(always)]
pub(super) fn proxy<T: Tables>(tables: &T, config: LiveConfig<'_>) -> Proxy {
    if config.beat_limit_jiffies() == 0 {
        return Proxy::Alive;
    }
    let beat = tables.heartbeat();
    if beat == 0 {
        return Proxy::Silent;
    }
    let now = tables.jiffies();
    if tables.state(state::BEAT_VALUE) != beat {
        // The time first: whoever sees the new value must not meet the old time.
        tables.set_state(state::BEAT_JIFFIES, now);
        tables.set_state(state::BEAT_VALUE, beat);
    } else if now.wrapping_sub(tables.state(state::BEAT_JIFFIES))
        > u64::from(config.beat_limit_jiffies())
    {
        return Proxy::Silent;
    }
    if tables.state(state::NO_LISTENER) == beat {
        Proxy::Doubtful
    } else {
        Proxy::Alive
    }
}

/// A SYN found no listening socket: until the next beat the proxy is in doubt.
#[inline(always)]
pub(super) fn no_listener<T: Tables>(tables: &T) {
    tables.set_state(state::NO_LISTENER, tables.heartbeat());
}

/// Takes one second-chance hop from this window's budget. A limit of 0 means that there is none.
#[inline(always)]
pub(super) fn take_hop<T: Tables>(tables: &T, config: LiveConfig<'_>) -> bool {
    if config.hop_limit() == 0 {
        return true;
    }
    let now = tables.jiffies();
    if now.wrapping_sub(tables.state(state::HOP_WINDOW)) >= u64::from(config.window_jiffies()) {
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

/// Takes one from this CPU's budget in `slot` (see [`crate::abi::cpu_state`]); `false` if `limit` are taken in this window.
#[inline(always)]
pub(super) fn take<T: Tables>(tables: &T, config: LiveConfig<'_>, slot: u32, limit: u32) -> bool {
    let now = tables.jiffies();
    if now.wrapping_sub(tables.cpu_state(slot)) >= u64::from(config.window_jiffies()) {
        tables.set_cpu_state(slot, now);
        tables.set_cpu_state(slot + 1, 1);
        return limit > 0;
    }
    let taken = tables.cpu_state(slot + 1);
    if taken >= u64::from(limit) {
        return false;
    }
    tables.set_cpu_state(slot + 1, taken + 1);
    true
}
