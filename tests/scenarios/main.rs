//! End-to-end scenarios; needs root. Run by `cargo xtask test`.

#![expect(
    clippy::unwrap_used,
    reason = "a scenario ends at the first thing that is not as it should be"
)]
#![expect(
    clippy::too_many_lines,
    reason = "a table of cases is read whole, and its length is no complexity"
)]

mod agent;
mod agent_hostile;
mod autobahn;
mod bpf;
mod bpf_trace;
mod browser;
mod check;
mod churn;
mod crash;
mod datapath;
mod death;
mod drain;
mod ejection;
mod flood;
mod ghosts;
mod grpc;
mod grpcurl;
mod http_clients;
mod ipv6;
mod leftovers;
mod limits;
mod liveness;
mod load;
mod metrics;
mod mistakes;
mod netfilter;
mod paths;
mod proxy_header;
mod reload;
mod routed;
mod scarce;
mod soak;
mod spread;
mod tls_clients;
mod topology;
mod udp;
mod upload;
mod vanish;
mod websocket;
mod wire;
mod xdp_agree;
mod xdp_cookies;
mod xdp_lookup;
mod xdp_neutral;
mod xdp_verdicts;
