//! Support for the end-to-end scenarios: namespaces, topologies, daemons, backends and clients.
//!
//! Everything that a run makes is written to a ledger before it is made ([`leftovers`]), so that a run that
//! was killed is cleaned up by the next. Nothing here decides what Forebay should do, except [`steering`],
//! which computes owners from `gateway-common` alone.

pub mod backend;
pub mod bench;
pub mod client;
pub mod daemon;
pub mod demo;
pub mod dns;
pub mod eventually;
pub mod fixture;
pub mod kept;
pub mod kernel;
pub mod leftovers;
pub mod machine;
pub mod maps;
pub mod netns;
pub mod object;
pub mod packet;
pub mod rig;
pub mod soak;
pub mod split;
pub mod stage;
pub mod stalls;
pub mod steering;
pub mod sustained;
pub mod topology;
pub mod wire;

use std::path::Path;

/// Root of the checkout that this crate was built from.
fn checkout() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}
