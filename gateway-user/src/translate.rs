//! Objects in, configuration and conditions out: the pure control plane.

pub mod inputs;
pub mod objects;

pub use inputs::{Inputs, Kind, Object, ObjectError, ObjectId};
