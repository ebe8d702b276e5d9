//! What a kind of routes says about one of its rules.

use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{Retry, RouteMatch};
use crate::translate::filter;
use crate::translate::listener::Fault;
use crate::translate::objects::BackendRef;
use crate::translate::precedence::Rank;

/// A rule as an object of some kind states it.
pub(in crate::translate) trait RuleSource {
    /// `name`.
    fn name(&self) -> Option<&str>;

    /// Its matches, or why they cannot be read.
    fn matches(&self) -> Result<Vec<Match>, String>;

    /// What is done to the requests that match, or why it cannot be carried out.
    fn action(&self, matches: &[Match]) -> Result<Action<'_>, Fault>;
}

/// One match of a rule.
pub(in crate::translate) struct Match {
    pub(in crate::translate) matching: Arc<RouteMatch>,
    pub(in crate::translate) rank: Rank,
}

/// What is done to the requests of a rule; by default they answer 500.
#[derive(Default)]
pub(in crate::translate) struct Action<'a> {
    pub(in crate::translate) filters: filter::Compiled<'a>,
    pub(in crate::translate) backends: Vec<(&'a BackendRef, filter::Compiled<'a>)>,
    pub(in crate::translate) request_timeout: Option<Duration>,
    pub(in crate::translate) backend_timeout: Option<Duration>,
    pub(in crate::translate) retry: Option<Retry>,
}
