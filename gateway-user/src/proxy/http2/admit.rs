//! Admission of HTTP/2 requests: what the codec lets through and a gateway may not, and their form as everybody after
//! this sees it: origin form, one `Host`, one `Cookie` (RFC 9113, 8.2.3 and 8.3.1).

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use hyper::ext::Protocol;

use crate::proxy::http1::MAX_HEADERS;
use crate::proxy::scan::{Reason, Refusal, check_authority, check_target, is_method, is_twin};

/// Longest target, in bytes; that of HTTP/1 requests.
const TARGET_MAX: usize = 8 * 1024;

/// What an HTTP/2 request is beyond its head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct Http2Request {
    /// An extended CONNECT for `websocket` (RFC 8441).
    pub(in crate::proxy) websocket: bool,
}

/// Checks a request and brings it into the common form.
///
/// # Errors
/// Why it is refused.
pub(in crate::proxy) fn admit<B>(request: &mut Request<B>) -> Result<Http2Request, Refusal> {
    look(request).map_err(|reason| Refusal { reason })
}

fn look<B>(request: &mut Request<B>) -> Result<Http2Request, Reason> {
    let mut kind = Http2Request::default();
    if request.method() == Method::CONNECT {
        let protocol = request.extensions().get::<Protocol>();
        if protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
            return Err(Reason::Connect);
        }
        kind.websocket = true;
        *request.method_mut() = Method::GET;
    } else if !is_method(request.method().as_str().as_bytes()) {
        return Err(Reason::Method);
    }
    // Without an authority the codec has checked the scheme, but does not tell it: there is no URI to put it in.
    let scheme = request.uri().scheme_str();
    let untold = scheme.is_none() && request.uri().authority().is_none();
    if !untold && !matches!(scheme, Some("http" | "https")) {
        return Err(Reason::Scheme);
    }
    let authority = authority(request)?;
    let target = match request.uri().path_and_query() {
        Some(target) => target.clone(),
        None => return Err(Reason::Target),
    };
    if target.as_str().len() > TARGET_MAX {
        return Err(Reason::TargetTooLong);
    }
    let asterisk = target == "*" && request.method() == Method::OPTIONS;
    if !asterisk {
        if !target.as_str().starts_with('/') {
            return Err(Reason::Target);
        }
        check_target(target.as_str().as_bytes())?;
    }
    fields(request.headers_mut())?;
    request.headers_mut().insert(HOST, authority);
    *request.uri_mut() = Uri::from(target);
    Ok(kind)
}

/// The one authority: that of the request, or `Host` if there is none; both must say the same.
fn authority<B>(request: &Request<B>) -> Result<HeaderValue, Reason> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Reason::HostDuplicate);
    }
    let value = match (request.uri().authority(), host) {
        (None, None) => return Err(Reason::HostMissing),
        (None, Some(host)) => host.clone(),
        (Some(authority), host) => {
            let text = authority.as_str();
            let differs =
                |host: &HeaderValue| !host.as_bytes().eq_ignore_ascii_case(text.as_bytes());
            if host.is_some_and(differs) {
                return Err(Reason::HostInvalid);
            }
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            HeaderValue::from_maybe_shared(bytes).map_err(|_| Reason::HostInvalid)?
        }
    };
    check_authority(value.as_bytes())?;
    Ok(value)
}

/// Fields that are dropped, refused or joined. What belongs to the connection the codec has refused already.
fn fields(headers: &mut HeaderMap) -> Result<(), Reason> {
    join_cookies(headers)?;
    if headers.len() > MAX_HEADERS {
        return Err(Reason::TooManyHeaders);
    }
    let mut odd: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        if name.as_str().contains('_') {
            if is_twin(name.as_str().as_bytes()) {
                return Err(Reason::UnderscoreTwin);
            }
            odd.push(name.clone());
        }
    }
    for name in odd {
        headers.remove(name);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        if lengths.next().is_some() {
            return Err(Reason::ContentLengthDuplicate);
        }
        let digits = length.as_bytes();
        if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Reason::ContentLengthInvalid);
        }
    }
    if let Some(expect) = headers.get(EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Reason::Expect);
    }
    Ok(())
}

