//! Frame counts: each budget to its last frame, and what honest clients need.

use proptest::prelude::*;

use super::*;

const PRIORITY: u8 = 2;
const GOAWAY: u8 = 7;
const UNKNOWN: u8 = 0x10;

fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
    let [.., high, middle, low] = length.to_be_bytes();
    let mut bytes = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
    bytes.resize(HEADER_LEN + length, 0xff);
    bytes
}

fn started() -> Frames {
    let mut frames = Frames::new();
    frames.feed(PREFACE, Duration::ZERO).unwrap();
    frames
}

/// How many of these frames pass in one second until one is refused, and why; of 40,000.
fn passed(frames: &mut Frames, bytes: &[u8]) -> (u32, Option<Flood>) {
    for count in 0..40_000 {
        if let Err(flood) = frames.feed(bytes, Duration::from_secs(1)) {
            assert_eq!(
                frames.feed(&frame(kind::HEADERS, 0, 1), Duration::from_secs(999)),
                Err(flood),
                "a verdict stays"
            );
            return (count, Some(flood));
        }
    }
    (40_000, None)
}

#[test]
fn idle_frames_have_a_budget() {
    for (name, bytes, want) in [
        (
            "settings",
            frame(kind::SETTINGS, 0, 0),
            (1_000, Some(Flood::Control)),
        ),
        (
            "settings ack",
            frame(kind::SETTINGS, 1, 0),
            (1_000, Some(Flood::Control)),
        ),
        (
            "ping",
            frame(kind::PING, 0, 8),
            (1_000, Some(Flood::Control)),
        ),
        (
            "priority",
            frame(PRIORITY, 0, 5),
            (10_000, Some(Flood::Idle)),
        ),
        (
            "window",
            frame(kind::WINDOW_UPDATE, 0, 4),
            (10_000, Some(Flood::Idle)),
        ),
        ("goaway", frame(GOAWAY, 0, 8), (10_000, Some(Flood::Idle))),
        ("unknown", frame(UNKNOWN, 0, 3), (10_000, Some(Flood::Idle))),
        (
            "empty data",
            frame(kind::DATA, 0, 0),
            (10_000, Some(Flood::Idle)),
        ),
        (
            "last data",
            frame(kind::DATA, END_STREAM, 0),
            (40_000, None),
        ),
        ("data", frame(kind::DATA, 0, 1), (40_000, None)),
        ("headers", frame(kind::HEADERS, 4, 1), (40_000, None)),
    ] {
        assert_eq!(passed(&mut started(), &bytes), want, "{name}");
    }
    let both = [frame(kind::PING, 0, 8), frame(kind::DATA, 0, 1)].concat();
    assert_eq!(passed(&mut started(), &both), (10_000, Some(Flood::Idle)));
    let empty = [frame(kind::HEADERS, 0, 1), frame(kind::CONTINUATION, 0, 0)].concat();
    assert_eq!(passed(&mut started(), &empty), (10_000, Some(Flood::Idle)));
}

#[test]
fn the_budget_comes_back_each_minute() {
    let mut frames = started();
    let window = frame(kind::WINDOW_UPDATE, 0, 4);
    let ping = frame(kind::PING, 0, 8);
    for minute in 0..5 {
        let now = Duration::from_secs(60 * minute);
        for _ in 0..1_000 {
            assert_eq!(frames.feed(&ping, now), Ok(()));
        }
        for _ in 0..9_000 {
            assert_eq!(frames.feed(&window, now), Ok(()));
        }
    }
    assert_eq!(
        frames.feed(&window, Duration::from_secs(299)),
        Err(Flood::Idle)
    );
}

#[test]
fn downloads_pay_for_their_window_updates() {
    let mut frames = started();
    let updates = frame(kind::WINDOW_UPDATE, 0, 4).repeat(2);
    let download = |frames: &mut Frames, piece: usize| -> Result<(), Flood> {
        for _ in 0..20_000 {
            frames.sent(HEADER_LEN + piece);
            frames.feed(&updates, Duration::from_secs(1))?;
        }
        Ok(())
    };
    assert_eq!(download(&mut frames, 16_384), Ok(()));
    assert_eq!(download(&mut frames, 1_024), Ok(()));
    assert_eq!(download(&mut started(), 64), Err(Flood::Idle));
}

