//! What is wrong with a file or an object in it, as people are told.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Path below the directory; empty for the directory itself.
    pub file: String,
    /// Kind and name of the object, if it is about one.
    pub object: Option<String>,
    /// Path of the field, if it is about one.
    pub field: Option<String>,
    /// What is wrong and what is used instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file.is_empty() {
            "."
        } else {
            &self.file
        };
        write!(f, "{file}: ")?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "field {field}: ")?;
        }
        f.write_str(&self.message)
    }
}
