//! Connects to the API server and starts the thread that talks to it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use kube::{Client, Config};
use tokio::sync::{mpsc, watch};

use super::cache::Cache;
use super::health::Health;
use super::manager::Manager;
use super::permissions::Permissions;
use super::seen::Seen;
use super::source::Source;
use super::writer::{Identity, Writer};
use crate::file::keys;
use crate::translate::Kind;

/// Batches of changes that may wait for the control task.
pub(super) const WAITING: usize = 1024;

/// Longest time to set up a connection to the API server.
const CONNECT: Duration = Duration::from_secs(2);

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Namespaces that are read; none: all.
    pub namespaces: Vec<String>,
    /// Name of this node, under which it competes for the lease.
    pub node: String,
    /// Directory in which the objects are kept for a start without an API server.
    pub state_dir: PathBuf,
    /// Secrets are kept there too.
    pub cache_secrets: bool,
}

/// Why there is no API server to talk to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a pod's environment.
    #[error(
        "there is no way to the API server: {0}; run in a pod with a service account, or name a kubeconfig in KUBECONFIG"
    )]
    Config(String),
    /// The certificates or the credentials cannot be used.
    #[error("the API server's address or credentials cannot be used: {0}")]
    Client(String),
    /// The system refuses a thread or a runtime.
    #[error("the thread of the API server cannot be started: {0}; check the limits on processes")]
    Thread(#[from] std::io::Error),
}

/// Connects, which needs no answer yet, and follows.
///
/// # Errors
/// See [`Error`].
pub fn start(options: Options) -> Result<Source, Error> {
    let (told, changes) = mpsc::channel(WAITING);
    let (want, wanted) = watch::channel(BTreeSet::new());
    let permissions = Permissions::new(options.namespaces.clone());
    let health = Health::new(permissions.clone());
    let cache = Cache::new(&options.state_dir, options.cache_secrets);
    let of_thread = health.clone();
    let writer = on_thread(|client| {
        let seen = Seen::default();
        let identity = Identity {
            node: options.node,
            namespace: keys::NAMESPACE.to_owned(),
            permissions,
        };
        let writer = Writer::start(client.clone(), seen.clone(), &identity);
        let manager = Manager {
            client,
            kinds: Kind::ALL,
            namespaces: options.namespaces,
            wanted,
            told,
            seen,
            health: of_thread,
        };
        (writer, manager.run())
    })?;
    Ok(Source::new(changes, want, health, writer, cache))
}

/// Runs what talks to the API server on a thread and a runtime of its own: `start` is called there, and gives what the caller
/// gets and what goes on.
///
/// # Errors
/// See [`Error`].
pub(super) fn on_thread<T, F>(
    start: impl FnOnce(Client) -> (T, F) + Send + 'static,
) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = ()>,
{
    let (connected, connection) = std::sync::mpsc::sync_channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("kubernetes".into())
        .spawn(move || {
            runtime.block_on(async move {
                match connect().await.map(start) {
                    Ok((started, goes_on)) => {
                        drop(connected.send(Ok(started)));
                        goes_on.await;
                    }
                    Err(error) => drop(connected.send(Err(error))),
                }
            });
        })?;
    connection
        .recv()
        .unwrap_or_else(|_| Err(Error::Client("its thread has ended".to_owned())))
}

/// Sets up the connection, which needs no answer yet.
pub(crate) async fn connect() -> Result<Client, Error> {
    let mut config = Config::infer()
        .await
        .map_err(|error| Error::Config(error.to_string()))?;
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|error| Error::Client(error.to_string()))
}
