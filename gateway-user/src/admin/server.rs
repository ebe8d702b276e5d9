//! Listening sockets of the daemon's own HTTP endpoints.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};

use crate::args::Endpoint;
use crate::file::read::phrase;

/// An endpoint that could not be opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {address} cannot be opened: {why}; give another address or off with {flag}")]
pub struct BindError {
    flag: &'static str,
    address: String,
    why: String,
}

/// A bound endpoint, not yet answering.
#[derive(Debug)]
pub enum Bound {
    /// Switched off.
    Off,
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Opens the endpoint that `flag` names.
///
/// # Errors
/// One sentence that names flag and address.
pub async fn bind(flag: &'static str, endpoint: &Endpoint) -> Result<Bound, BindError> {
    let result = match endpoint {
        Endpoint::Off => Ok(Bound::Off),
        Endpoint::Tcp(address) => TcpListener::bind(address).await.map(Bound::Tcp),
        Endpoint::Unix(path) => unix(path).await.map(Bound::Unix),
    };
    result.map_err(|error| BindError {
        flag,
        address: endpoint.to_string(),
        why: match error.kind() {
            io::ErrorKind::AddrInUse => "the address is in use".into(),
            io::ErrorKind::NotFound => "its directory does not exist".into(),
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
            _ => phrase(&error),
        },
    })
}

/// A socket that a dead process left behind is taken over, one that answers is not.
async fn unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && tokio::net::UnixStream::connect(path).await.is_err() {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

impl Bound {
    /// Where it listens, with the port that the system picked.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Off => "off".into(),
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| "unknown".into(), |address| address.to_string()),
            Self::Unix(listener) => listener
                .local_addr()
                .ok()
                .and_then(|address| {
                    address
                        .as_pathname()
                        .map(|path| format!("unix:{}", path.display()))
                })
                .unwrap_or_else(|| "unknown".into()),
        }
    }

    /// Answers with `router` until the runtime ends.
    pub fn serve(self, router: Router) {
        match self {
            Self::Off => {}
            Self::Tcp(listener) => {
                tokio::spawn(async move { axum::serve(listener, router).await });
            }
            Self::Unix(listener) => {
                tokio::spawn(async move { axum::serve(listener, router).await });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_address_is_named_with_its_flag() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = holder.local_addr().unwrap();
        let error = bind("--ready", &Endpoint::Tcp(address))
            .await
            .expect_err("taken");
        assert_eq!(
            error.to_string(),
            format!(
                "--ready {address} cannot be opened: the address is in use; give another address or off with --ready"
            )
        );
        let far = Endpoint::Tcp("198.51.100.1:1".parse().unwrap());
        let error = bind("--admin", &far).await.expect_err("not here");
        assert_eq!(
            error.to_string(),
            "--admin 198.51.100.1:1 cannot be opened: this machine has no such address; give another address or off with --admin"
        );
    }

    #[tokio::test]
    async fn a_left_over_unix_socket_is_taken_over_but_not_a_live_one() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Unix(dir.path().join("admin.sock"));
        let first = bind("--admin", &endpoint).await.unwrap();
        assert!(bind("--admin", &endpoint).await.is_err());
        drop(first);
        assert!(bind("--admin", &endpoint).await.is_ok());
    }
}
