//! A client's connection below HTTP: clear text or TLS, with what was read ahead of it in front.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::downstream::Watched;

/// Most bytes taken by one read ahead.
const AHEAD: usize = 8 * 1024;

/// A client's socket.
pub(super) type Socket = Ahead<Watched>;

/// An I/O object of which the first bytes may have been read already.
#[derive(Debug)]
pub(super) struct Ahead<T> {
    bytes: BytesMut,
    inner: T,
}

impl<T: AsyncRead + Unpin> Ahead<T> {
    /// Nothing has been read yet.
    pub(super) fn new(inner: T) -> Self {
        Self {
            bytes: BytesMut::new(),
            inner,
        }
    }

    /// These bytes come first.
    pub(super) fn with(bytes: Bytes, inner: T) -> Self {
        Self {
            bytes: BytesMut::from(bytes),
            inner,
        }
    }

    /// What has been read and not been given on.
    pub(super) fn seen(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the first bytes away.
    pub(super) fn consume(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    /// Waits for more bytes and keeps them; how many came, 0 at the end.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) async fn look(&mut self) -> io::Result<usize> {
        poll_fn(|cx| {
            // On the stack of this call only: a connection that waits keeps no buffer.
            let mut scratch = [MaybeUninit::uninit(); AHEAD];
            let mut buf = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
            self.bytes.extend_from_slice(buf.filled());
            Poll::Ready(Ok(buf.filled().len()))
        })
        .await
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Ahead<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let count = self.bytes.len().min(buf.remaining());
        buf.put_slice(&self.bytes[..count]);
        self.bytes.advance(count);
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Ahead<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A connection that is clear text or TLS.
#[derive(Debug)]
pub(super) enum Either<C, T> {
    /// Clear text.
    Clear(C),
    /// TLS.
    Tls(Box<T>),
}

/// A client's connection as HTTP sees it.
pub(super) type ClientStream = Either<Socket, TlsStream<Socket>>;

/// Calls one method on whichever it is.
macro_rules! either {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Self::Clear(io) => Pin::new(io).$method($($argument),*),
            Self::Tls(io) => Pin::new(&mut **io).$method($($argument),*),
        }
    };
}

impl<C: AsyncRead + Unpin, T: AsyncRead + Unpin> AsyncRead for Either<C, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, poll_read(cx, buf))
    }
}

impl<C: AsyncWrite + Unpin, T: AsyncWrite + Unpin> AsyncWrite for Either<C, T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Clear(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown(cx))
    }
}
