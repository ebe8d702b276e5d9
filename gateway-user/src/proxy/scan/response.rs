//! Responses of upstreams: what hyper's client lets through and a gateway may not.
//!
//! Other than its server, hyper's client hides no header field of a response, and it never reuses a connection on which
//! more came than the response; so no scanner is needed on that side, and one look at the parsed head is enough. What
//! hyper does on its own is held by the table in the tests below. Head sizes are for the connection to set:
//! [`HEAD_BYTES_MAX`] with `max_header_size`.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode, response};

/// Longest response head, in bytes, to be given to `max_header_size` of the client connection.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Why a response is not passed on. Answer 502 and discard the upstream connection, even if its body is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Fault {
    /// Content-Length beside Transfer-Encoding.
    #[error("the upstream sent Content-Length beside Transfer-Encoding")]
    FramingConflict,
    /// Not exactly one decimal number.
    #[error("the upstream sent a Content-Length that is not one number")]
    ContentLength,
    /// Anything but exactly one `chunked`.
    #[error("the upstream sent a Transfer-Encoding other than chunked")]
    TransferEncoding,
    /// 101 to a request without Upgrade.
    #[error("the upstream switched protocols without being asked")]
    UnaskedUpgrade,
    /// Not between 100 and 599.
    #[error("the upstream sent a status outside 100 to 599")]
    Status,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::FramingConflict,
        Self::ContentLength,
        Self::TransferEncoding,
        Self::UnaskedUpgrade,
        Self::Status,
    ];

    /// The name under which it is counted.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FramingConflict => "framing_conflict",
            Self::ContentLength => "content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::UnaskedUpgrade => "unasked_upgrade",
            Self::Status => "status",
        }
    }
}

/// Checks a response head that hyper has parsed; `upgrade_asked`: the request that was sent upstream had `Upgrade`.
///
/// # Errors
/// The fault for which the response is to be replaced by a 502.
pub fn check(head: &response::Parts, upgrade_asked: bool) -> Result<(), Fault> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !upgrade_asked {
        return Err(Fault::UnaskedUpgrade);
    }
    if head.status.as_u16() > 599 {
        return Err(Fault::Status);
    }
    let chunked = only(&head.headers, &TRANSFER_ENCODING, Fault::TransferEncoding)?;
    let length = only(&head.headers, &CONTENT_LENGTH, Fault::ContentLength)?;
    match (chunked, length) {
        (Some(_), Some(_)) => Err(Fault::FramingConflict),
        (Some(value), None) if !value.eq_ignore_ascii_case(b"chunked") => {
            Err(Fault::TransferEncoding)
        }
        (None, Some(value)) if value.is_empty() || !value.iter().all(u8::is_ascii_digit) => {
            Err(Fault::ContentLength)
        }
        _ => Ok(()),
    }
}

