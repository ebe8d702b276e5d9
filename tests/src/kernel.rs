//! Which kernel this is.

pub use gateway_user::datapath::is_linux as at_least;
