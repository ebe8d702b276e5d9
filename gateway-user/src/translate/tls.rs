//! TLS of listeners: which certificates they have, and whose TLS another listener of the port could be taken for.
//!
//! Gateway API: a bad certificateRef makes `ResolvedRefs` False; the listener serves with those that are good. A Secret
//! of another namespace needs a ReferenceGrant, which is judged before the Secret is looked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::condition::Condition;
use super::listener::{Fault, Listener};
use super::objects::{ListenerSpec, ListenerTlsSpec, SecretRef};
use super::{Inputs, certificate, reference_grant};
use crate::snapshot::{Certificate, Hostname, ListenerTls, ObjectKey};

/// Most certificateRefs of a listener.
const MAX_REFS: usize = 64;

/// TLS of one listener.
#[derive(Default)]
pub(super) struct Tls {
    listener: Arc<ListenerTls>,
    /// What is wrong with its references.
    pub(super) faults: Vec<Fault>,
}

impl Tls {
    /// Reads the references of a listener that terminates TLS.
    pub(super) fn read(inputs: &Inputs, namespace: &str, spec: &ListenerTlsSpec) -> Self {
        let mut listener = ListenerTls::default();
        let mut faults = Vec::new();
        if spec.certificate_refs.is_empty() {
            let message = "tls.certificateRefs names no certificate".to_owned();
            faults.push(("InvalidCertificateRef", message));
        }
        for reference in spec.certificate_refs.iter().take(MAX_REFS) {
            match find(inputs, namespace, reference) {
                Ok(certificate) if listener.certificates.contains(certificate) => {}
                Ok(certificate) => listener.certificates.push(Arc::clone(certificate)),
                Err(Bad { fault, broken }) => {
                    faults.push(fault);
                    listener.broken.extend(broken);
                }
            }
        }
        listener.broken.sort();
        listener.broken.dedup();
        Self {
            listener: Arc::new(listener),
            faults,
        }
    }

    /// Whether there is a certificate to serve with.
    pub(super) fn serves(&self) -> bool {
        !self.listener.certificates.is_empty()
    }

    /// Whether a node may have something to serve with: a certificate, or an older one of a Secret that has become bad.
    pub(super) fn may_serve(&self) -> bool {
        self.serves() || !self.listener.broken.is_empty()
    }

    /// As the snapshot has it.
    pub(super) fn for_snapshot(&self) -> Arc<ListenerTls> {
        Arc::clone(&self.listener)
    }
}

/// Why a reference leads to no certificate, and the Secret if it is there but bad.
struct Bad {
    fault: Fault,
    broken: Option<ObjectKey>,
}

fn find<'a>(
    inputs: &'a Inputs,
    namespace: &str,
    reference: &SecretRef,
) -> Result<&'a Arc<Certificate>, Bad> {
    let bad = |reason, message, broken| Bad {
        fault: (reason, message),
        broken,
    };
    let group = reference.group.as_deref().unwrap_or("");
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if (group, kind) != ("", "Secret") {
        let shown = if group.is_empty() { "core" } else { group };
        let message = format!("kind {kind} of group {shown} holds no certificate, use Secret");
        return Err(bad("InvalidCertificateRef", message, None));
    }
    let of = reference.namespace.as_deref().unwrap_or(namespace);
    let key = ObjectKey::new(of, reference.name.as_str());
    if !reference_grant::permits(inputs, ("Gateway", namespace), ("Secret", &key)) {
        let message = format!(
            "Secret {key} is in another namespace and no ReferenceGrant there admits Gateways of namespace {namespace}"
        );
        return Err(bad("RefNotPermitted", message, None));
    }
    let Some(secret) = inputs.secrets.get(&key) else {
        let message = format!("Secret {key} does not exist");
        return Err(bad("InvalidCertificateRef", message, None));
    };
    certificate::of(secret)
        .map_err(|message| bad("InvalidCertificateRef", message.to_owned(), Some(key)))
}