#[test]
fn what_was_sent_is_remembered_up_to_a_limit() {
    let mut frames = started();
    for _ in 0..10 {
        frames.sent(usize::MAX);
    }
    let paid = u32::try_from(MAX_CREDIT / WINDOW_UPDATE_PRICE).unwrap();
    let window = frame(kind::WINDOW_UPDATE, 0, 4);
    assert_eq!(
        passed(&mut frames, &window),
        (paid + 10_000, Some(Flood::Idle))
    );
}

#[test]
fn a_stream_with_a_ping_for_each_small_message_is_no_flood() {
    let mut frames = started();
    let ping = frame(kind::PING, 0, 8);
    for _ in 0..100_000 {
        // DATA with a gRPC message of two bytes, and the answer to the last PING.
        frames.sent(HEADER_LEN + 5 + 2 + HEADER_LEN + 8);
        assert_eq!(frames.feed(&ping, Duration::from_secs(1)), Ok(()));
    }
}

#[test]
fn answers_to_pings_do_not_pay_for_more() {
    let mut frames = started();
    let ping = frame(kind::PING, 0, 8);
    let answered = |_: &u32| {
        frames.sent(HEADER_LEN + 8);
        frames.feed(&ping, Duration::from_secs(1)).is_ok()
    };
    let passed = (0..10_000).take_while(answered).count();
    assert!((1_000..2_500).contains(&passed), "{passed}");
}

#[test]
fn resets_need_headers() {
    let reset = frame(kind::RST_STREAM, 0, 4);
    let head = frame(kind::HEADERS, 0, 1);
    assert_eq!(passed(&mut started(), &reset), (200, Some(Flood::Resets)));
    // The rapid reset: each request is taken back at once.
    let rapid = [&head[..], &reset].concat();
    assert_eq!(passed(&mut started(), &rapid), (400, Some(Flood::Resets)));
    // A client that takes back every second one.
    let some = [&head[..], &head, &reset].concat();
    assert_eq!(passed(&mut started(), &some), (40_000, None));
}

#[test]
fn header_blocks_have_few_pieces() {
    let head = frame(kind::HEADERS, 0, 1);
    let more = frame(kind::CONTINUATION, 0, 1);
    assert_eq!(
        passed(&mut started(), &more),
        (32, Some(Flood::Continuations))
    );
    let block = [&head[..], &more.repeat(32)].concat();
    assert_eq!(passed(&mut started(), &block), (40_000, None));
}

#[test]
fn payloads_have_a_limit() {
    let of = |length| started().feed(&frame(kind::DATA, 0, length), Duration::ZERO);
    assert_eq!(of(MAX_PAYLOAD), Ok(()));
    assert_eq!(of(MAX_PAYLOAD + 1), Err(Flood::TooLarge));
    assert_eq!(of(0xff_ffff), Err(Flood::TooLarge));
}

#[test]
fn the_preface_comes_first() {
    for (bytes, want) in [
        (&b""[..], Ok(())),
        (b"PRI * HTTP/2.0\r\n", Ok(())),
        (PREFACE, Ok(())),
        (b"GET / HTTP/1.1\r\n", Err(Flood::Preface)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", Err(Flood::Preface)),
    ] {
        assert_eq!(Frames::new().feed(bytes, Duration::ZERO), want);
    }
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let one = (0_u8..12, any::<bool>(), 0_usize..40, 1_usize..60).prop_map(
        |(kind, flag, length, times)| frame(kind, u8::from(flag), length % 20).repeat(times * 8),
    );
    proptest::collection::vec(one, 0..24).prop_map(|frames| {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frames.concat());
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cuts_do_not_matter(bytes in stream(), cuts in proptest::collection::vec(1_usize..50, 1..20)) {
        let whole = Frames::new().feed(&bytes, Duration::ZERO);
        let mut frames = Frames::new();
        let mut rest = &bytes[..];
        let mut verdict = Ok(());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() || verdict.is_err() {
                break;
            }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            verdict = frames.feed(piece, Duration::ZERO);
            rest = tail;
        }
        prop_assert_eq!(verdict, whole);
    }

    #[test]
    fn any_bytes_have_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..200), now in any::<u32>()) {
        let mut frames = started();
        let _ = frames.feed(&bytes, Duration::from_secs(now.into()));
    }
}
