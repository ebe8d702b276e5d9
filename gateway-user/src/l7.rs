//! What happens to a request: matching, splitting, balancing, limits and health, all pure.

pub mod balance;
pub mod explain;
pub mod header;
pub mod limit;
pub mod outlier;
pub mod path;
pub mod question;
pub mod router;
pub mod split;
