//! End-to-end scenarios; needs root. Run by `cargo xtask test`.

#![expect(
    clippy::unwrap_used,
    reason = "a scenario ends at the first thing that is not as it should be"
)]

mod datapath;
mod death;
mod drain;
mod ejection;
mod leftovers;
mod limits;
mod reload;
mod spread;
mod topology;
mod xdp_agree;
mod xdp_lookup;
mod xdp_timing;
mod xdp_verdicts;