/// What of the `tls` of a listener its protocol forbids: the field, or a value of it.
pub(super) fn fault(spec: &ListenerSpec) -> Option<Fault> {
    let unsupported = |message| Some(("UnsupportedValue", message));
    let field = |name: &str| {
        let article = if spec.protocol == "UDP" { "a" } else { "an" };
        let protocol = &spec.protocol;
        format!("field {name} is not supported on {article} {protocol} listener")
    };
    let tls = spec.tls.as_ref()?;
    if spec.protocol != "HTTPS" {
        return unsupported(field("tls"));
    }
    if let Some(name) = tls.unread.keys().next() {
        return unsupported(field(&format!("tls.{name}")));
    }
    match tls.mode.as_deref().unwrap_or("Terminate") {
        "" | "Terminate" if tls.certificate_refs.len() <= MAX_REFS => None,
        "" | "Terminate" => {
            let got = tls.certificate_refs.len();
            unsupported(format!(
                "tls.certificateRefs has {got} entries, at most {MAX_REFS} are possible"
            ))
        }
        mode => unsupported(format!(
            "tls.mode {mode:?} is not possible on an HTTPS listener, use Terminate"
        )),
    }
}

/// The condition OverlappingTLSConfig of each listener that has it, by position: a client may use a connection to one
/// listener of a port for hosts of another, as far as hostnames or certificates let it.
pub(super) fn overlaps(listeners: &[Listener]) -> BTreeMap<usize, Condition> {
    let mut ports: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (at, listener) in listeners.iter().enumerate() {
        if listener.tls.is_some() && listener.accepted() {
            ports.entry(listener.spec.port).or_default().push(at);
        }
    }
    let mut found: BTreeMap<usize, (bool, Vec<String>)> = BTreeMap::new();
    for members in ports.values() {
        for (nth, &a) in members.iter().enumerate() {
            for &b in &members[nth + 1..] {
                let (first, second) = (&listeners[a], &listeners[b]);
                let certificates = covers(first, second) || covers(second, first);
                if !certificates && !share_hosts(first, second) {
                    continue;
                }
                for (one, other) in [(a, second), (b, first)] {
                    let entry = found.entry(one).or_default();
                    entry.0 |= certificates;
                    entry.1.push(other.spec.name.clone());
                }
            }
        }
    }
    let condition = |(certificates, others): (bool, Vec<String>)| {
        let (reason, what) = if certificates {
            ("OverlappingCertificates", "certificates")
        } else {
            ("OverlappingHostnames", "hostnames")
        };
        let others = super::condition::list(&others);
        let message = format!("the {what} overlap with those of other listeners: {others}");
        Condition::yes("OverlappingTLSConfig", reason, message)
    };
    let found = found.into_iter();
    found.map(|(at, with)| (at, condition(with))).collect()
}

fn share_hosts(a: &Listener, b: &Listener) -> bool {
    match (&a.hostname, &b.hostname) {
        (Some(a), Some(b)) => a.intersect(b).is_some(),
        _ => true,
    }
}

/// Whether a certificate of one listener is for hosts that belong to another.
fn covers(one: &Listener, other: &Listener) -> bool {
    let (Some(tls), Some(hostname)) = (&one.tls, &other.hostname) else {
        return false;
    };
    let certificates = &tls.listener.certificates;
    let mut names = certificates.iter().flat_map(|c| c.names.iter());
    let own = one.hostname.as_ref().map_or("", Hostname::as_str);
    names.any(|name| **name != *own && is_for(name, hostname))
}

/// Whether a certificate's name is for a host of the hostname. A certificate's wildcard is for one label (RFC 9525), a
/// hostname's for one or more.
fn is_for(name: &str, hostname: &Hostname) -> bool {
    if name == hostname.as_str() {
        return true;
    }
    match (name.strip_prefix("*."), hostname.is_wildcard()) {
        (None, _) => hostname.matches(name),
        (Some(parent), false) => {
            let under = hostname.as_str().split_once('.');
            under.is_some_and(|(_, rest)| rest == parent)
        }
        (Some(parent), true) => hostname.matches(parent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificates_wildcard_is_for_one_label() {
        for (name, hostname, want) in [
            ("a.example.com", "a.example.com", true),
            ("a.example.com", "b.example.com", false),
            ("a.example.com", "*.example.com", true),
            ("example.com", "*.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", "*.example.com", true),
            ("*.b.example.com", "*.example.com", true),
            ("*.example.com", "*.b.example.com", false),
            ("*", "a.example.com", false),
            ("", "a.example.com", false),
        ] {
            let parsed = Hostname::parse(hostname).expect(hostname);
            assert_eq!(is_for(name, &parsed), want, "{name} {hostname}");
        }
    }
}
