//! The bytes and escapes of targets. Their normal form is [`crate::l7::path`]'s business.

use super::bytes::{is_path, is_query};
use super::reason::Reason;

/// Checks path and query of a target: its bytes and its escapes.
///
/// # Errors
/// [`Reason::Target`] or [`Reason::TargetEncoding`].
pub fn check(target: &[u8]) -> Result<(), Reason> {
    let end = target
        .iter()
        .position(|b| *b == b'?')
        .unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if !is_path(path) || !is_query(query) {
        return Err(Reason::Target);
    }
    let mut rest = target;
    while let Some(at) = memchr::memchr(b'%', rest) {
        match &rest[at + 1..] {
            [b'0', b'0', ..] => return Err(Reason::TargetEncoding),
            [a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest = tail,
            _ => return Err(Reason::TargetEncoding),
        }
    }
    Ok(())
}
