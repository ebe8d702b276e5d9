//! PROXY protocol headers: the grammar, what it does not have, and both ways together.

use proptest::prelude::*;

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn header(length: usize, addresses: Option<(&str, &str)>) -> Result<Read, Error> {
    Ok(Read::Header {
        length,
        source: addresses.map(|(source, _)| at(source)),
        destination: addresses.map(|(_, destination)| at(destination)),
    })
}

fn binary(command: u8, family: u8, length: usize, rest: &[u8]) -> Vec<u8> {
    let mut bytes = v2::SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
    bytes.extend(rest);
    bytes
}

const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xc0, 0x01, 0x01, 0xbb];
const V4_PAIR: Option<(&str, &str)> = Some(("192.0.2.1:49153", "198.51.100.2:443"));

#[test]
fn lines() {
    for (line, addresses) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 49153 443\r\n", V4_PAIR),
        (
            "PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n",
            Some(("255.255.255.255:65535", "0.0.0.0:0")),
        ),
        (
            "PROXY TCP6 2001:db8::1 ::2 1 2\r\n",
            Some(("[2001:db8::1]:1", "[::2]:2")),
        ),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff::1 what ever\r\n", None),
    ] {
        assert_eq!(
            read(line.as_bytes()),
            header(line.len(), addresses),
            "{line}"
        );
        let followed = format!("{line}GET / HTTP/1.1\r\n");
        assert_eq!(read(followed.as_bytes()), header(line.len(), addresses));
        for end in 0..line.len() {
            assert_eq!(
                read(&line.as_bytes()[..end]),
                Ok(Read::More),
                "{end} of {line}"
            );
        }
    }
}

#[test]
fn lines_that_the_grammar_does_not_have() {
    use Error::{Address, Family, Line, Port, Signature};
    for (line, error) in [
        ("GET / HTTP/1.1\r\n", Signature),
        ("proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", Signature),
        ("PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n", Signature),
        (" PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", Signature),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\rx", Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", Line),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n", Line),
        ("PROXY \r\n", Family),
        ("PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n", Family),
        ("PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n", Family),
        ("PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", Family),
        ("PROXY UNKNOWNX\r\n", Family),
        ("PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n", Line),
        ("PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n", Address),
        ("PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n", Address),
        ("PROXY TCP4 256.1.1.1 2.2.2.2 1 2\r\n", Address),
        ("PROXY TCP4 ::1 ::2 1 2\r\n", Address),
        ("PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", Address),
        ("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", Address),
        ("PROXY TCP6 [::1] ::1 1 2\r\n", Address),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", Port),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n", Port),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n", Port),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 -2\r\n", Port),
        ("PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n", Port),
    ] {
        assert_eq!(read(line.as_bytes()), Err(error), "{line}");
    }
    assert_eq!(read(b"PROXY UNKNOWN \xff\r\n"), Err(Line));
}

#[test]
fn lines_have_107_bytes_at_most() {
    let of = |length: usize| {
        let mut line = format!("{:x<1$}", "PROXY UNKNOWN ", length - 2);
        line.push_str("\r\n");
        line.into_bytes()
    };
    assert_eq!(read(&of(107)), header(107, None));
    assert_eq!(read(&of(107)[..106]), Ok(Read::More));
    assert_eq!(read(&of(108)), Err(Error::LineLength));
    assert_eq!(read(&of(108)[..106]), Ok(Read::More));
    assert_eq!(read(&of(108)[..107]), Err(Error::LineLength));
    assert_eq!(read(&of(200)), Err(Error::LineLength));
}

#[test]
fn binary_headers() {
    let v6: Vec<u8> = [
        &"2001:db8::1"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets()[..],
        &"::2".parse::<std::net::Ipv6Addr>().unwrap().octets()[..],
        &[0, 1, 0, 2],
    ]
    .concat();
    let with_field = [&V4[..], &[0x04, 0, 2, 9, 9]].concat();
    for (command, family, rest, addresses) in [
        (0x21, 0x11, &V4[..], V4_PAIR),
        (0x21, 0x11, &with_field, V4_PAIR),
        (0x21, 0x21, &v6, Some(("[2001:db8::1]:1", "[::2]:2"))),
        (0x21, 0x12, &V4, None),
        (0x21, 0x22, &v6, None),
        (0x21, 0x31, &[0; 216], None),
        (0x21, 0x32, &[0; 216], None),
        (0x21, 0x00, &[], None),
        (0x21, 0x00, &[1, 2, 3], None),
        (0x20, 0x00, &[], None),
        (0x20, 0x11, &V4, None),
        (0x20, 0xff, &[1], None),
        (0x21, 0x00, &[0; 4096], None),
    ] {
        let mut bytes = binary(command, family, rest.len(), rest);
        let length = bytes.len();
        for end in 0..length {
            assert_eq!(read(&bytes[..end]), Ok(Read::More), "{end} of {bytes:?}");
        }
        bytes.extend(b"GET");
        assert_eq!(read(&bytes), header(length, addresses), "{bytes:?}");
    }
}

