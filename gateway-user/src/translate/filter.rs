//! Filters of rules and of backendRefs: which may stand where, checked and compiled.
//!
//! A list with one filter that cannot be carried out costs its whole rule: no rule is served without a filter that it
//! asks for. Source: HTTPRouteFilter and GRPCRouteFilter of Gateway API 1.7, with the checks of their schemas, which
//! objects of files and of older CRDs never passed.

mod cors;
mod headers;
mod location;

use std::sync::Arc;

use super::backend_ref::Resolver;
use super::listener::Fault;
use super::objects::{BackendRef, Filter, MirrorSpec, Unread};
use crate::snapshot::{Filters, Mirror, PathMatch, RouteMatch};

/// Denominator of a `fraction` without one.
const DENOMINATOR: u32 = 100;

/// A list of filters; what its mirrors lead to is not resolved yet, as that depends on the Gateway.
#[derive(Debug, Default)]
pub(super) struct Compiled<'a> {
    filters: Filters,
    mirrors: Vec<CompiledMirror<'a>>,
}

#[derive(Debug)]
struct CompiledMirror<'a> {
    backend: &'a BackendRef,
    numerator: u32,
    denominator: u32,
}

/// Where a list of filters stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'m> {
    /// Kind of the route.
    route: &'static str,
    /// Whether it is that of a backendRef, else of a rule.
    backend: bool,
    /// The prefix that `ReplacePrefixMatch` means: that of the rule's only match.
    prefix: Option<&'m str>,
}

impl<'m> Place<'m> {
    /// A rule of a route of this kind with these matches.
    pub(super) fn rule(
        route: &'static str,
        matches: impl IntoIterator<Item = &'m RouteMatch>,
    ) -> Self {
        let mut matches = matches.into_iter();
        let prefix = match (matches.next().map(|m| &m.path), matches.next()) {
            (Some(PathMatch::Prefix(prefix)), None) => Some(&**prefix),
            _ => None,
        };
        Self {
            route,
            backend: false,
            prefix,
        }
    }

    /// A backendRef of that rule.
    pub(super) fn backend(self) -> Self {
        Self {
            backend: true,
            ..self
        }
    }

    /// Why no filter of this type may stand here.
    fn refuses(self, kind: &str) -> Option<String> {
        let (on_rules, on_backends) = match kind {
            "RequestHeaderModifier" | "ResponseHeaderModifier" | "RequestMirror" => (true, true),
            "URLRewrite" => (self.route == "HTTPRoute", self.route == "HTTPRoute"),
            "RequestRedirect" | "CORS" => (self.route == "HTTPRoute", false),
            _ => (false, false),
        };
        match (self.backend, on_rules, on_backends) {
            (false, true, _) | (true, _, true) => None,
            (false, false, _) => Some(format!("filter {kind} is not supported")),
            (true, true, false) => Some(format!(
                "filter {kind} of a backendRef is not supported, it belongs to the rule"
            )),
            (true, false, false) => Some(format!("filter {kind} of a backendRef is not supported")),
        }
    }
}

/// Compiles a list of filters, or says why it cannot be carried out.
pub(super) fn compile<'a>(given: &'a [Filter], place: Place<'_>) -> Result<Compiled<'a>, Fault> {
    let mut compiled = Compiled::default();
    for (at, filter) in given.iter().enumerate() {
        let kind = filter.kind.as_str();
        let unsupported = |why: String| ("UnsupportedValue", why);
        if let Some(why) = place.refuses(kind) {
            return Err(unsupported(why));
        }
        if kind != "RequestMirror" && given[..at].iter().any(|other| other.kind == kind) {
            let message = format!("filter {kind} stands twice in one list");
            return Err(("IncompatibleFilters", message));
        }
        settings_fit(filter).map_err(|why| unsupported(format!("filter {kind} {why}")))?;
        compiled
            .add(filter, place.prefix)
            .map_err(|why| unsupported(format!("filter {kind}: {why}")))?;
    }
    if compiled.redirects() && compiled.filters.rewrite.is_some() {
        let message = "filters RequestRedirect and URLRewrite exclude each other".to_owned();
        return Err(("IncompatibleFilters", message));
    }
    Ok(compiled)
}

/// The settings of its type must be there, and no others.
fn settings_fit(filter: &Filter) -> Result<(), String> {
    if let Some(field) = filter.unread.keys().next() {
        return Err(format!("has the field {field}, which is not supported"));
    }
    let settings = [
        (
            "RequestHeaderModifier",
            "requestHeaderModifier",
            filter.request_header_modifier.is_some(),
        ),
        (
            "ResponseHeaderModifier",
            "responseHeaderModifier",
            filter.response_header_modifier.is_some(),
        ),
        (
            "RequestMirror",
            "requestMirror",
            filter.request_mirror.is_some(),
        ),
        (
            "RequestRedirect",
            "requestRedirect",
            filter.request_redirect.is_some(),
        ),
        ("URLRewrite", "urlRewrite", filter.url_rewrite.is_some()),
        ("CORS", "cors", filter.cors.is_some()),
        (
            "ExtensionRef",
            "extensionRef",
            filter.extension_ref.is_some(),
        ),
        (
            "ExternalAuth",
            "externalAuth",
            filter.external_auth.is_some(),
        ),
    ];
    for (kind, field, there) in settings {
        match (there, kind == filter.kind) {
            (false, true) => return Err(format!("has no {field}")),
            (true, false) => return Err(format!("must not have {field}")),
            _ => {}
        }
    }
    Ok(())
}

