//! Which node writes: the holder of one Lease.
//!
//! Invariant: two nodes never believe at one time that they lead, whatever their clocks say. A holder stops a while before
//! the lease can have expired, counted from the begin of its last renewal; others count from when they saw that renewal,
//! each by its own monotonic clock. Every write to the Lease names the version that was read.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::core::ApiResource;
use kube::core::params::GetParams;
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::{Access, Failure, Target, What, by_us, path};

/// Name of the Lease.
pub(super) const NAME: &str = "forebay-leader";

/// How long a lease is good after a renewal.
const DURATION: Duration = Duration::from_secs(10);
/// The longest that another holder may claim for itself.
const LONGEST: Duration = Duration::from_secs(60);
/// How long the holder acts on it: what is under way then has time to arrive.
const LEADS: Duration = Duration::from_secs(7);
/// Between two renewals, or two looks at another's lease.
const PERIOD: Duration = Duration::from_secs(2);
/// How long a try may take.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Until when this node leads; none: it does not.
#[derive(Clone, Debug)]
pub(super) struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// Whether this node leads now.
    pub(super) fn leads(&self) -> bool {
        self.0.borrow().is_some_and(|until| until > Instant::now())
    }

    /// Waits until this node leads, or does not any more.
    pub(super) async fn becomes(&mut self, leading: bool) {
        loop {
            if self.leads() == leading {
                return;
            }
            let until = *self.0.borrow_and_update();
            let until = until.filter(|until| *until > Instant::now());
            let expired = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.0.changed() => if changed.is_err() {
                    // The lease was given back for good.
                    return std::future::pending().await;
                },
                () = expired => {}
            }
        }
    }
}

/// Competes for the lease.
pub(super) struct Candidate {
    access: Access,
    namespace: String,
    name: &'static str,
    holder: String,
    resource: ApiResource,
    /// As it was last read, and when it was last seen to change.
    seen: Option<(Lease, Instant)>,
    until: watch::Sender<Option<Instant>>,
    complained: bool,
}

impl Candidate {
    /// One for `node`. A process that comes after another on the same node is not taken for it: both may run for a while.
    pub(super) fn new(access: Access, namespace: &str, node: &str) -> (Self, Leadership) {
        let (until, leadership) = watch::channel(None);
        let candidate = Self {
            access,
            namespace: namespace.to_owned(),
            name: NAME,
            holder: format!("{node}_{:016x}", RandomState::new().hash_one(node)),
            resource: ApiResource::erase::<Lease>(&()),
            seen: None,
            until,
            complained: false,
        };
        (candidate, Leadership(leadership))
    }

