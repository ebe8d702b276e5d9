//! Tests of the downstream timers on a paused clock.

use super::*;

const S: Duration = Duration::from_secs(1);

fn connection(start: Instant) -> Downstream {
    let peer = "192.0.2.1:1".parse().unwrap();
    let bind = BindKey::from("192.0.2.9:80".parse::<SocketAddr>().unwrap());
    Downstream::new(peer, bind, start, 3600 * S)
}

/// What the timer finds at `at` seconds.
fn at(notes: &Downstream, start: Instant, at: u32) -> Check {
    notes.check(start + at * S, &Timers::default())
}

#[test]
fn a_head_has_ten_seconds_in_all() {
    let start = Instant::now();
    let notes = connection(start);
    assert_eq!(at(&notes, start, 0), Check::Wait(start + 10 * S));
    assert_eq!(at(&notes, start, 9), Check::Wait(start + 10 * S));
    assert_eq!(
        at(&notes, start, 10),
        Check::Abort(Event::HeaderTimeouts),
        "bytes that trickle in do not extend it"
    );
}

#[test]
fn between_requests_a_minute() {
    let start = Instant::now();
    let notes = connection(start);
    notes.request_begins();
    notes.request_ends(Instant::now());
    let ended = notes.idle_since.get();
    let check = |after| notes.check(ended + after * S, &Timers::default());
    assert_eq!(
        check(5),
        Check::Wait(ended + 15 * S),
        "looks again at a tick"
    );
    assert_eq!(check(55), Check::Wait(ended + 60 * S));
    assert_eq!(check(60), Check::Retire(Event::IdleTimeouts));
}

#[test]
fn draining_shortens_idling_but_not_an_exchange() {
    let start = Instant::now();
    let notes = connection(start);
    notes.request_begins();
    notes.drain(start);
    assert!(notes.should_close(start));
    assert!(matches!(at(&notes, start, 200), Check::Wait(_)));
    notes.request_ends(Instant::now());
    let ended = notes.idle_since.get();
    assert_eq!(
        notes.check(ended + 3 * S, &Timers::default()),
        Check::Retire(Event::Drained)
    );
}

#[test]
fn a_client_that_takes_no_bytes_has_thirty_seconds() {
    let start = Instant::now();
    let notes = connection(start);
    notes.request_begins();
    notes.write_blocked.set(Some(start));
    assert!(matches!(at(&notes, start, 29), Check::Wait(_)));
    assert_eq!(at(&notes, start, 30), Check::Abort(Event::WriteTimeouts));
    notes.note_write(Some(1));
    assert!(matches!(at(&notes, start, 31), Check::Wait(_)));
}

#[test]
fn a_body_must_come_and_come_fast_enough() {
    let start = Instant::now();
    let notes = connection(start);
    notes.request_begins();
    let body = Arc::<Progress>::default();
    notes.watch_body(&body);
    notes.body_mark.set((start, 0));
    assert!(
        matches!(at(&notes, start, 40), Check::Wait(_)),
        "we do not read"
    );
    notes.read_blocked.set(Some(start + 35 * S));
    assert_eq!(
        at(&notes, start, 40),
        Check::Abort(Event::BodyTimeouts),
        "too slow"
    );
    body.add(100 * 40);
    assert_eq!(
        at(&notes, start, 40),
        Check::Wait(start + 50 * S),
        "fast enough, a new window"
    );
    assert!(matches!(at(&notes, start, 64), Check::Wait(_)));
    assert_eq!(
        at(&notes, start, 65),
        Check::Abort(Event::BodyTimeouts),
        "stalled"
    );
}

#[test]
fn old_connections_end_between_requests() {
    let start = Instant::now();
    let notes = connection(start);
    notes.request_begins();
    assert!(!notes.should_close(start + 3599 * S) && notes.should_close(start + 3600 * S));
    notes.last_byte.set(start + 3590 * S);
    assert!(
        matches!(at(&notes, start, 3700), Check::Wait(_)),
        "never within one"
    );
    notes.request_ends(Instant::now());
    notes.idle_since.set(start + 3599 * S);
    assert_eq!(at(&notes, start, 3600), Check::Retire(Event::MaxAge));
}

#[test]
fn an_exchange_without_a_byte_ends_after_five_minutes() {
    let start = Instant::now();
    let notes = connection(start);
    notes.request_begins();
    assert!(matches!(at(&notes, start, 299), Check::Wait(_)));
    assert_eq!(at(&notes, start, 300), Check::Abort(Event::StreamTimeouts));
}
