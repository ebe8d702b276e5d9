//! What is spoken to the endpoints of a cluster: TLS or clear text, and which HTTP, from the `appProtocol` of the Service's
//! port and the DestinationRule's `tls`, `proxyProtocol` and `h2UpgradePolicy`.
//!
//! What shall be encrypted is never sent in clear instead, and what cannot be checked is never taken unchecked: such
//! backends are refused.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::listener::Fault;
use super::objects::TlsSpec;
use super::{Inputs, certificate};
use crate::snapshot::{AppProtocol, ObjectKey, TrafficPolicy, Transport, Trust, UpstreamTls};

/// Domain of Services.
pub(super) const SERVICE_DOMAIN: &str = ".svc.cluster.local";

/// What a DestinationRule says about TLS.
#[derive(Clone, Debug, Default)]
pub(super) enum Origination {
    /// Nothing: the Service's port decides.
    #[default]
    Unset,
    /// Clear text, whatever the port says.
    Off,
    /// TLS.
    On {
        /// Name that is sent; the Service's if none.
        sni: Option<Arc<str>>,
        /// Names of which the certificate must be for one.
        names: Vec<Arc<str>>,
        /// Who may have signed it.
        trust: Trust,
    },
}

/// Why a policy cannot be carried out, so that its backends are refused.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// For the rule's own status.
    pub(super) reason: &'static str,
    /// A sentence.
    pub(super) message: String,
    /// Path of the field, if it is one that is not carried out.
    pub(super) unsupported: Option<String>,
}

impl Refused {
    fn invalid(message: String) -> Self {
        Self {
            reason: "Invalid",
            message,
            unsupported: None,
        }
    }
}

/// The policy of a rule for one port, whatever Service it is for.
#[derive(Clone, Debug, Default)]
pub(super) struct PortPolicy {
    /// All but TLS.
    pub(super) policy: TrafficPolicy,
    /// TLS.
    pub(super) tls: Origination,
    /// `h2UpgradePolicy` is UPGRADE.
    pub(super) upgrade: bool,
}

/// A port of a Service.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServicePortKey<'a> {
    /// The Service.
    pub(super) service: &'a ObjectKey,
    /// Port number.
    pub(super) port: u16,
    /// Transport.
    pub(super) transport: Transport,
    /// What its `appProtocol` says.
    pub(super) said: AppProtocol,
}

impl PortPolicy {
    /// The policy and protocol for a port of a Service.
    ///
    /// # Errors
    /// TLS cannot be spoken to it.
    pub(super) fn settle(
        &self,
        to: ServicePortKey<'_>,
    ) -> Result<(TrafficPolicy, AppProtocol), Fault> {
        let mut policy = self.policy.clone();
        let mut protocol = to.said;
        if to.transport == Transport::Udp {
            if matches!(self.tls, Origination::On { .. }) {
                let message = format!(
                    "port {}/udp of Service {} cannot have TLS, and datagrams are not sent in clear instead",
                    to.port, to.service
                );
                return Err(("UnsupportedProtocol", message));
            }
            policy.proxy_protocol = None;
            return Ok((policy, AppProtocol::Unset));
        }
        if self.upgrade && protocol == AppProtocol::Unset {
            protocol = AppProtocol::Http2;
        }
        policy.tls = match &self.tls {
            Origination::Off => {
                protocol = in_clear(protocol);
                None
            }
            Origination::Unset => match protocol {
                AppProtocol::Https | AppProtocol::Wss => {
                    Some(upstream(to.service, None, Vec::new(), Trust::System)?)
                }
                AppProtocol::Unset | AppProtocol::Http1 | AppProtocol::Http2 => None,
            },
            Origination::On { sni, names, trust } => {
                let sni = sni.as_ref().map(Arc::clone);
                Some(upstream(to.service, sni, names.clone(), trust.clone())?)
            }
        };
        Ok((policy, protocol))
    }
}

/// The same without TLS.
fn in_clear(protocol: AppProtocol) -> AppProtocol {
    match protocol {
        AppProtocol::Https => AppProtocol::Unset,
        AppProtocol::Wss => AppProtocol::Http1,
        AppProtocol::Unset | AppProtocol::Http1 | AppProtocol::Http2 => protocol,
    }
}

fn upstream(
    service: &ObjectKey,
    sni: Option<Arc<str>>,
    names: Vec<Arc<str>>,
    trust: Trust,
) -> Result<Arc<UpstreamTls>, Fault> {
    let server_name = sni.unwrap_or_else(|| {
        format!("{}.{}{SERVICE_DOMAIN}", service.name, service.namespace).into()
    });
    if !is_server_name(&server_name) {
        let message = format!(
            "the name of Service {service} is too long for a certificate, give a name with a DestinationRule's trafficPolicy.tls.sni"
        );
        return Err(("UnsupportedProtocol", message));
    }
    Ok(Arc::new(UpstreamTls {
        server_name,
        names,
        trust,
    }))
}

