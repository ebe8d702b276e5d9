//! What a rule's filters do to a request and to its answer.
//!
//! Source: HTTPRouteFilter and GRPCRouteFilter of Gateway API 1.7. The configuration is checked by `translate`; what clients and
//! endpoints send is not, so everything here is total.

mod cors;
mod headers;
mod path;
mod redirect;

pub use cors::{CorsVerdict, answer, cors, strip_foreign};
pub use headers::edit;
pub use path::rewritten_path;
pub use redirect::{RedirectView, location};
