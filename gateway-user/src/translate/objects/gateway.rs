//! GatewayClass and Gateway.

use serde::{Deserialize, Serialize};

use super::{LabelSelector, Names, Present, Unread};

/// `spec` of a GatewayClass.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    /// Whose class it is.
    pub controller_name: String,
    /// Parameters; Forebay has none.
    pub parameters_ref: Option<ParametersRef>,
}

/// A reference to an object with parameters.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ParametersRef {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// `spec` of a Gateway.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Class.
    pub gateway_class_name: String,
    /// Listeners.
    pub listeners: Vec<ListenerSpec>,
    /// Addresses asked for.
    pub addresses: Vec<GatewayAddress>,
    /// What generated objects shall carry.
    pub infrastructure: Option<Infrastructure>,
    /// TLS that concerns all listeners.
    pub tls: Option<GatewayTlsSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `infrastructure`: labels and annotations go to the objects that are made for the Gateway on a cluster.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// Parameters; Forebay has none.
    pub parameters_ref: Option<ParametersRef>,
    /// Labels of generated objects.
    pub labels: Names,
    /// Annotations of generated objects.
    pub annotations: Names,
}

/// `tls` of a Gateway.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct GatewayTlsSpec {
    /// How clients' certificates are checked; Forebay asks for none.
    pub frontend: Option<Present>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One of `addresses`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct GatewayAddress {
    /// `IPAddress` if none.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The address; empty: Forebay picks one.
    pub value: String,
}

/// One listener.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerSpec {
    /// Section name.
    pub name: String,
    /// Hostname; empty: any.
    pub hostname: String,
    /// Port.
    pub port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP` or a vendor's.
    pub protocol: String,
    /// Which routes may attach.
    pub allowed_routes: AllowedRoutes,
    /// TLS.
    pub tls: Option<ListenerTlsSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `tls` of a listener.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTlsSpec {
    /// `Terminate` (default) or `Passthrough`.
    pub mode: Option<String>,
    /// Secrets with certificates.
    pub certificate_refs: Vec<SecretRef>,
    /// A vendor's options; Forebay has none.
    pub options: Unread,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// A reference to a Secret.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct SecretRef {
    /// The core group if none.
    pub group: Option<String>,
    /// `Secret` if none.
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// The referrer's own if none.
    pub namespace: Option<String>,
}

/// `allowedRoutes`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct AllowedRoutes {
    /// From which namespaces.
    pub namespaces: RouteNamespaces,
    /// Of which kinds; empty: those of the protocol.
    pub kinds: Vec<RouteGroupKind>,
}

/// `allowedRoutes.namespaces`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// `Same` (default), `All` or `Selector`.
    pub from: Option<String>,
    /// For `Selector`.
    pub selector: Option<LabelSelector>,
}

/// One kind of route.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct RouteGroupKind {
    /// Gateway API's group if none.
    pub group: Option<String>,
    /// Kind.
    pub kind: String,
}
