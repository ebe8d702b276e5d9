//! The client's socket, which notes its progress.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Downstream;
use crate::datapath;

/// A socket that notes progress, and at its end that its client has not got everything.
#[derive(Debug)]
pub(in crate::proxy) struct Watched {
    inner: TcpStream,
    notes: Rc<Downstream>,
}

impl Watched {
    /// Wraps `inner`.
    pub(in crate::proxy) fn new(inner: TcpStream, notes: Rc<Downstream>) -> Self {
        Self { inner, notes }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Once it is closed nobody can ask any more. Without descriptors left the kernel alone goes on with it.
        if datapath::owed(&self.inner).is_ok_and(|owed| owed.any)
            && let Ok(socket) = self.inner.as_fd().try_clone_to_owned()
        {
            self.notes.owes(socket);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.notes.note_read(match &result {
            Poll::Ready(_) => Some(buf.filled().len() - before),
            Poll::Pending => None,
        });
        result
    }
}

impl Watched {
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.notes.note_write(match &result {
            Poll::Ready(Ok(n)) => Some(*n),
            Poll::Ready(Err(_)) => Some(0),
            Poll::Pending => None,
        });
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.wrote(result)
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
