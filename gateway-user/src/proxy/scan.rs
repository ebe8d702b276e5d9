//! Admission of HTTP/1 requests, byte by byte, below hyper.
//!
//! hyper hides what a gateway has to see (it drops a `Content-Length` beside `Transfer-Encoding`, takes a bare LF as the
//! end of a line, and joins equal duplicates), so every byte of a downstream connection passes a [`Scanner`] first. It
//! finds each request head, checks the whole of it, follows the body to the next head, and says which bytes may go on.
//!
//! Invariants:
//! - hyper is given a head only when it is whole and admitted; of a refused head it is given no byte.
//! - The verdict depends on the bytes alone, never on how they were cut into reads.
//! - A good request costs no allocation when it arrives in one read; its bytes are read straight into hyper's buffer.
//!
//! How a refusal is answered after the responses before it: in the place of the refused head, hyper is given one
//! fixed request whose method no client can send ([`Scanner`] refuses methods that long). The service recognises
//! it with [`Admission::refusal_for`] and answers with [`Refusal::status`]; the order falls out of hyper's own pipelining,
//! and `connection: close` in that request ends the connection. A body whose framing breaks ends as a read error, so
//! that the upstream request is aborted and can never look complete; [`Admission::refusal`] tells why.
//!
//! What is edited on the way: fields whose names hold `_` and the h2c upgrade fields are dropped, and so are up to two empty
//! lines before a request line. Everything else passes byte for byte.
//!
//! Not here: timers (the connection owns them; [`Admission`] shows what they need), routing, limits of body sizes,
//! forwarding fields.

mod bytes;
mod chunked;
mod guarded;
mod head;
mod host;
mod reason;
pub mod response;
mod scanner;
mod target;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod tests;

pub use bytes::{is_protected, is_protected_or_hop as is_twin};
pub use guarded::{Admission, Guarded, Phase};
pub use head::is_method;
pub use host::{Authority, check_authority, routing_authority};
pub use reason::{Reason, Refusal};
pub use scanner::{Limits, Progress, Scanner, Sifted, Verdict};
pub use target::check as check_target;
