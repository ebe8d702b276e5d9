//! Limits of one cluster on one node: connections, waiting requests and active requests.
//!
//! True reservations: a count never passes its limit, and what is taken is given back exactly once. Below the limit
//! only atomics are touched. At the connection limit requests wait in one FIFO for the whole node; a connection that
//! comes free belongs to the head of it, whichever worker it comes from. Order of checks for a request (Envoy,
//! measured): a ready connection, or room for one more → active requests below their limit, else overflow; no room
//! → waiting requests below their limit, else overflow. A request that has room to connect does not count as
//! waiting, so the outcome does not depend on how fast connects are.
//!
//! A waiter is a token `T`; whoever changes a count gets back the tokens that must be told. Nothing here blocks,
//! wakes or knows connections: idle ones stay with the workers, which keep their permits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::snapshot::ConnectionPool;

/// No limit.
const UNLIMITED: u32 = u32::MAX;

/// Counts and limits of one cluster.
#[derive(Debug)]
pub struct Limiter<T> {
    max_connections: AtomicU32,
    max_pending: AtomicU32,
    max_requests: AtomicU32,
    connections: AtomicU32,
    requests: AtomicU32,
    /// Length of the queue, readable without its lock. Raised before the last look at `connections`, so that
    /// either the waiter sees a permit that comes free or the one who frees it sees the waiter.
    waiting: AtomicU32,
    queue: Mutex<Queue<T>>,
}

#[derive(Debug)]
struct Queue<T> {
    next: u64,
    waiters: BTreeMap<u64, T>,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What became of a request that found no connection and no room for one.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait<T> {
    /// It waits.
    Queued(Ticket),
    /// Room came free meanwhile: it holds a connection permit; its token comes back.
    Connection(T),
    /// Too many wait already.
    Overflow(T),
}

/// A waiter that has to be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Wake<T> {
    /// It now holds a request permit, and the connection or connection permit that came free.
    Granted(T),
    /// A connection came free, but the active requests are at their limit.
    Overflow(T),
}

/// Permits in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InUse {
    /// Connections, busy, idle and being opened.
    pub connections: u32,
    /// Active requests.
    pub requests: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
}

impl<T> Limiter<T> {
    /// A limiter with nothing taken.
    #[must_use]
    pub fn new(pool: &ConnectionPool) -> Self {
        let limiter = Self {
            max_connections: AtomicU32::new(0),
            max_pending: AtomicU32::new(0),
            max_requests: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            queue: Mutex::new(Queue {
                next: 0,
                waiters: BTreeMap::new(),
            }),
        };
        let _nobody_waits = limiter.set_limits(pool);
        limiter
    }

    /// Takes new limits; what is in use stays in use. Returns the waiters that may go now.
    #[must_use]
    pub fn set_limits(&self, pool: &ConnectionPool) -> Vec<Wake<T>> {
        let set = |slot: &AtomicU32, limit: Option<u32>| {
            slot.store(limit.unwrap_or(UNLIMITED), SeqCst);
        };
        set(&self.max_connections, pool.max_connections);
        set(&self.max_pending, pool.max_pending_requests);
        set(&self.max_requests, pool.max_requests);
        self.dispatch()
    }

    /// Takes a request permit if there is one.
    #[must_use]
    pub fn try_request(&self) -> bool {
        take(&self.requests, &self.max_requests)
    }

    /// Gives a request permit back.
    pub fn release_request(&self) {
        give(&self.requests);
    }

    /// Takes a connection permit if there is one and nobody waits for it.
    #[must_use]
    pub fn try_connection(&self) -> bool {
        self.waiting.load(SeqCst) == 0 && take(&self.connections, &self.max_connections)
    }

    /// Whether a connection that becomes idle should be closed instead, since a limit was lowered.
    #[must_use]
    pub fn over_limit(&self) -> bool {
        self.connections.load(SeqCst) > self.max_connections.load(SeqCst)
    }

