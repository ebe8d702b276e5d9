//! The demo: three nodes behind XDP with the quick start on top.

fn main() {}