/// Whether a certificate can be checked for it: a DNS name or an IP address.
fn is_server_name(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// Reads the `tls` at `path` of a rule in a namespace; `None`: it has none.
///
/// # Errors
/// It cannot be carried out.
pub(super) fn read(
    inputs: &Inputs,
    namespace: &str,
    path: &str,
    spec: Option<&TlsSpec>,
) -> Result<Origination, Refused> {
    let Some(spec) = spec else {
        return Ok(Origination::Unset);
    };
    match spec.mode.as_deref().unwrap_or("DISABLE") {
        "DISABLE" => return Ok(Origination::Off),
        "SIMPLE" => {}
        mode => {
            return Err(Refused {
                reason: "UnsupportedValue",
                message: format!(
                    "{path}.mode {mode} is not supported and requests are not sent in clear instead"
                ),
                unsupported: Some(format!("{path} (mode {mode})")),
            });
        }
    }
    let trust = trust(inputs, namespace, path, spec)?;
    let sni = spec.sni.as_deref().filter(|sni| !sni.is_empty());
    let named = |field: &str, text: &str| {
        if is_server_name(text) {
            Ok(text.to_ascii_lowercase().into())
        } else {
            Err(Refused::invalid(format!(
                "{path}.{field} {text:?} is not a DNS name or IP address"
            )))
        }
    };
    let alternatives = spec.subject_alt_names.iter().enumerate();
    let names = alternatives.map(|(at, text)| named(&format!("subjectAltNames[{at}]"), text));
    Ok(Origination::On {
        sni: sni.map(|sni| named("sni", sni)).transpose()?,
        names: names.collect::<Result<_, _>>()?,
        trust,
    })
}

fn trust(inputs: &Inputs, namespace: &str, path: &str, spec: &TlsSpec) -> Result<Trust, Refused> {
    if spec.insecure_skip_verify {
        return Ok(Trust::Anybody);
    }
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(name) = given(&spec.credential_name) {
        let key = ObjectKey::new(namespace, name.as_str());
        let Some(secret) = inputs.secrets.get(&key) else {
            let message = format!("{path}.credentialName: Secret {key} does not exist");
            return Err(Refused::invalid(message));
        };
        let authorities = certificate::authorities(secret)
            .map_err(|why| Refused::invalid(format!("{path}.credentialName: {why}")))?;
        return Ok(Trust::Authorities {
            digest: authorities.digest,
            roots: Arc::clone(&authorities.roots),
        });
    }
    if given(&spec.ca_certificates).is_some() {
        return Err(Refused {
            reason: "UnsupportedValue",
            message: format!(
                "{path}.caCertificates is not supported: files that objects name are not read, put the certificates into a Secret and name it as credentialName"
            ),
            unsupported: Some(format!("{path}.caCertificates")),
        });
    }
    Ok(Trust::System)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(
        tls: &Origination,
        upgrade: bool,
        said: AppProtocol,
    ) -> (Option<String>, AppProtocol) {
        let policy = PortPolicy {
            tls: tls.clone(),
            upgrade,
            ..PortPolicy::default()
        };
        let service = ObjectKey::new("app", "web");
        let to = ServicePortKey {
            service: &service,
            port: 80,
            transport: Transport::Tcp,
            said,
        };
        let (policy, protocol) = policy.settle(to).expect("it can be carried out");
        (policy.tls.map(|tls| tls.server_name.to_string()), protocol)
    }

    #[test]
    fn the_rule_counts_before_the_port() {
        use AppProtocol::{Http1, Http2, Https, Unset, Wss};
        let (unset, off) = (Origination::Unset, Origination::Off);
        let on = Origination::On {
            sni: None,
            names: Vec::new(),
            trust: Trust::System,
        };
        let named = Origination::On {
            sni: Some("a.example".into()),
            names: Vec::new(),
            trust: Trust::Anybody,
        };
        let own = Some("web.app.svc.cluster.local");
        for (tls, upgrade, said, want_tls, want) in [
            (&unset, false, Unset, None, Unset),
            (&unset, true, Unset, None, Http2),
            (&unset, true, Http1, None, Http1),
            (&unset, false, Http2, None, Http2),
            (&unset, false, Https, own, Https),
            (&unset, true, Https, own, Https),
            (&unset, false, Wss, own, Wss),
            (&off, false, Https, None, Unset),
            (&off, false, Wss, None, Http1),
            (&off, false, Http2, None, Http2),
            (&on, false, Unset, own, Unset),
            (&on, true, Unset, own, Http2),
            (&on, false, Http1, own, Http1),
            (&named, false, Https, Some("a.example"), Https),
        ] {
            let got = settle(tls, upgrade, said);
            assert_eq!(
                (got.0.as_deref(), got.1),
                (want_tls, want),
                "{tls:?} {upgrade} {said:?}"
            );
        }
    }

    #[test]
    fn a_service_whose_name_no_certificate_can_hold_is_refused() {
        let service = ObjectKey::new("app", "a".repeat(64));
        let to = ServicePortKey {
            service: &service,
            port: 80,
            transport: Transport::Tcp,
            said: AppProtocol::Https,
        };
        assert!(PortPolicy::default().settle(to).is_err());
    }

    #[test]
    fn datagrams_have_neither_tls_nor_a_proxy_header() {
        let service = ObjectKey::new("app", "dns");
        let to = ServicePortKey {
            service: &service,
            port: 53,
            transport: Transport::Udp,
            said: AppProtocol::Https,
        };
        let mut policy = PortPolicy::default();
        policy.policy.proxy_protocol = Some(crate::snapshot::ProxyVersion::V1);
        let (settled, protocol) = policy.settle(to).expect("it can be carried out");
        assert!(settled.proxy_protocol.is_none() && settled.tls.is_none());
        assert_eq!(protocol, AppProtocol::Unset);
        policy.tls = Origination::On {
            sni: None,
            names: Vec::new(),
            trust: Trust::System,
        };
        assert!(policy.settle(to).is_err());
    }
}
