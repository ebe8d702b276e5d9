//! Benchmarks of the kernel path and of the proxy.

fn main() {}
