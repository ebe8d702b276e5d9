//! Answers that the proxy gives by itself: short, plain, and without a word about what is behind it.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, SERVER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::body::ResponseBody;
use super::scan::Refusal;
use super::stats::Flag;
use crate::l7::grpc;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// A local answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// No listener or no route for the request.
    NoRoute,
    /// The address or port is no longer configured: 404, and the connection closes.
    NoListener,
    /// The rule has no backend, or the chosen one is invalid.
    NoBackend,
    /// No endpoint is there, or all are ejected.
    NoHealthyUpstream,
    /// A limit was reached.
    Overflow,
    /// The proxy itself has no memory left for it.
    Overloaded,
    /// The endpoint could not be connected to.
    ConnectFailure,
    /// The endpoint closed the connection before it answered.
    UpstreamClosed,
    /// The endpoint sent what is no HTTP.
    UpstreamProtocol,
    /// The endpoints speak HTTP/2 only, which cannot be upgraded.
    NoUpgrade,
    /// The connection is for another listener's names (RFC 9110, 15.5.20).
    Misdirected,
    /// A timeout of the route passed.
    Timeout,
    /// The request is not acceptable: 400, and the connection closes.
    BadRequest,
    /// The client broke off its body: 400, if it still listens, and the connection closes.
    BodyAborted,
    /// The scanner refused it; the connection closes.
    Refused(Refusal),
    /// The built-in readiness listener: ready.
    Ready,
    /// The built-in readiness listener: not ready.
    NotReady,
}

impl Reply {
    /// Status code.
    #[must_use]
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::NoRoute | Self::NoListener => StatusCode::NOT_FOUND,
            Self::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoHealthyUpstream
            | Self::Overflow
            | Self::Overloaded
            | Self::ConnectFailure
            | Self::UpstreamClosed
            | Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamProtocol | Self::NoUpgrade => StatusCode::BAD_GATEWAY,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BadRequest | Self::BodyAborted => StatusCode::BAD_REQUEST,
            Self::Refused(refusal) => refusal.status(),
            Self::Ready => StatusCode::OK,
        }
    }

    /// Response flag.
    #[must_use]
    pub(super) fn flag(self) -> Option<Flag> {
        Some(match self {
            Self::NoRoute | Self::NoListener | Self::Misdirected => Flag::NoRoute,
            Self::NoBackend => Flag::NoCluster,
            Self::NoHealthyUpstream => Flag::NoHealthyUpstream,
            Self::Overflow => Flag::Overflow,
            Self::Overloaded => Flag::Overload,
            Self::ConnectFailure => Flag::ConnectFailure,
            Self::UpstreamClosed => Flag::UpstreamClosed,
            Self::UpstreamProtocol | Self::NoUpgrade => Flag::UpstreamProtocol,
            Self::Timeout => Flag::Timeout,
            Self::BadRequest | Self::Refused(_) => Flag::DownstreamProtocol,
            Self::BodyAborted => Flag::DownstreamClosed,
            Self::Ready | Self::NotReady => return None,
        })
    }

    fn text(self) -> &'static str {
        match self {
            Self::NoRoute | Self::NoListener => "no route\n",
            Self::NoBackend => "no valid backend\n",
            Self::NoHealthyUpstream => "no healthy upstream\n",
            Self::Overflow | Self::Overloaded => "overloaded\n",
            Self::ConnectFailure => "upstream connect failure\n",
            Self::UpstreamClosed => "upstream closed the connection\n",
            Self::UpstreamProtocol => "upstream protocol error\n",
            Self::NoUpgrade => "upstream cannot be upgraded\n",
            Self::Misdirected => "misdirected request\n",
            Self::Timeout => "upstream timeout\n",
            Self::BadRequest | Self::BodyAborted | Self::Refused(_) => "bad request\n",
            Self::Ready => "ready\n",
            Self::NotReady => "not ready\n",
        }
    }

    /// Whether the connection must not be used again.
    #[must_use]
    pub(super) fn closes(self) -> bool {
        matches!(
            self,
            Self::NoListener | Self::BadRequest | Self::BodyAborted | Self::Refused(_)
        )
    }

    /// The response; `HEAD` gets no body.
    #[must_use]
    pub(super) fn response(self, method: &Method) -> Response<ResponseBody> {
        let text = Bytes::from_static(self.text().as_bytes());
        let mut response = Response::new(ResponseBody::Local(None));
        let headers = response.headers_mut();
        headers.reserve(5);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        sign(headers);
        self.tell_overload(headers);
        if self.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if *method == Method::HEAD {
            headers.insert(http::header::CONTENT_LENGTH, text.len().into());
        } else {
            *response.body_mut() = ResponseBody::Local(Some(text));
        }
        *response.status_mut() = self.status();
        response
    }
}

impl Reply {
    /// The gRPC status; where Gateway API names one for GRPCRoutes, that one.
    fn grpc_status(self) -> u8 {
        match self {
            Self::NoBackend => 14, // UNAVAILABLE
            other => grpc::status_of(other.status().as_u16()),
        }
    }

    /// The response to a gRPC client: the status in the only header block there is (gRPC over HTTP/2, "Trailers-Only").
    #[must_use]
    pub(super) fn grpc_response(self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::Local(None));
        let headers = response.headers_mut();
        headers.reserve(5);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        sign(headers);
        headers.insert(GRPC_STATUS, u16::from(self.grpc_status()).into());
        headers.insert(GRPC_MESSAGE, grpc::encode_message(self.text().trim_end()));
        self.tell_overload(headers);
        response
    }

    /// Tells clients and proxies in front that trying again elsewhere may help.
    fn tell_overload(self, headers: &mut HeaderMap) {
        if matches!(self, Self::Overflow | Self::Overloaded) {
            headers.insert(OVERLOADED, HeaderValue::from_static("true"));
        }
    }
}

/// Says that the proxy answers by itself.
pub(super) fn sign(headers: &mut HeaderMap) {
    headers.insert(SERVER, HeaderValue::from_static("forebay"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body;

    #[test]
    fn overflow_is_told_as_envoy_tells_it() {
        let response = Reply::Overflow.response(&Method::GET);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-envoy-overloaded"], "true");
        assert_eq!(response.headers()["server"], "forebay");
        assert_eq!(response.body().size_hint().exact(), Some(11));
        let other = Reply::NoHealthyUpstream.response(&Method::GET);
        assert!(!other.headers().contains_key("x-envoy-overloaded"));
    }

    #[test]
    fn grpc_clients_get_a_status_of_theirs() {
        let table = [
            (Reply::NoRoute, "12"),
            (Reply::NoBackend, "14"),
            (Reply::Overflow, "14"),
            (Reply::Timeout, "14"),
            (Reply::BadRequest, "13"),
            (Reply::Misdirected, "2"),
        ];
        for (reply, status) in table {
            let response = reply.grpc_response();
            assert_eq!(response.status(), 200, "{reply:?}");
            assert_eq!(response.headers()["grpc-status"], status, "{reply:?}");
            assert_eq!(response.headers()["content-type"], "application/grpc");
            assert!(response.body().is_end_stream(), "{reply:?}");
        }
        let message = Reply::NoRoute.grpc_response();
        assert_eq!(message.headers()["grpc-message"], "no route");
    }

    #[test]
    fn head_gets_the_length_but_no_body() {
        let response = Reply::NoRoute.response(&Method::HEAD);
        assert_eq!(response.headers()["content-length"], "9");
        assert!(response.body().is_end_stream());
    }
}