/// The value of a field that may come once.
fn only<'a>(
    headers: &'a HeaderMap,
    name: &http::HeaderName,
    fault: Fault,
) -> Result<Option<&'a [u8]>, Fault> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(fault);
    }
    Ok(first.map(http::HeaderValue::as_bytes))
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};
    use hyper::body::Bytes;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What comes of a response.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Seen {
        /// Status, length of the body, whether the connection would be used again.
        Response(u16, usize, bool),
        /// hyper refused the head.
        Error,
        /// hyper passed the head, the body broke.
        BodyError,
        /// hyper passed it, [`check`] did not.
        Fault(Fault),
    }

    async fn ask(response: &[u8]) -> Seen {
        let (mut server, client) = tokio::io::duplex(1024 * 1024);
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(2 * HEAD_BYTES_MAX)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(client))
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let request = http::Request::get("/")
            .header("host", "a")
            .body(Empty::new())
            .unwrap();
        let answer = tokio::spawn(async move {
            let result = sender.send_request(request).await;
            (sender, result)
        });
        let mut scratch = [0; 1024];
        let read = server.read(&mut scratch).await.unwrap();
        assert!(read > 0);
        // hyper may hang up before all is written.
        let _ = server.write_all(response).await;
        let (sender, result) = answer.await.unwrap();
        let Ok(response) = result else {
            return Seen::Error;
        };
        let (head, body) = response.into_parts();
        if let Err(fault) = check(&head, false) {
            return Seen::Fault(fault);
        }
        let body = if head.headers.contains_key(CONTENT_LENGTH)
            || head.headers.contains_key(TRANSFER_ENCODING)
        {
            body.collect().await
        } else {
            // Otherwise the body ends with the connection.
            drop(server);
            body.collect().await
        };
        let Ok(body) = body else {
            return Seen::BodyError;
        };
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let reusable = sender.is_ready() && !driver.is_finished();
        Seen::Response(head.status.as_u16(), body.to_bytes().len(), reusable)
    }

    fn check_rows(rows: &[(&str, Seen)]) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        for (response, seen) in rows {
            assert_eq!(
                runtime.block_on(ask(response.as_bytes())),
                *seen,
                "{response:.80}"
            );
        }
    }

    const OK: &str = "HTTP/1.1 200 OK\r\n";

    #[test]
    fn what_is_passed_on() {
        check_rows(&[
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                Seen::Response(200, 2, true),
            ),
            (
                "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
                Seen::Response(200, 2, true),
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
                Seen::Response(200, 2, false),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                Seen::Response(200, 2, true),
            ),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                Seen::Response(200, 0, true),
            ),
            (
                "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
                Seen::Response(200, 2, false),
            ),
            (
                "HTTP/1.1 599 Odd\r\nContent-Length: 0\r\n\r\n",
                Seen::Response(599, 0, true),
            ),
        ]);
    }

    #[test]
    fn what_hyper_refuses_by_itself() {
        check_rows(&[
            ("HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n", Seen::Error),
            ("HTTP/1.1 2000 X\r\nContent-Length: 0\r\n\r\n", Seen::Error),
            ("HTTP/1.1 20 X\r\nContent-Length: 0\r\n\r\n", Seen::Error),
            ("HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n", Seen::Error),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
                Seen::Error,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Seen::Error),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551618\r\n\r\nok",
                Seen::Error,
            ),
            (
                "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                Seen::Error,
            ),
            (
                "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
                Seen::Error,
            ),
            (
                "HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n",
                Seen::Error,
            ),
            (
                "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
                Seen::Error,
            ),
            (
                "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
                Seen::Error,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
                Seen::BodyError,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokok\r\n0\r\n\r\n",
                Seen::BodyError,
            ),
        ]);
        let large = format!(
            "{OK}X: {}\r\nContent-Length: 0\r\n\r\n",
            "y".repeat(HEAD_BYTES_MAX)
        );
        check_rows(&[(&large, Seen::Error)]);
        let allowed = format!("{OK}X: {}\r\nContent-Length: 0\r\n\r\n", "y".repeat(60_000));
        check_rows(&[(&allowed, Seen::Response(200, 0, true))]);
    }

    #[test]
    fn a_connection_with_more_than_the_response_is_not_used_again() {
        check_rows(&[
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!",
                Seen::Response(200, 2, false),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                Seen::Response(200, 0, false),
            ),
            (
                "HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok",
                Seen::Response(204, 0, false),
            ),
            (
                "HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\nok",
                Seen::Response(304, 0, false),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
                Seen::Response(200, 0, false),
            ),
        ]);
    }

    #[test]
    fn what_only_the_check_refuses() {
        check_rows(&[
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                Seen::Fault(Fault::FramingConflict),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
                Seen::Fault(Fault::ContentLength),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
                Seen::Fault(Fault::ContentLength),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
                Seen::Fault(Fault::TransferEncoding),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                Seen::Fault(Fault::TransferEncoding),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                Seen::Fault(Fault::TransferEncoding),
            ),
            (
                "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
                Seen::Fault(Fault::UnaskedUpgrade),
            ),
            (
                "HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n",
                Seen::Fault(Fault::Status),
            ),
            (
                "HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n",
                Seen::Fault(Fault::Status),
            ),
        ]);
    }
}
