//! The names of Gateway API's features that this data plane supports, for `GatewayClass.status.supportedFeatures`.
//!
//! Only what is served today is here: the conformance suites take this list as the claim that they test. Names are those of
//! v1.6 and v1.7; a suite passes over a name that it does not know.

use serde::Serialize;

/// One supported feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Feature {
    /// Its name in Gateway API.
    pub name: &'static str,
}

const fn feature(name: &'static str) -> Feature {
    Feature { name }
}

/// All of them in byte order, as Gateway API asks.
pub const FEATURES: &[Feature] = &[
    feature("GRPCRoute"),
    feature("GRPCRouteNamedRouteRule"),
    feature("GRPCRouteRequestHeaderModifier"),
    feature("Gateway"),
    feature("GatewayAddressEmpty"),
    feature("GatewayHTTPListenerIsolation"),
    feature("GatewayHTTPSListenerDetectMisdirectedRequests"),
    feature("GatewayInfrastructure"),
    feature("GatewayPort8080"),
    feature("GatewayRouteHostnameIntersectionPrecedence"),
    feature("GatewayStaticAddresses"),
    feature("HTTPRoute"),
    feature("HTTPRoute303RedirectStatusCode"),
    feature("HTTPRoute307RedirectStatusCode"),
    feature("HTTPRoute308RedirectStatusCode"),
    feature("HTTPRouteBackendProtocolH2C"),
    feature("HTTPRouteBackendProtocolWebSocket"),
    feature("HTTPRouteBackendRequestHeaderModification"),
    feature("HTTPRouteBackendTimeout"),
    feature("HTTPRouteBackendURLRewrite"),
    feature("HTTPRouteCORS"),
    feature("HTTPRouteDestinationPortMatching"),
    feature("HTTPRouteHostRewrite"),
    feature("HTTPRouteMethodMatching"),
    feature("HTTPRouteNamedRouteRule"),
    feature("HTTPRouteParentRefPort"),
    feature("HTTPRoutePathRedirect"),
    feature("HTTPRoutePathRewrite"),
    feature("HTTPRoutePortRedirect"),
    feature("HTTPRouteQueryParamMatching"),
    feature("HTTPRouteRequestMirror"),
    feature("HTTPRouteRequestMultipleMirrors"),
    feature("HTTPRouteRequestPercentageMirror"),
    feature("HTTPRouteRequestTimeout"),
    feature("HTTPRouteResponseHeaderModification"),
    // v1.6; v1.7 calls it HTTPRouteRetryCodes.
    feature("HTTPRouteRetry"),
    feature("HTTPRouteRetryBackendTimeout"),
    feature("HTTPRouteRetryCodes"),
    feature("HTTPRouteRetryConnectionError"),
    feature("HTTPRouteSchemeRedirect"),
    feature("ReferenceGrant"),
    feature("UDPRoute"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_sorted_each_once_and_fit_into_the_schema() {
        assert!(FEATURES.is_sorted_by(|a, b| a.name < b.name));
        assert!(FEATURES.len() <= 64);
        let shown = serde_json::to_value(&FEATURES[..2]).expect("JSON");
        assert_eq!(
            shown,
            serde_json::json!([{"name": "GRPCRoute"}, {"name": "GRPCRouteNamedRouteRule"}])
        );
    }
}
