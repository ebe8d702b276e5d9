//! Tests of the limits: a model of the permits, and threads that race for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use super::*;

fn pool(connections: u32, pending: u32, requests: u32) -> ConnectionPool {
    ConnectionPool {
        max_connections: Some(connections),
        max_pending_requests: Some(pending),
        max_requests: Some(requests),
        ..ConnectionPool::default()
    }
}

#[test]
fn the_tutorials_limits_take_150_of_300() {
    let limiter = Limiter::new(&pool(100, 50, 100));
    let (mut active, mut queued, mut refused) = (0, 0, 0);
    for request in 0..300 {
        if limiter.try_connection() {
            assert!(limiter.try_request());
            active += 1;
        } else {
            match limiter.wait(request) {
                Wait::Queued(_) => queued += 1,
                Wait::Overflow(_) => refused += 1,
                Wait::Connection(_) => panic!("no connection is free"),
            }
        }
    }
    assert_eq!((active, queued, refused), (100, 50, 150));
    // The second round: each connection that comes free goes to the longest waiting request.
    for expected in 100..150 {
        limiter.release_request();
        assert_eq!(limiter.offer(), [Wake::Granted(expected)]);
    }
    limiter.release_request();
    assert_eq!(limiter.offer(), []);
}

#[test]
fn active_requests_overflow_even_if_connections_are_left() {
    let limiter: Limiter<()> = Limiter::new(&pool(10, 10, 1));
    assert!(limiter.try_connection() && limiter.try_request());
    assert!(limiter.try_connection() && !limiter.try_request());
}

#[test]
fn a_granted_connection_without_a_request_permit_is_an_overflow() {
    let limiter = Limiter::new(&pool(1, 2, 1));
    assert!(limiter.try_connection() && limiter.try_request());
    assert!(matches!(limiter.wait('a'), Wait::Queued(_)));
    assert!(matches!(limiter.wait('b'), Wait::Queued(_)));
    // The request permit is still held by another exchange: both are told, and the connection stays free.
    assert_eq!(
        limiter.release_connection(),
        [Wake::Overflow('a'), Wake::Overflow('b')]
    );
    let left = limiter.in_use();
    assert_eq!((left.connections, left.requests, left.pending), (0, 1, 0));
}

#[test]
fn a_cancelled_waiter_is_passed_over() {
    let limiter = Limiter::new(&pool(1, 5, 5));
    assert!(limiter.try_connection());
    let Wait::Queued(first) = limiter.wait('a') else {
        panic!()
    };
    assert!(matches!(limiter.wait('b'), Wait::Queued(_)));
    assert!(limiter.cancel(first) && !limiter.cancel(first));
    assert_eq!(limiter.release_connection(), [Wake::Granted('b')]);
}

#[test]
fn nobody_overtakes_the_queue() {
    let limiter = Limiter::new(&pool(1, 5, 5));
    assert!(limiter.try_connection());
    assert!(matches!(limiter.wait('a'), Wait::Queued(_)));
    let _ = limiter.set_limits(&pool(1, 5, 5));
    assert!(!limiter.try_connection());
    assert_eq!(
        limiter.set_limits(&pool(3, 5, 5)),
        [Wake::Granted('a')],
        "a raised limit lets waiters go"
    );
    assert!(limiter.try_connection());
}

#[test]
fn a_lowered_limit_lets_connections_go() {
    let limiter: Limiter<()> = Limiter::new(&pool(2, 5, 5));
    assert!(limiter.try_connection() && limiter.try_connection() && !limiter.over_limit());
    assert_eq!(limiter.set_limits(&pool(1, 5, 5)), []);
    assert!(limiter.over_limit() && !limiter.try_connection());
    assert_eq!(limiter.release_connection(), []);
    assert!(!limiter.over_limit() && !limiter.try_connection());
}

/// The proxy's use of the limiter without threads or sockets: requests that come, end, break and go away in a
/// random order, idle connections that close by themselves or are inherited by another worker.
struct Model {
    limiter: Limiter<u32>,
    limits: (u32, u32, u32),
    random: u64,
    next: u32,
    queue: VecDeque<(u32, Ticket)>,
    worker: BTreeMap<u32, u32>,
    /// Active requests and the worker of their connection.
    active: Vec<(u32, u32)>,
    /// Requests that wait for a connection to be closed, whose permit is theirs.
    heirs: Vec<u32>,
    /// Idle connections by worker.
    idle: Vec<u32>,
    refused: u32,
}

