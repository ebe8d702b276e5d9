//! Why a request was refused: a closed list, so that each can be counted without making up names at run time.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $label:literal, $status:literal;)*) => {
        /// Why a request was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name under which it is counted.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The status that it is answered with.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }
        }
    };
}

reasons! {
    /// A line ends in LF without CR.
    BareLf => "bare_lf", 400;
    /// CR that no LF follows.
    BareCr => "bare_cr", 400;
    /// More than two empty lines before a request line.
    EmptyLines => "empty_lines", 400;
    /// Not `method SP target SP version`.
    RequestLine => "request_line", 400;
    /// Not a token of upper-case letters, digits, `-` and `_`, or longer than 32 bytes.
    Method => "method", 400;
    /// CONNECT: this gateway is no tunnel.
    Connect => "connect", 501;
    /// An HTTP/2 request with a scheme other than `http` and `https`, or without one.
    Scheme => "scheme", 400;
    /// Not HTTP/1.0 or HTTP/1.1.
    Version => "version", 505;
    /// Not in a form that the method may have, or with a byte that no target may have.
    Target => "target", 400;
    /// `%` without two hexadecimal digits, or `%00`.
    TargetEncoding => "target_encoding", 400;
    /// Longer than the limit.
    TargetTooLong => "target_too_long", 414;
    /// Empty, not a token, white space around it, or no colon.
    HeaderName => "header_name", 400;
    /// A control byte in the value.
    HeaderValue => "header_value", 400;
    /// A line that begins with white space (RFC 9112, 5.2).
    ObsFold => "obs_fold", 400;
    /// `_` in a name that would then read as a framing, forwarding or credential field.
    UnderscoreTwin => "underscore_twin", 400;
    /// The section of header fields is longer than the limit.
    HeadersTooLarge => "headers_too_large", 431;
    /// More header fields than the limit.
    TooManyHeaders => "too_many_headers", 431;
    /// No Host in an HTTP/1.1 request.
    HostMissing => "host_missing", 400;
    /// More than one Host, even if equal.
    HostDuplicate => "host_duplicate", 400;
    /// Not one host with an optional port.
    HostInvalid => "host_invalid", 400;
    /// Not one decimal number, or too large.
    ContentLengthInvalid => "content_length_invalid", 400;
    /// More than one Content-Length, even if equal.
    ContentLengthDuplicate => "content_length_duplicate", 400;
    /// Anything but exactly one `chunked`.
    TransferEncodingInvalid => "transfer_encoding_invalid", 400;
    /// Transfer-Encoding in an HTTP/1.0 request.
    TransferEncodingInHttp10 => "transfer_encoding_in_http10", 400;
    /// Content-Length beside Transfer-Encoding.
    FramingConflict => "framing_conflict", 400;
    /// Connection is no list of tokens.
    ConnectionInvalid => "connection_invalid", 400;
    /// Connection names a field that must not be removed on its word.
    ConnectionNominates => "connection_nominates", 400;
    /// Anything but `100-continue`.
    Expect => "expect", 417;
    /// Not hexadecimal digits at the beginning of the line, or too large.
    ChunkSize => "chunk_size", 400;
    /// Too long, or with a control byte.
    ChunkExtension => "chunk_extension", 400;
    /// No CRLF after the data of a chunk.
    ChunkEnd => "chunk_end", 400;
    /// A trailer that would touch framing, routing or credentials.
    TrailerForbidden => "trailer_forbidden", 400;
    /// Malformed trailer field.
    TrailerInvalid => "trailer_invalid", 400;
    /// More or longer trailers than the limit.
    TrailersTooLarge => "trailers_too_large", 431;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refused request, as the service answers it: the status, no body, `connection: close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request refused: {reason}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
}

impl Refusal {
    /// The status to answer with.
    #[must_use]
    pub fn status(self) -> http::StatusCode {
        http::StatusCode::from_u16(self.reason.status())
            .expect("the table holds valid statuses only")
    }
}
