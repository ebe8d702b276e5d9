//! End-to-end scenarios; needs root. Run by `cargo xtask test`.

mod datapath;
mod xdp_agree;
mod xdp_lookup;
mod xdp_timing;
mod xdp_verdicts;
