//! `Location` of a `RequestRedirect`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::Ipv6Addr;

use http::HeaderValue;

use super::path::{encoded, is_path_byte, is_query_byte, rewritten_path};
use crate::snapshot::{Redirect, Scheme};

/// What of a request a redirect takes over.
#[derive(Clone, Copy, Debug)]
pub struct RedirectView<'a> {
    /// Scheme of the request.
    pub scheme: Scheme,
    /// Host that the request names, without port; an IPv6 address keeps its brackets.
    pub host: &'a str,
    /// Port of the listener.
    pub listener_port: u16,
    /// Path as it was matched.
    pub path: &'a str,
    /// Query without the question mark.
    pub query: Option<&'a str>,
}

/// The URL that the client is sent to; `None` if the request names no host that a URL can hold.
///
/// The port is that of the filter, else the scheme's own where the filter names one, else the listener's; 80 for `http` and 443
/// for `https` are left out. The query is kept. What a URL cannot hold is percent-encoded.
#[must_use]
pub fn location(redirect: &Redirect, request: &RedirectView<'_>) -> Option<HeaderValue> {
    let scheme = redirect.scheme.unwrap_or(request.scheme);
    let host = redirect.hostname.as_deref().unwrap_or(request.host);
    if !is_host(host) {
        return None;
    }
    let own = redirect.scheme.map(Scheme::port);
    let port = redirect.port.or(own).unwrap_or(request.listener_port);
    let path = match &redirect.path {
        Some(edit) => Cow::Owned(rewritten_path(edit, request.path)),
        None => Cow::Borrowed(request.path),
    };
    let mut url = String::with_capacity(host.len() + path.len() + 16);
    url.push_str(scheme.as_str());
    url.push_str("://");
    url.push_str(host);
    if port != scheme.port() {
        let _ = write!(url, ":{port}");
    }
    if !path.starts_with('/') {
        url.push('/');
    }
    url.push_str(&encoded(&path, is_path_byte));
    if let Some(query) = request.query {
        url.push('?');
        url.push_str(&encoded(query, is_query_byte));
    }
    HeaderValue::try_from(url).ok()
}

/// The names that the gateway routes by, and IPv6 addresses in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => {
            let fine = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
            !host.is_empty() && host.bytes().all(fine)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::PathEdit;

    const PLAIN: Redirect = Redirect {
        scheme: None,
        hostname: None,
        path: None,
        port: None,
        status: 302,
    };

    fn view(scheme: Scheme, listener_port: u16) -> RedirectView<'static> {
        RedirectView {
            scheme,
            host: "a.example",
            listener_port,
            path: "/x",
            query: None,
        }
    }

    fn text(redirect: &Redirect, view: &RedirectView<'_>) -> String {
        let value = location(redirect, view).unwrap();
        value.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_port_follows_filter_then_scheme_then_listener() {
        use Scheme::{Http, Https};
        for (request, listener, scheme, port, want) in [
            (Http, 80, None, None, "http://a.example/x"),
            (Http, 8080, None, None, "http://a.example:8080/x"),
            (Https, 443, None, None, "https://a.example/x"),
            (Https, 8443, None, None, "https://a.example:8443/x"),
            (Http, 443, None, None, "http://a.example:443/x"),
            (Http, 8080, Some(Https), None, "https://a.example/x"),
            (Http, 8080, Some(Http), None, "http://a.example/x"),
            (Https, 8443, Some(Http), None, "http://a.example/x"),
            (Http, 80, None, Some(8081), "http://a.example:8081/x"),
            (Http, 8080, None, Some(80), "http://a.example/x"),
            (
                Http,
                80,
                Some(Https),
                Some(8443),
                "https://a.example:8443/x",
            ),
            (Http, 80, Some(Https), Some(443), "https://a.example/x"),
            (Http, 80, Some(Https), Some(80), "https://a.example:80/x"),
        ] {
            let redirect = Redirect {
                scheme,
                port,
                ..PLAIN
            };
            assert_eq!(text(&redirect, &view(request, listener)), want);
        }
    }

    #[test]
    fn host_path_and_query() {
        let request = RedirectView {
            host: "[2001:db8::1]",
            path: "/foo/b|r",
            query: Some("a=1&b=%20?"),
            ..view(Scheme::Http, 8080)
        };
        assert_eq!(
            text(&PLAIN, &request),
            "http://[2001:db8::1]:8080/foo/b%7Cr?a=1&b=%20?"
        );
        let redirect = Redirect {
            hostname: Some("b.example".into()),
            path: Some(PathEdit::Prefix {
                matched: "/foo".into(),
                replacement: "/xyz".into(),
            }),
            port: Some(80),
            ..PLAIN
        };
        assert_eq!(
            text(&redirect, &request),
            "http://b.example/xyz/b%7Cr?a=1&b=%20?"
        );
        let empty = RedirectView {
            path: "",
            query: Some(""),
            ..view(Scheme::Http, 80)
        };
        assert_eq!(text(&PLAIN, &empty), "http://a.example/?");
    }

    #[test]
    fn a_host_that_no_url_can_hold_gives_no_location() {
        for host in [
            "", "a b", "a/b", "u@a", "a:80", "[::1", "::1", "[x]", "a\\b", "a?b", "ä", "a\r\nb",
        ] {
            let request = RedirectView {
                host,
                ..view(Scheme::Http, 80)
            };
            assert_eq!(location(&PLAIN, &request), None, "{host}");
        }
    }

    proptest! {
        #[test]
        fn locations_are_urls_of_the_named_host(path in any::<String>(), query in any::<Option<String>>()) {
            let request = RedirectView { path: &path, query: query.as_deref(), ..view(Scheme::Http, 80) };
            let uri: http::Uri = text(&PLAIN, &request).parse().unwrap();
            prop_assert_eq!(uri.authority().unwrap().as_str(), "a.example");
            prop_assert_eq!(uri.query().is_some(), query.is_some());
        }
    }
}
