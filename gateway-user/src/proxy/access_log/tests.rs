//! Tests of the access log's lines and of its writer.

use super::*;
use http::{Method, Uri};

fn line(edit: impl FnOnce(&mut Head, &mut Option<Flag>)) -> serde_json::Value {
    let mut head = Head {
        method: Method::GET,
        uri: Uri::from_static("/a?b=1"),
        version: Version::HTTP_11,
        authority: Some(HeaderValue::from_static("a.example")),
        user_agent: None,
        forwarded_for: None,
        request_id: None,
    };
    let mut flag = None;
    edit(&mut head, &mut flag);
    let line = Line {
        head: &head,
        started: Instant::now(),
        took: Duration::from_millis(7),
        upstream_took: Some(Duration::from_millis(5)),
        status: 200,
        flag,
        details: None,
        received: 1,
        sent: 2,
        endpoint: Some("10.0.0.1:80".parse().unwrap()),
        cluster: None,
        rule: Some("default/r/rule/0"),
        peer: "192.0.2.1:5".parse().unwrap(),
        local: "192.0.2.9:80".parse().unwrap(),
    };
    let mut out = Vec::new();
    write(&mut out, &mut Clock::default(), &line);
    assert_eq!(out.last(), Some(&b'\n'));
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn a_line_has_envoys_field_names() {
    let value = line(|_, _| {});
    for (field, want) in [
        ("method", serde_json::json!("GET")),
        ("path", "/a?b=1".into()),
        ("protocol", "HTTP/1.1".into()),
        ("response_code", 200.into()),
        ("response_flags", "-".into()),
        ("bytes_received", 1.into()),
        ("bytes_sent", 2.into()),
        ("duration", 7.into()),
        ("upstream_service_time", 5.into()),
        ("x_forwarded_for", serde_json::Value::Null),
        ("authority", "a.example".into()),
        ("upstream_host", "10.0.0.1:80".into()),
        ("upstream_cluster", serde_json::Value::Null),
        ("route_name", "default/r/rule/0".into()),
        ("downstream_remote_address", "192.0.2.1:5".into()),
        ("downstream_local_address", "192.0.2.9:80".into()),
    ] {
        assert_eq!(value[field], want, "{field}");
    }
    assert_eq!(
        line(|_, f| *f = Some(Flag::Overflow))["response_flags"],
        "UO"
    );
}

#[test]
fn no_client_can_break_a_line() {
    let evil = "x\",\"response_code\":1,\"\\\t\u{fe}";
    let value = line(|head, _| {
        head.user_agent =
            Some(HeaderValue::from_bytes(b"x\",\"response_code\":1,\"\\\t\xfe").unwrap());
    });
    assert_eq!(value["user_agent"], evil);
    assert_eq!(value["response_code"], 200);
}

#[test]
fn a_moment_has_the_time_of_day_that_it_had() {
    let mut clock = Clock::default();
    let start = Instant::now();
    let read = clock.time_of_day(start, start);
    let since = |time: SystemTime| time.duration_since(read).unwrap();
    let mut at = |after: u64| {
        let now = start + Duration::from_millis(after);
        since(clock.time_of_day(now, now)).as_millis()
    };
    assert_eq!((at(0), at(300), at(7)), (0, 300, 7));
    // A second later it is read again, which shows the real time, not that of the test.
    assert!(at(5_000) < 6_000);
    let (before, now) = (start - Duration::from_secs(60), start + SAME_RATE / 2);
    let ago = read.duration_since(clock.time_of_day(before, now));
    assert!(ago.unwrap().as_secs().abs_diff(60) <= 1);
}

#[test]
fn times_are_civil_times_in_utc() {
    for (second, text) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_400, "2000-02-29T00:00:00"),
        (1_709_251_199, "2024-02-29T23:59:59"),
        (4_107_542_400, "2100-03-01T00:00:00"),
    ] {
        assert_eq!(date_time(second), text);
    }
    let mut out = Vec::new();
    Clock::default().write(&mut out, UNIX_EPOCH + Duration::from_millis(1_234));
    assert_eq!(out, b"1970-01-01T00:00:01.234Z");
}

#[test]
fn lines_are_dropped_and_counted_when_the_writer_is_behind() {
    let (channel, receiver) = sync_channel(1);
    let mut sender = Sender {
        channel,
        buffer: Buffer::default(),
        clock: Clock::default(),
    };
    let mut one = |n: usize| -> u64 {
        (0..n)
            .map(|_| sender.line(|out, _| out.extend_from_slice(b"a\n")))
            .sum::<u64>()
            + sender.flush()
    };
    assert_eq!(one(2), 0);
    assert_eq!(one(3), 3, "the queue is full");
    assert_eq!(receiver.recv().unwrap().text, b"a\na\n");
    assert_eq!(one(1), 0);
}
