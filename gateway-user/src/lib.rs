//! The Forebay daemon as a library.
//!
//! State flows one way: objects (`file`, `k8s`) → `translate` → [`snapshot`] → `proxy` and `l4` → `datapath`; reports flow
//! into `status`. Layers:
//!
//! | Layer | Modules | May |
//! |---|---|---|
//! | pure | `snapshot` `translate` `allocate` `l7` `l4` `status` | compute; time is an argument |
//! | shell | `file` `k8s` `proxy` `datapath` `agent` `admin` `cli` | wait, bind, call the kernel; decides nothing |
//! | wiring | `app` | start, connect and stop the parts |

pub mod admin;
pub mod agent;
pub mod allocate;
pub mod app;
pub mod args;
mod causes;
pub mod cli;
pub mod datapath;
pub mod drain;
pub mod file;
pub mod k8s;
pub mod l4;
pub mod l7;
pub mod proxy;
pub mod readiness;
pub mod settings;
pub mod snapshot;
pub mod status;
pub mod telemetry;
pub mod translate;