impl Model {
    const WORKERS: u32 = 3;

    fn new(seed: u64) -> Self {
        let mut model = Self {
            limiter: Limiter::new(&ConnectionPool::default()),
            limits: (0, 0, 0),
            random: seed | 1,
            next: 0,
            queue: VecDeque::new(),
            worker: BTreeMap::new(),
            active: Vec::new(),
            heirs: Vec::new(),
            idle: Vec::new(),
            refused: 0,
        };
        model.limits = (1 + model.below(4), model.below(4), 1 + model.below(5));
        let (c, p, r) = model.limits;
        let _ = model.limiter.set_limits(&pool(c, p, r));
        model
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((self.random >> 33) % u64::from(bound)) as u32
    }

    fn pick<T>(&mut self, from: impl Fn(&mut Self) -> &mut Vec<T>) -> Option<T> {
        let length = from(self).len() as u32;
        if length == 0 {
            return None;
        }
        let at = self.below(length) as usize;
        Some(from(self).swap_remove(at))
    }

    fn arrive(&mut self) {
        let (id, worker) = (self.next, self.below(Self::WORKERS));
        self.next += 1;
        self.worker.insert(id, worker);
        if let Some(at) = self.idle.iter().rposition(|w| *w == worker) {
            self.idle.remove(at);
            if self.limiter.try_request() {
                self.active.push((id, worker));
            } else {
                self.refused += 1;
                self.become_idle(worker);
            }
        } else if self.limiter.try_connection() {
            if self.limiter.try_request() {
                self.active.push((id, worker));
            } else {
                self.refused += 1;
                let wakes = self.limiter.release_connection();
                self.told_room(wakes);
            }
        } else if !self.idle.is_empty() {
            let of = self.idle.remove(0);
            if self.limiter.try_request() {
                self.heirs.push(id);
            } else {
                self.refused += 1;
                self.become_idle(of);
            }
        } else {
            match self.limiter.wait(id) {
                Wait::Queued(ticket) => self.queue.push_back((id, ticket)),
                Wait::Overflow(_) => self.refused += 1,
                Wait::Connection(_) => panic!("the fast path said that there is no room"),
            }
        }
    }

    fn become_idle(&mut self, worker: u32) {
        let wakes = self.limiter.offer();
        for wake in wakes {
            match wake {
                Wake::Granted(id) => {
                    assert_eq!(Some(id), self.queue.pop_front().map(|q| q.0), "FIFO");
                    if self.worker[&id] == worker {
                        self.active.push((id, worker));
                    } else {
                        self.heirs.push(id);
                    }
                    return;
                }
                Wake::Overflow(id) => {
                    assert_eq!(Some(id), self.queue.pop_front().map(|q| q.0), "FIFO");
                    self.refused += 1;
                }
            }
        }
        self.idle.push(worker);
    }

    fn told_room(&mut self, wakes: Vec<Wake<u32>>) {
        for wake in wakes {
            let (Wake::Granted(id) | Wake::Overflow(id)) = wake;
            assert_eq!(Some(id), self.queue.pop_front().map(|q| q.0), "FIFO");
            match wake {
                Wake::Granted(id) => self.active.push((id, self.worker[&id])),
                Wake::Overflow(_) => self.refused += 1,
            }
        }
    }

    fn close(&mut self) {
        let wakes = self.limiter.release_connection();
        self.told_room(wakes);
    }

    fn step(&mut self) {
        match self.below(10) {
            0..=3 => self.arrive(),
            4 | 5 => {
                if let Some((_, worker)) = self.pick(|m| &mut m.active) {
                    self.limiter.release_request();
                    self.become_idle(worker);
                }
            }
            // Reset, timeout or retirement: the connection is closed with the request.
            6 => {
                if self.pick(|m| &mut m.active).is_some() {
                    self.limiter.release_request();
                    self.close();
                }
            }
            7 => {
                if !self.queue.is_empty() {
                    let at = self.below(self.queue.len() as u32) as usize;
                    let (_, ticket) = self.queue.remove(at).unwrap();
                    assert!(self.limiter.cancel(ticket));
                }
            }
            8 => {
                if self.pick(|m| &mut m.idle).is_some() {
                    self.close();
                }
            }
            _ => {
                // The inherited connection is closed; its heir goes on, or has gone away.
                if let Some(id) = self.pick(|m| &mut m.heirs) {
                    if self.below(3) == 0 {
                        self.limiter.release_request();
                        self.close();
                    } else {
                        self.active.push((id, self.worker[&id]));
                    }
                }
            }
        }
        self.check();
    }