impl<'a> Compiled<'a> {
    /// Whether requests are answered by a redirect, so that backends are of no use.
    pub(super) fn redirects(&self) -> bool {
        self.filters.redirect.is_some()
    }

    fn add(&mut self, filter: &'a Filter, prefix: Option<&str>) -> Result<(), String> {
        if let Some(spec) = &filter.request_header_modifier {
            self.filters.request_headers = headers::request(spec)?;
        }
        if let Some(spec) = &filter.response_header_modifier {
            self.filters.response_headers = headers::response(spec)?;
        }
        if let Some(spec) = &filter.request_mirror {
            self.mirrors.push(mirror(spec)?);
        }
        if let Some(spec) = &filter.request_redirect {
            self.filters.redirect = Some(location::redirect(spec, prefix)?);
        }
        if let Some(spec) = &filter.url_rewrite {
            self.filters.rewrite = Some(location::rewrite(spec, prefix)?);
        }
        if let Some(spec) = &filter.cors {
            self.filters.cors = Some(cors::compile(spec)?);
        }
        Ok(())
    }

    /// The filters as Gateways of one namespace see them; none if nothing is to be done. A mirror whose backendRef is
    /// bad stays, without a target: the fault is told, and the rule serves on.
    pub(super) fn resolve(&self, resolver: &mut Resolver<'_, '_>) -> Option<Arc<Filters>> {
        let mut filters = self.filters.clone();
        for mirror in &self.mirrors {
            filters.mirrors.push(Mirror {
                target: resolver.target(mirror.backend),
                http2: resolver.http2(),
                numerator: mirror.numerator,
                denominator: mirror.denominator,
            });
        }
        (!filters.is_empty()).then(|| Arc::new(filters))
    }
}

fn mirror(spec: &MirrorSpec) -> Result<CompiledMirror<'_>, String> {
    known(&spec.unread)?;
    known(&spec.backend_ref.unread)?;
    if spec.backend_ref.weight.is_some() || !spec.backend_ref.filters.is_empty() {
        return Err("backendRef must not have a weight or filters".to_owned());
    }
    let (numerator, denominator) = match (spec.percent, &spec.fraction) {
        (Some(_), Some(_)) => return Err("percent and fraction exclude each other".to_owned()),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => {
            known(&fraction.unread)?;
            (
                fraction.numerator,
                fraction.denominator.unwrap_or(DENOMINATOR),
            )
        }
        (None, None) => (1, 1),
    };
    if denominator == 0 || numerator > denominator {
        return Err(format!(
            "the share {numerator}/{denominator} is not one from 0 to 1"
        ));
    }
    Ok(CompiledMirror {
        backend: &spec.backend_ref,
        numerator,
        denominator,
    })
}

