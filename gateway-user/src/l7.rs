//! What happens to a request: matching, splitting, balancing, limits and health, all pure.

pub mod router;
