//! The kernel programs: entry points, access to packets, maps and sockets. What becomes of a packet is decided
//! in `gateway-common`; there is no policy here.
//!
//! Built for the host this is an empty program, so that tools which build everything do not stumble over it.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Neither inline assembly for this target nor the question whether a value is a constant is stable; the build allows both
// (see context.rs for their use).
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    allow(internal_features)
)]

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
mod outline;
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