/// Cookies may come in crumbs, but leave as one field.
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Reason> {
    let crumbs = headers.get_all(COOKIE);
    if crumbs.iter().nth(1).is_none() {
        return Ok(());
    }
    let mut joined = BytesMut::with_capacity(crumbs.iter().map(|c| c.len() + 2).sum());
    for crumb in crumbs {
        if !joined.is_empty() {
            joined.put_slice(b"; ");
        }
        joined.put_slice(crumb.as_bytes());
    }
    let value = HeaderValue::from_maybe_shared(joined.freeze());
    headers.insert(COOKIE, value.map_err(|_| Reason::HeaderValue)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, fields: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::get(uri).body(()).unwrap();
        for (name, value) in fields {
            let (name, value) = (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
            request.headers_mut().append(name, value);
        }
        request
    }

    #[test]
    fn the_common_form() {
        let mut got = request(
            "https://A.example:8443/p?q=1",
            &[
                ("cookie", "a=1"),
                ("x_y", "1"),
                ("cookie", "b=2"),
                ("cookie", "c=3"),
            ],
        );
        assert_eq!(admit(&mut got).unwrap(), Http2Request::default());
        assert_eq!(got.uri(), "/p?q=1");
        assert_eq!(got.headers()[HOST], "A.example:8443");
        assert_eq!(got.headers()[COOKIE], "a=1; b=2; c=3");
        assert_eq!(got.headers().len(), 2, "{got:?}");
        let mut alone = request("/p", &[("host", "A")]);
        assert!(admit(&mut alone).is_ok());
        assert_eq!(alone.headers()[HOST], "A");
        let mut same = request("http://a/", &[("host", "A")]);
        assert!(admit(&mut same).is_ok());
        assert_eq!(same.headers().get_all(HOST).iter().count(), 1);
    }

    #[test]
    fn what_is_refused() {
        let table: [(&str, &str, Reason); 15] = [
            ("ftp://a/", "", Reason::Scheme),
            ("/", "", Reason::HostMissing),
            ("https://u@a/", "", Reason::HostInvalid),
            ("https://a:0/", "", Reason::HostInvalid),
            ("https://a/", "host: b", Reason::HostInvalid),
            ("https://a/", "host: a; host: a", Reason::HostDuplicate),
            ("https://a/%00", "", Reason::TargetEncoding),
            ("https://a/%2", "", Reason::TargetEncoding),
            ("https://a/", "content_length: 1", Reason::UnderscoreTwin),
            ("https://a/", "x_forwarded_for: 1", Reason::UnderscoreTwin),
            ("https://a/", "expect: 200-ok", Reason::Expect),
            (
                "https://a/",
                "content-length: 1; content-length: 1",
                Reason::ContentLengthDuplicate,
            ),
            (
                "https://a/",
                "content-length: 1, 1",
                Reason::ContentLengthInvalid,
            ),
            (
                "https://a/",
                "content-length: ",
                Reason::ContentLengthInvalid,
            ),
            ("https://a,b/", "", Reason::HostInvalid),
        ];
        for (uri, fields, reason) in table {
            let mut request = Request::get(uri).body(()).unwrap();
            for field in fields.split("; ").filter(|field| !field.is_empty()) {
                let (name, value) = field.split_once(": ").unwrap();
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                request
                    .headers_mut()
                    .append(name, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(
                admit(&mut request),
                Err(Refusal { reason }),
                "{uri} {fields}"
            );
        }
        let mut long = request("https://a/", &[]);
        *long.uri_mut() = format!("https://a/{}", "x".repeat(TARGET_MAX))
            .parse()
            .unwrap();
        let reason = Reason::TargetTooLong;
        assert_eq!(admit(&mut long), Err(Refusal { reason }));
    }

    #[test]
    fn only_websockets_may_connect() {
        let connect = |protocol: Option<&'static str>| {
            let mut request = request("https://a/chat", &[]);
            *request.method_mut() = Method::CONNECT;
            if let Some(protocol) = protocol {
                request
                    .extensions_mut()
                    .insert(Protocol::from_static(protocol));
            }
            let kind = admit(&mut request);
            (kind, request.method().clone())
        };
        let websocket = Http2Request { websocket: true };
        assert_eq!(connect(Some("websocket")), (Ok(websocket), Method::GET));
        let refused = Err(Refusal {
            reason: Reason::Connect,
        });
        assert_eq!(connect(Some("connect-udp")).0, refused);
        assert_eq!(connect(None).0, refused);
    }
}
