//! The kernel programs: entry points, access to packets, maps and sockets. What becomes of a packet is decided
//! in `gateway-common`; there is no policy here.
//!
//! Built for the host this is an empty program, so that tools which build everything do not stumble over it.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Inline assembly for this target is not stable; the build allows it (see context.rs for its use).
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(all(target_arch = "bpf", feature = "bench"))]
mod bench;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(all(target_arch = "bpf", feature = "bench"))]
mod measure;
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
