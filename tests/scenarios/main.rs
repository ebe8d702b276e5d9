//! End-to-end scenarios; needs root. Run by `cargo xtask test`.

#![expect(
    clippy::unwrap_used,
    reason = "a scenario ends at the first thing that is not as it should be"
)]

mod datapath;
mod leftovers;
mod topology;
mod xdp_agree;
mod xdp_lookup;
mod xdp_timing;
mod xdp_verdicts;