    /// Competes, and gives the lease back when `stop` is set.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let started = Instant::now();
            let tried = tokio::time::timeout(TIMEOUT, self.attempt()).await;
            let tried = tried.unwrap_or_else(|_| {
                Err(Failure::Unavailable(format!(
                    "no answer within {TIMEOUT:?}"
                )))
            });
            self.note(started, tried);
            let wait = self.wait();
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep_until(started + wait) => {}
            }
        }
        self.until.send_replace(None);
        let _ = tokio::time::timeout(TIMEOUT, self.release()).await;
    }

    /// Those who only look do so at different times.
    fn wait(&self) -> Duration {
        let leads = self.until.borrow().is_some();
        let spread = RandomState::new().hash_one(PERIOD.as_millis()) % 500;
        PERIOD + Duration::from_millis(if leads { 0 } else { spread })
    }

    fn note(&mut self, started: Instant, tried: Result<bool, Failure>) {
        match tried {
            Ok(leads) => {
                self.complained = false;
                let until = leads.then_some(started + LEADS);
                let before = self.until.send_replace(until);
                if before.is_some() != leads {
                    tracing::info!(leads, "the lease that lets one node write statuses");
                }
            }
            Err(failure) => {
                // What was held stays held until its time is up.
                let expired = self
                    .until
                    .borrow()
                    .is_some_and(|until| until <= Instant::now());
                if expired {
                    self.until.send_replace(None);
                }
                // Of a missing rule it is said which.
                let said = failure == Failure::Forbidden;
                if !std::mem::replace(&mut self.complained, true) && !said {
                    tracing::warn!("Lease {}/{}: {failure}", self.namespace, self.name);
                }
            }
        }
    }

    fn target(&self, verb: &'static str) -> Target<'_> {
        Target {
            what: What::Lease,
            resource: &self.resource,
            part: "",
            namespace: &self.namespace,
            verb,
        }
    }

    /// Tries to hold the lease; says whether it does.
    async fn attempt(&mut self) -> Result<bool, Failure> {
        let ours = self.seen.take_if(|(lease, _)| self.holder == holder(lease));
        if let Some((lease, at)) = ours {
            // Held so far, and nobody else can have written since: one request is enough.
            match self.write(lease.clone()).await {
                Err(Failure::Conflict(_) | Failure::Gone) => {}
                Err(failure) => {
                    self.seen = Some((lease, at));
                    return Err(failure);
                }
                Ok(()) => return Ok(true),
            }
        }
        let request = path(&self.resource, &self.namespace).get(self.name, &GetParams::default());
        let lease = match self.access.call::<Lease>(self.target("get"), request).await {
            Ok(lease) => lease,
            Err(Failure::Gone) => return self.create().await,
            Err(failure) => return Err(failure),
        };
        let now = Instant::now();
        let since = match &self.seen {
            Some((before, since)) if before.spec == lease.spec => *since,
            _ => now,
        };
        self.seen = Some((lease.clone(), since));
        let free = holder(&lease).is_empty() || holder(&lease) == self.holder;
        if !free && now < since + duration(&lease) {
            return Ok(false);
        }
        match self.write(lease).await {
            Ok(()) => Ok(true),
            // Another one was faster.
            Err(Failure::Conflict(_)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn create(&mut self) -> Result<bool, Failure> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(&Lease::default())),
        };
        let request = path(&self.resource, &self.namespace).create(&by_us(), bytes(&lease)?);
        match self.access.call(self.target("create"), request).await {
            Ok(lease) => {
                self.seen = Some((lease, Instant::now()));
                Ok(true)
            }
            Err(Failure::Conflict(_)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Writes it as held by this node.
    async fn write(&mut self, mut lease: Lease) -> Result<(), Failure> {
        lease.spec = Some(self.spec(&lease));
        let lease = self.replace(&lease).await?;
        self.seen = Some((lease, Instant::now()));
        Ok(())
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, Failure> {
        let request =
            path(&self.resource, &self.namespace).replace(self.name, &by_us(), bytes(lease)?);
        self.access.call(self.target("update"), request).await
    }

    /// Held by this node from now on, or still.
    fn spec(&self, lease: &Lease) -> LeaseSpec {
        let now = MicroTime(jiff::Timestamp::now());
        let before = lease.spec.clone().unwrap_or_default();
        let still = before.holder_identity.as_deref() == Some(&self.holder);
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before
                .acquire_time
                .filter(|_| still)
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(!still && lease.spec.is_some())),
            ..before
        }
    }

    /// Gives it back, so that the next one need not wait.
    async fn release(&mut self) -> Result<(), Failure> {
        let Some((mut lease, _)) = self.seen.take() else {
            return Ok(());
        };
        if holder(&lease) != self.holder {
            return Ok(());
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        self.replace(&lease).await.map(drop)
    }
}

fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or("")
}

/// How long it is good after it was seen to change.
fn duration(lease: &Lease) -> Duration {
    let said = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.lease_duration_seconds);
    let said = said.and_then(|seconds| u64::try_from(seconds).ok());
    said.map_or(DURATION, Duration::from_secs)
        .clamp(DURATION, LONGEST)
}

fn bytes(lease: &Lease) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(lease).map_err(|error| Failure::Invalid(error.to_string()))
}