#[test]
fn binary_headers_that_are_refused() {
    let field = |field: &[u8]| [&V4[..], field].concat();
    for (command, family, length, rest, error) in [
        (0x11, 0x11, 12, V4.to_vec(), Error::Command),
        (0x22, 0x11, 12, V4.to_vec(), Error::Command),
        (0x21, 0x10, 12, V4.to_vec(), Error::Family),
        (0x21, 0x01, 12, V4.to_vec(), Error::Family),
        (0x21, 0x41, 12, V4.to_vec(), Error::Family),
        (0x21, 0x11, 11, V4.to_vec(), Error::Length),
        (0x21, 0x21, 35, vec![0; 35], Error::Length),
        (0x21, 0x31, 215, vec![0; 215], Error::Length),
        (0x21, 0x11, 4097, V4.to_vec(), Error::Length),
        (0x20, 0x00, 4097, Vec::new(), Error::Length),
        (0x21, 0x11, 13, field(&[4]), Error::Field),
        (0x21, 0x11, 15, field(&[4, 0, 1]), Error::Field),
        (0x21, 0x11, 16, field(&[4, 0, 2, 9]), Error::Field),
        (0x21, 0x11, 16, field(&[3, 0, 1, 9]), Error::Field),
        (
            0x21,
            0x11,
            19,
            field(&[3, 0, 4, 0, 0, 0, 0]),
            Error::Checksum,
        ),
    ] {
        let bytes = binary(command, family, length, &rest);
        assert_eq!(read(&bytes), Err(error), "{bytes:?}");
    }
    assert_eq!(read(b"\r\n\r\n\0\r\nQUIT\r"), Err(Error::Signature));
}

#[test]
fn a_checksum_is_checked() {
    let mut bytes = binary(0x21, 0x11, 24, &V4);
    bytes.extend([0x03, 0, 4, 0, 0, 0, 0, 0x04, 0, 2, 7, 7]);
    bytes[15] = 24;
    let sum = crc32c::Crc32c::default().add(&bytes).value();
    bytes[31..35].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(read(&bytes), header(40, V4_PAIR));
    bytes[16] ^= 1;
    assert_eq!(read(&bytes), Err(Error::Checksum));
    bytes[16] ^= 1;
    // A second one has no meaning.
    let again = bytes[28..35].to_vec();
    bytes.extend(again);
    bytes[15] += 7;
    assert_eq!(read(&bytes), Err(Error::Field));
}

#[test]
fn written_forms() {
    let text = |source, destination| {
        String::from_utf8(write(ProxyVersion::V1, at(source), at(destination))).unwrap()
    };
    assert_eq!(
        text("1.2.3.4:5", "6.7.8.9:10"),
        "PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n"
    );
    assert_eq!(
        text("1.2.3.4:5", "[2001:db8::1]:10"),
        "PROXY TCP6 ::ffff:102:304 2001:db8::1 5 10\r\n"
    );
    assert_eq!(
        write(
            ProxyVersion::V2,
            at("192.0.2.1:49153"),
            at("198.51.100.2:443")
        ),
        binary(0x21, 0x11, 12, &V4)
    );
    assert_eq!(
        write(ProxyVersion::V2, at("[::2]:1"), at("1.2.3.4:2")),
        binary(
            0x21,
            0x21,
            36,
            &[
                &std::net::Ipv6Addr::from(2).octets()[..],
                &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4],
                &[0, 1, 0, 2]
            ]
            .concat()
        )
    );
}

fn one_family() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = any::<([u8; 4], u16, [u8; 4], u16)>()
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    let v6 = any::<([u8; 16], u16, [u8; 16], u16)>()
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    prop_oneof![v4, v6]
}

/// Beginnings behind which chance finds more than a wrong signature.
const STARTS: [&[u8]; 5] = [
    b"",
    b"PROXY ",
    b"PROXY TCP4 1",
    v2::SIGNATURE,
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0",
];

proptest! {
    #[test]
    fn what_is_written_is_read(
        (source, destination) in one_family(), second in any::<bool>(), tail in any::<[u8; 3]>(),
    ) {
        let version = if second { ProxyVersion::V2 } else { ProxyVersion::V1 };
        let mut bytes = write(version, source, destination);
        let length = bytes.len();
        for end in 0..length {
            prop_assert_eq!(read(&bytes[..end]), Ok(Read::More));
        }
        bytes.extend(tail);
        let want = Read::Header { length, source: Some(source), destination: Some(destination) };
        prop_assert_eq!(read(&bytes), Ok(want));
    }

    #[test]
    fn any_bytes_have_a_verdict_that_more_bytes_do_not_change(
        start in proptest::sample::select(STARTS.to_vec()),
        rest in proptest::collection::vec(any::<u8>(), 0..160),
    ) {
        let bytes = [start, &rest].concat();
        let mut settled = None;
        for end in 0..=bytes.len() {
            let verdict = read(&bytes[..end]);
            if let Some(settled) = settled {
                prop_assert_eq!(verdict, settled);
            } else if verdict != Ok(Read::More) {
                settled = Some(verdict);
            }
            if let Ok(Read::Header { length, .. }) = verdict {
                prop_assert!(length <= end);
            }
        }
    }
}
