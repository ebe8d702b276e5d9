//! Scripted HTTP backends in one namespace, controllable while they run.
//!
//! One thread with a current-thread runtime serves all addresses. A backend never closes a connection by
//! itself; what it answers and what it saw is shared with the scenario.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime, sync::Notify};

use crate::netns::Netns;

/// A request whose path is this and a number is held for so many milliseconds, whatever else the backend does.
pub const HOLD: &str = "/hold/";

/// A request whose path is this and a number is answered with so many bytes.
pub const BYTES: &str = "/bytes/";

/// Port of every backend.
pub const PORT: u16 = 5678;

/// What a backend does with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// How long it keeps the request before it answers.
    pub hold: Duration,
    /// Whether it answers 500.
    pub fail: bool,
}

/// A request that reached a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who connected: the node that proxied it.
    pub peer: IpAddr,
    /// Path and query.
    pub path: String,
    /// `X-Forwarded-For`.
    pub forwarded_for: Option<String>,
}

/// One backend, as the scenario sees it.
#[derive(Debug)]
pub struct Backend {
    text: String,
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    release: Notify,
}

impl Backend {
    /// Changes what it does from the next request on.
    pub fn set(&self, behaviour: Behaviour) {
        *lock(&self.behaviour) = behaviour;
    }

    /// Answers every held request at once.
    pub fn release(&self) {
        self.release.notify_waiters();
    }

    /// What it saw since the last [`Self::forget`].
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    /// Requests seen since the last [`Self::forget`].
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.seen).len()
    }

    /// Forgets what it saw.
    pub fn forget(&self) {
        lock(&self.seen).clear();
    }

    async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request
            .uri()
            .path_and_query()
            .map_or_else(String::new, ToString::to_string);
        let forwarded_for = text_of(request.headers(), "x-forwarded-for");
        let is_upload = request.method() == Method::POST;
        let asked = path.strip_prefix(HOLD).and_then(|ms| ms.parse().ok());
        let length = path.strip_prefix(BYTES).and_then(|n| n.parse().ok());
        lock(&self.seen).push(Seen {
            peer,
            path,
            forwarded_for,
        });
        let Behaviour { hold, fail } = *lock(&self.behaviour);
        let hold = hold.max(asked.map_or(Duration::ZERO, Duration::from_millis));
        if !hold.is_zero() {
            // Either way it is time to answer: the hold is over or the scenario ended it.
            let _ = tokio::time::timeout(hold, self.release.notified()).await;
        }
        let body = if fail {
            "told to fail\n".to_owned()
        } else if is_upload {
            // One that breaks off has no whole body.
            let read = request.into_body().collect().await;
            let length = read.map_or(0, |body| body.to_bytes().len());
            format!("{length} bytes\n")
        } else if let Some(length) = length {
            ".".repeat(length)
        } else {
            format!("{}\n", self.text)
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        if fail {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        response
    }
}

/// All backends of a topology.
#[derive(Debug)]
pub struct Backends {
    by_address: BTreeMap<Ipv4Addr, Arc<Backend>>,
}

impl Backends {
    /// Starts a backend on each address (which the namespace must have), answering the text beside it.
    ///
    /// # Errors
    /// If an address cannot be listened on.
    pub fn start(netns: &Netns, texts: &[(Ipv4Addr, &str)]) -> Result<Self> {
        let new = |text: &str| Backend {
            text: text.to_owned(),
            behaviour: Mutex::default(),
            seen: Mutex::default(),
            release: Notify::new(),
        };
        let by_address: BTreeMap<_, _> = texts
            .iter()
            .map(|&(address, text)| (address, Arc::new(new(text))))
            .collect();
        let (ready, started) = mpsc::channel();
        let (netns, served) = (netns.clone(), by_address.clone());
        thread::Builder::new()
            .name("backends".into())
            .spawn(move || {
                if let Err(error) = netns.enter().and_then(|()| serve(served, &ready)) {
                    let _ = ready.send(Err(error)); // nobody listens any more: the scenario is over
                }
            })?;
        started.recv().context("the backends' thread ended")??;
        Ok(Self { by_address })
    }

    /// The backend with this address.
    ///
    /// # Errors
    /// If there is none.
    pub fn at(&self, address: Ipv4Addr) -> Result<&Backend> {
        self.by_address
            .get(&address)
            .map(AsRef::as_ref)
            .ok_or_else(|| anyhow!("no backend at {address}"))
    }

    fn all(&self) -> impl Iterator<Item = &Backend> {
        self.by_address.values().map(AsRef::as_ref)
    }

    /// What all of them saw.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.all().flat_map(Backend::seen).collect()
    }

    /// Requests that all of them saw.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all().map(Backend::count).sum()
    }

    /// Gives all of them the same behaviour.
    pub fn set_all(&self, behaviour: Behaviour) {
        self.all().for_each(|backend| backend.set(behaviour));
    }

    /// Makes all of them forget what they saw.
    pub fn forget_all(&self) {
        self.all().for_each(Backend::forget);
    }
}

fn serve(
    backends: BTreeMap<Ipv4Addr, Arc<Backend>>,
    ready: &mpsc::Sender<Result<()>>,
) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(async {
        for (address, backend) in backends {
            let address = SocketAddr::from((address, PORT));
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            tokio::spawn(accept(listener, backend));
        }
        // The scenario may have given up waiting; then the thread just goes on until the process ends.
        let _ = ready.send(Ok(()));
        std::future::pending().await
    })
}

async fn accept(listener: TcpListener, backend: Arc<Backend>) {
    while let Ok((stream, peer)) = listener.accept().await {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            let answer = service_fn(|request| async {
                Ok::<_, Infallible>(backend.answer(peer.ip(), request).await)
            });
            // A proxy that goes away is the scenario's business.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
