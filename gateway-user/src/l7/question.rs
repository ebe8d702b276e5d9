//! A request that somebody asks about, read from a URL, a method and headers.
//!
//! Reading and asking only: what becomes of the request is said by [`super::explain`].

use std::net::IpAddr;
use std::num::NonZero;
use std::str::FromStr;

use super::explain::{Explanation, explain};
use super::path;
use super::router::RequestView;
use crate::snapshot::{Snapshot, Transport};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

/// The request that is asked about.
#[derive(Clone, Debug)]
pub struct Question {
    host: String,
    port: u16,
    transport: Transport,
    path: String,
    query: Option<String>,
    method: String,
    headers: HeaderMap,
}

/// Why a question cannot be asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The URL cannot be read.
    #[error(
        "{0:?} is not a URL that this can explain; give one such as http://shop.example.com/cart, grpc://api.example.com/package.Service/Method or udp://192.0.2.1:53"
    )]
    Url(String),
    /// The method cannot be one.
    #[error("{0:?} is not a method; give one such as GET")]
    Method(String),
    /// A header cannot be read.
    #[error("{0:?} is not a header; give NAME:VALUE")]
    Header(String),
}

impl Question {
    /// Reads a request from a URL, a method and headers as `NAME:VALUE`. `grpc://HOST/SERVICE/METHOD` is a call: a POST
    /// with the content type of gRPC, whatever the method says.
    ///
    /// # Errors
    /// The part that cannot be read.
    pub fn new(url: &str, method: &str, headers: &[String]) -> Result<Self, QuestionError> {
        let bad = || QuestionError::Url(url.to_owned());
        let uri = Uri::from_str(url).map_err(|_| bad())?;
        let port = port_of(&uri).ok_or_else(bad)?;
        let (transport, port) = match (uri.scheme_str(), port) {
            (Some("http" | "grpc"), port) => (Transport::Tcp, port.unwrap_or(80)),
            (Some("https"), port) => (Transport::Tcp, port.unwrap_or(443)),
            (Some("udp"), Some(port)) => (Transport::Udp, port),
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?.to_ascii_lowercase();
        let method = Method::from_str(method).map_err(|_| QuestionError::Method(method.into()))?;
        let call = uri.scheme_str() == Some("grpc");
        let method = if call { Method::POST } else { method };
        let mut map = HeaderMap::new();
        if call {
            let grpc = HeaderValue::from_static("application/grpc");
            map.insert(http::header::CONTENT_TYPE, grpc);
        }
        for header in headers {
            let bad = || QuestionError::Header(header.clone());
            let (name, value) = header.split_once(':').ok_or_else(bad)?;
            let name = HeaderName::from_str(name.trim()).map_err(|_| bad())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
            if call && name == http::header::CONTENT_TYPE {
                // Such as application/grpc+proto.
                map.insert(name, value);
            } else {
                map.append(name, value);
            }
        }
        Ok(Self {
            host: host.strip_suffix('.').unwrap_or(&host).to_owned(),
            port,
            transport,
            path: path::normalise(uri.path()).into_owned(),
            query: uri.query().map(str::to_owned),
            method: method.as_str().to_ascii_uppercase(),
            headers: map,
        })
    }

    /// Reads a request from pairs named `url`, `method` and `header`, as the admin endpoint gets them.
    ///
    /// # Errors
    /// The part that cannot be read.
    pub fn from_pairs(pairs: &[(String, String)]) -> Result<Self, QuestionError> {
        let find = |name: &str| {
            pairs
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.as_str())
        };
        let headers: Vec<String> = pairs
            .iter()
            .filter(|(n, _)| n == "header")
            .map(|(_, v)| v.clone())
            .collect();
        Self::new(
            find("url").unwrap_or(""),
            find("method").unwrap_or("GET"),
            &headers,
        )
    }

    /// The port that the request goes to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            method: &self.method,
            headers: &self.headers,
        }
    }
}

/// The port that a URL names, if it names one; `None` if no request could be sent to such an authority.
fn port_of(uri: &Uri) -> Option<Option<u16>> {
    let authority = uri.authority()?;
    match authority.as_str().strip_prefix(authority.host())? {
        "" => Some(None),
        named => {
            let port: NonZero<u16> = named.strip_prefix(':')?.parse().ok()?;
            Some(Some(port.get()))
        }
    }
}

/// Explains the request on every address and port that it could have been sent to: the port of the URL on all VIPs,
/// or on the one that the URL names.
#[must_use]
pub fn answer(snapshot: &Snapshot, question: &Question) -> Vec<Explanation> {
    let address = question
        .host
        .trim_matches(['[', ']'])
        .parse::<IpAddr>()
        .ok();
    let only = address.filter(|a| snapshot.addresses.contains_key(a));
    let keys = snapshot.binds.keys();
    keys.filter(|key| key.port == question.port && key.transport == question.transport)
        .filter(|key| only.is_none_or(|a| a == key.address))
        .map(|key| explain(snapshot, *key, &question.view()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_or_named_as_bad() {
        let q = Question::new("http://A.example:8080/p?x=1", "post", &["X-Y: z".into()]).unwrap();
        assert_eq!(
            (q.host.as_str(), q.port, q.path.as_str()),
            ("a.example", 8080, "/p")
        );
        assert_eq!(
            (q.method.as_str(), q.query.as_deref()),
            ("POST", Some("x=1"))
        );
        assert_eq!(q.headers["x-y"], "z");
        // As the proxy takes them.
        let q = Question::new("http://a.example./a/%2e%2e/b", "GET", &[]).unwrap();
        assert_eq!((q.host.as_str(), q.path.as_str()), ("a.example", "/b"));
        let q = Question::new("udp://192.0.2.1:53", "GET", &[]).unwrap();
        assert_eq!((q.transport, q.port), (Transport::Udp, 53));
        let q = Question::new("https://a.example/", "GET", &[]).unwrap();
        assert_eq!((q.transport, q.port), (Transport::Tcp, 443));
        let q = Question::new("grpc://a.example/a.B/C", "GET", &["x: y".into()]).unwrap();
        assert_eq!(
            (q.port, q.path.as_str(), q.method.as_str()),
            (80, "/a.B/C", "POST")
        );
        assert_eq!(q.headers["content-type"], "application/grpc");
        let own = "content-type: application/grpc+proto".to_owned();
        let q = Question::new("grpc://a.example:443/a.B/C", "GET", &[own]).unwrap();
        let types: Vec<_> = q.headers.get_all("content-type").iter().collect();
        assert_eq!(
            (q.port, types),
            (
                443,
                vec![&HeaderValue::from_static("application/grpc+proto")]
            )
        );
        for bad in [
            "udp://192.0.2.1",
            "",
            "a.example",
            "ftp://a/",
            "grpc:///a.B/C",
            "http:///x",
            "http://a b/",
            "http://a:99999/",
            "http://a:0/",
            "http://a:/",
            "http://u@a/",
        ] {
            let error = Question::new(bad, "GET", &[]).unwrap_err();
            assert_eq!(error, QuestionError::Url(bad.into()));
        }
        let error = Question::new("http://a/", "G ET", &[]).unwrap_err();
        assert_eq!(error, QuestionError::Method("G ET".into()));
        let error = Question::new("http://a/", "GET", &["x".into()]).unwrap_err();
        assert_eq!(error.to_string(), "\"x\" is not a header; give NAME:VALUE");
    }
}
