//! What happens to a request: matching, splitting, balancing, limits and health, all pure.

pub mod balance;
pub mod digits;
mod escape;
pub mod explain;
pub mod filter;
pub mod frames;
pub mod grpc;
pub mod header;
pub mod limit;
pub mod outlier;
pub mod path;
pub mod proxy_protocol;
pub mod question;
pub mod retry;
pub mod router;
pub mod split;