    fn check(&self) {
        let used = self.limiter.in_use();
        let (connections, pending, requests) = self.limits;
        let busy = self.active.len() + self.heirs.len();
        assert_eq!(used.connections as usize, busy + self.idle.len());
        assert_eq!(used.requests as usize, busy);
        assert_eq!(used.pending as usize, self.queue.len());
        assert!(used.connections <= connections && used.requests <= requests);
        assert!(used.pending <= pending);
        let could_go = !self.idle.is_empty() || used.connections < connections;
        assert!(used.pending == 0 || !could_go, "someone waits for nothing");
    }

    fn end(mut self) -> u32 {
        while let Some((_, ticket)) = self.queue.pop_front() {
            assert!(self.limiter.cancel(ticket));
        }
        for _ in 0..self.active.len() + self.heirs.len() {
            self.limiter.release_request();
        }
        for _ in 0..self.active.len() + self.heirs.len() + self.idle.len() {
            assert_eq!(self.limiter.release_connection(), []);
        }
        let home = self.limiter.in_use();
        assert_eq!((home.connections, home.requests, home.pending), (0, 0, 0));
        self.refused
    }
}

#[test]
fn all_permits_come_home_in_any_order_of_events() {
    let mut refused = 0;
    for seed in 0..400_u64 {
        let mut model = Model::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..300 {
            model.step();
        }
        refused += model.end();
    }
    assert!(refused > 1000, "the limits were reached: {refused}");
}

/// Gives a connection back and tells whoever gets it; a waiter that is gone passes it on.
fn give_back(limiter: &Limiter<Sender<bool>>) {
    let mut wakes = limiter.release_connection();
    while let Some(wake) = wakes.pop() {
        match wake {
            Wake::Granted(waiter) => {
                if waiter.send(true).is_err() {
                    limiter.release_request();
                    wakes.extend(limiter.release_connection());
                }
            }
            Wake::Overflow(waiter) => drop(waiter.send(false)),
        }
    }
}

#[test]
fn threads_never_overshoot_and_nobody_is_forgotten() {
    const THREADS: u32 = 4;
    let limiter: Arc<Limiter<Sender<bool>>> = Arc::new(Limiter::new(&pool(2, 100, 100)));
    let held = Arc::new(AtomicU32::new(0));
    let threads = (0..THREADS).map(|_| {
        let (limiter, held) = (Arc::clone(&limiter), Arc::clone(&held));
        std::thread::spawn(move || {
            for _ in 0..3_000 {
                if limiter.try_connection() {
                    assert!(limiter.try_request());
                } else {
                    let (sender, receiver) = channel();
                    match limiter.wait(sender) {
                        Wait::Connection(_) => assert!(limiter.try_request()),
                        Wait::Queued(_) => {
                            // A lost wake-up would end the test here.
                            let granted = receiver.recv_timeout(std::time::Duration::from_secs(20));
                            assert!(granted.unwrap());
                        }
                        Wait::Overflow(_) => panic!("fewer threads than places"),
                    }
                }
                assert!(held.fetch_add(1, SeqCst) < 2, "overshoot");
                std::hint::spin_loop();
                held.fetch_sub(1, SeqCst);
                limiter.release_request();
                give_back(&limiter);
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
    let home = limiter.in_use();
    assert_eq!((home.connections, home.requests, home.pending), (0, 0, 0));
}

#[test]
fn a_place_goes_to_the_first_that_fits_and_the_others_wait_on() {
    let limiter = Limiter::new(&pool(1, 5, 2));
    assert!(limiter.try_connection() && limiter.try_request());
    for token in 1..=4 {
        assert!(matches!(limiter.wait(token), Wait::Queued(_)));
    }
    let even = |token: &i32| token % 2 == 0;
    assert_eq!(limiter.offer_to(|_| false), []);
    assert_eq!(limiter.offer_to(even), [Wake::Granted(2)]);
    assert_eq!(limiter.offer_to(even), [Wake::Overflow(4)]);
    let in_use = limiter.in_use();
    assert_eq!((in_use.requests, in_use.pending), (2, 2));
    limiter.release_request();
    assert_eq!(limiter.release_connection(), [Wake::Granted(1)]);
}