/// Refuses settings that Forebay does not know.
fn known(unread: &Unread) -> Result<(), String> {
    match unread.keys().next() {
        None => Ok(()),
        Some(field) => Err(format!("field {field} is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::snapshot::{PathEdit, RouteMatch};

    fn matching(prefix: &str) -> RouteMatch {
        RouteMatch {
            path: PathMatch::Prefix(prefix.into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }
    }

    /// The filters of a list, mirrors as shares, or why it is refused.
    fn read(place: Place<'_>, list: Value) -> Result<(Filters, Vec<(u32, u32)>), Fault> {
        let list: Vec<Filter> = serde_json::from_value(list).unwrap();
        let compiled = compile(&list, place)?;
        let shares = compiled.mirrors.iter();
        let shares = shares.map(|m| (m.numerator, m.denominator)).collect();
        Ok((compiled.filters, shares))
    }

    fn refused(place: Place<'_>, list: Value) -> String {
        let (reason, message) = read(place, list).expect_err("must be refused");
        format!("{reason}: {message}")
    }

    #[test]
    fn each_type_stands_only_where_it_is_carried_out() {
        let settings = [
            (
                "RequestHeaderModifier",
                json!({"requestHeaderModifier": {}}),
                [true, true, true, true],
            ),
            (
                "ResponseHeaderModifier",
                json!({"responseHeaderModifier": {}}),
                [true, true, true, true],
            ),
            (
                "RequestMirror",
                json!({"requestMirror": {}}),
                [true, true, true, true],
            ),
            (
                "URLRewrite",
                json!({"urlRewrite": {}}),
                [true, true, false, false],
            ),
            (
                "RequestRedirect",
                json!({"requestRedirect": {}}),
                [true, false, false, false],
            ),
            ("CORS", json!({"cors": {}}), [true, false, false, false]),
            (
                "ExtensionRef",
                json!({"extensionRef": {}}),
                [false, false, false, false],
            ),
            (
                "ExternalAuth",
                json!({"externalAuth": {}}),
                [false, false, false, false],
            ),
            ("Nonsense", json!({}), [false, false, false, false]),
            ("", json!({}), [false, false, false, false]),
        ];
        for (kind, mut filter, wanted) in settings {
            filter["type"] = kind.into();
            let (http, grpc) = (Place::rule("HTTPRoute", []), Place::rule("GRPCRoute", []));
            let places = [http, http.backend(), grpc, grpc.backend()];
            let got = places.map(|place| read(place, json!([filter])).is_ok());
            assert_eq!(got, wanted, "{kind}");
        }
    }

    #[test]
    fn lists_that_contradict_themselves_are_refused() {
        let place = Place::rule("HTTPRoute", []);
        for (list, want) in [
            (
                json!([{"type": "ExternalAuth", "externalAuth": {}}]),
                "UnsupportedValue: filter ExternalAuth is not supported",
            ),
            (
                json!([{"type": "CORS", "cors": {}}, {"type": "CORS", "cors": {}}]),
                "IncompatibleFilters: filter CORS stands twice in one list",
            ),
            (
                json!([{"type": "URLRewrite", "urlRewrite": {}},
                       {"type": "RequestRedirect", "requestRedirect": {}}]),
                "IncompatibleFilters: filters RequestRedirect and URLRewrite exclude each other",
            ),
            (
                json!([{"type": "URLRewrite"}]),
                "UnsupportedValue: filter URLRewrite has no urlRewrite",
            ),
            (
                json!([{"type": "CORS", "cors": {}, "urlRewrite": {}}]),
                "UnsupportedValue: filter CORS must not have urlRewrite",
            ),
            (
                json!([{"type": "CORS", "cors": {}, "more": 1}]),
                "UnsupportedValue: filter CORS has the field more, which is not supported",
            ),
            (
                json!([{"type": "CORS", "cors": {"more": 1}}]),
                "UnsupportedValue: filter CORS: field more is not supported",
            ),
        ] {
            assert_eq!(refused(place, list), want);
        }
    }

    #[test]
    fn mirrors_copy_everything_or_a_share() {
        let place = Place::rule("GRPCRoute", []);
        let list = |settings: &[Value]| -> Value {
            let filter = |s: &Value| json!({"type": "RequestMirror", "requestMirror": s});
            settings.iter().map(filter).collect()
        };
        let good = list(&[
            json!({}),
            json!({"percent": 0}),
            json!({"fraction": {"numerator": 7}}),
            json!({"fraction": {"numerator": 1, "denominator": 3}}),
        ]);
        let shares = read(place, good).unwrap().1;
        assert_eq!(shares, [(1, 1), (0, 100), (7, 100), (1, 3)]);
        for (settings, want) in [
            (
                json!({"percent": 101}),
                "the share 101/100 is not one from 0 to 1",
            ),
            (
                json!({"fraction": {"numerator": 0, "denominator": 0}}),
                "the share 0/0 is not one from 0 to 1",
            ),
            (
                json!({"percent": 1, "fraction": {"numerator": 1}}),
                "percent and fraction exclude each other",
            ),
            (
                json!({"backendRef": {"weight": 1}}),
                "backendRef must not have a weight or filters",
            ),
            (
                json!({"backendRef": {"odd": 1}}),
                "field odd is not supported",
            ),
        ] {
            let error = refused(place, list(&[settings]));
            assert_eq!(
                error,
                format!("UnsupportedValue: filter RequestMirror: {want}")
            );
        }
    }

    #[test]
    fn a_replaced_prefix_is_that_of_the_only_match() {
        let list = || {
            json!([{"type": "URLRewrite", "urlRewrite":
            {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}}}])
        };
        let (a, b) = (matching("/a"), matching("/b"));
        let place = Place::rule("HTTPRoute", [&a]);
        for place in [place, place.backend()] {
            let path = read(place, list()).unwrap().0.rewrite.unwrap().path;
            let want = PathEdit::Prefix {
                matched: "/a".into(),
                replacement: "/x".into(),
            };
            assert_eq!(path, Some(want));
        }
        let exact = RouteMatch {
            path: PathMatch::Exact("/a".into()),
            ..matching("")
        };
        for place in [
            Place::rule("HTTPRoute", [&a, &b]),
            Place::rule("HTTPRoute", [&exact]),
        ] {
            assert_eq!(
                refused(place, list()),
                "UnsupportedValue: filter URLRewrite: ReplacePrefixMatch needs exactly one match in the rule, of type PathPrefix"
            );
        }
    }
}