    /// Queues a request that found neither a ready connection nor a connection permit.
    pub fn wait(&self, token: T) -> Wait<T> {
        let mut queue = self.lock();
        let length = self.waiting.load(SeqCst);
        if length == 0 && take(&self.connections, &self.max_connections) {
            return Wait::Connection(token);
        }
        if length >= self.max_pending.load(SeqCst) {
            return Wait::Overflow(token);
        }
        self.waiting.store(length + 1, SeqCst);
        if length == 0 && take(&self.connections, &self.max_connections) {
            self.waiting.store(0, SeqCst);
            return Wait::Connection(token);
        }
        let ticket = queue.next;
        queue.next += 1;
        queue.waiters.insert(ticket, token);
        Wait::Queued(Ticket(ticket))
    }

    /// Takes a waiter out of the queue; `false` if it was granted or refused already.
    pub fn cancel(&self, ticket: Ticket) -> bool {
        let mut queue = self.lock();
        let was_waiting = queue.waiters.remove(&ticket.0).is_some();
        self.waiting.store(length(&queue), SeqCst);
        was_waiting
    }

    /// Gives a connection permit back; it passes to the head waiter if there is one.
    #[must_use]
    pub fn release_connection(&self) -> Vec<Wake<T>> {
        give(&self.connections);
        self.dispatch()
    }

    /// Who gets a connection that would become idle. The last `Wake` is the heir if it is `Granted`: the
    /// connection (or, for another worker, its permit once it is closed) is then its own. Empty: nobody waits.
    #[must_use]
    pub fn offer(&self) -> Vec<Wake<T>> {
        let mut told = Vec::new();
        if self.waiting.load(SeqCst) == 0 || self.over_limit() {
            return told;
        }
        let mut queue = self.lock();
        while let Some((_, token)) = queue.waiters.pop_first() {
            if self.try_request() {
                told.push(Wake::Granted(token));
                break;
            }
            told.push(Wake::Overflow(token));
        }
        self.waiting.store(length(&queue), SeqCst);
        told
    }

    /// Who gets a place that not everybody can use: the first waiter that `fits`. See [`Self::offer`].
    #[must_use]
    pub fn offer_to(&self, fits: impl Fn(&T) -> bool) -> Vec<Wake<T>> {
        let mut told = Vec::new();
        if self.waiting.load(SeqCst) == 0 {
            return told;
        }
        let mut queue = self.lock();
        let mut found = queue.waiters.extract_if(.., |_, token| fits(token));
        for (_, token) in found.by_ref() {
            if self.try_request() {
                told.push(Wake::Granted(token));
                break;
            }
            told.push(Wake::Overflow(token));
        }
        drop(found);
        self.waiting.store(length(&queue), SeqCst);
        told
    }

    /// Permits in use now.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        InUse {
            connections: self.connections.load(SeqCst),
            requests: self.requests.load(SeqCst),
            pending: self.waiting.load(SeqCst),
        }
    }

    /// Gives free connection permits to waiters, in their order.
    fn dispatch(&self) -> Vec<Wake<T>> {
        let mut told = Vec::new();
        if self.waiting.load(SeqCst) == 0 {
            return told;
        }
        let mut queue = self.lock();
        while !queue.waiters.is_empty() && take(&self.connections, &self.max_connections) {
            let Some((_, token)) = queue.waiters.pop_first() else {
                break;
            };
            if self.try_request() {
                told.push(Wake::Granted(token));
            } else {
                give(&self.connections);
                told.push(Wake::Overflow(token));
            }
        }
        self.waiting.store(length(&queue), SeqCst);
        told
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn length<T>(queue: &Queue<T>) -> u32 {
    u32::try_from(queue.waiters.len()).unwrap_or(u32::MAX)
}

fn take(count: &AtomicU32, limit: &AtomicU32) -> bool {
    let limit = limit.load(SeqCst);
    count
        .try_update(SeqCst, SeqCst, |n| (n < limit).then_some(n + 1))
        .is_ok()
}

fn give(count: &AtomicU32) {
    let before = count.fetch_sub(1, SeqCst);
    debug_assert!(before > 0, "a permit was given back twice");
}

#[cfg(test)]
mod tests;
