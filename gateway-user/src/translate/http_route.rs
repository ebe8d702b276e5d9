//! HTTPRoutes: what of their rules can be carried out.

use std::sync::Arc;
use std::time::Duration;

use super::filter::{self, Place};
use super::listener::{Fault, HTTP_ROUTE};
use super::objects::{HttpRoute, MatchSpec, RuleSpec, TimeoutsSpec, Unread};
use super::route::{self, Action, Head, Match, Route, RuleSource};
use super::{backend_ref, duration, precedence, retry, route_match};
use crate::snapshot::ObjectKey;

/// Compiles a route.
pub(super) fn compile<'a>(key: &'a ObjectKey, object: &'a HttpRoute) -> Route<'a> {
    let spec = &object.spec;
    let head = Head {
        kind: HTTP_ROUTE,
        referrer: backend_ref::HTTP,
        key,
        metadata: &object.metadata,
        parents: &spec.parent_refs,
    };
    Route::compile(head, &spec.hostnames, spec.rules.as_deref(), &spec.unread)
}

impl RuleSource for RuleSpec {
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn matches(&self) -> Result<Vec<Match>, String> {
        let default = [MatchSpec::default()];
        let given: &[MatchSpec] = if self.matches.is_empty() {
            &default
        } else {
            &self.matches
        };
        let compile = |spec| {
            let matching = route_match::compile(spec)?;
            Ok(Match {
                rank: precedence::http(&matching),
                matching: Arc::new(matching),
            })
        };
        given.iter().map(compile).collect()
    }

    fn action(&self, matches: &[Match]) -> Result<Action<'_>, Fault> {
        let unsupported = |message: String| ("UnsupportedValue", message);
        known("", &self.unread).map_err(unsupported)?;
        let timeouts = match &self.timeouts {
            Some(timeouts) => read_timeouts(timeouts).map_err(unsupported)?,
            None => (None, None),
        };
        let retry = self.retry.as_deref().map(retry::compile).transpose();
        let place = Place::rule(HTTP_ROUTE.kind, matches.iter().map(|m| &*m.matching));
        let action = Action {
            filters: filter::compile(&self.filters, place)?,
            backends: route::backends(&self.backend_refs, place)?,
            request_timeout: timeouts.0,
            backend_timeout: timeouts.1,
            retry: retry.map_err(unsupported)?,
        };
        if action.filters.redirects() && !action.backends.is_empty() {
            let message = "filter RequestRedirect leaves nothing for backendRefs, remove either";
            return Err(unsupported(message.to_owned()));
        }
        Ok(action)
    }
}

/// Refuses fields that Forebay does not know.
fn known(of: &str, unread: &Unread) -> Result<(), String> {
    match unread.keys().next() {
        None => Ok(()),
        Some(field) => Err(format!("field {of}{field} is not supported")),
    }
}

type Timeouts = (Option<Duration>, Option<Duration>);

/// The two timeouts; zero means none.
fn read_timeouts(timeouts: &TimeoutsSpec) -> Result<Timeouts, String> {
    known("timeouts.", &timeouts.unread)?;
    let read = |field: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => duration::gateway_api(text)
            .map(|value| Some(value).filter(|value| !value.is_zero()))
            .ok_or_else(|| format!("timeouts.{field} {text:?} is not a duration such as 10s")),
    };
    let request = read("request", &timeouts.request)?;
    let backend = read("backendRequest", &timeouts.backend_request)?;
    match (request, backend) {
        (Some(request), Some(backend)) if backend > request => {
            Err("timeouts.backendRequest is longer than timeouts.request".to_owned())
        }
        both => Ok(both),
    }
}
