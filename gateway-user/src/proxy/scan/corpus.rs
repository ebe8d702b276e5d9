//! Requests and their verdicts: those of `corpus.txt`, and the long ones, made here.

use super::reason::Reason;

/// What has to become of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// So many requests, byte for byte.
    Pass(u64),
    /// One request that reads [`PLAIN`] after what the scanner drops.
    Edit,
    /// Nothing of it reaches hyper.
    Refuse(Reason),
    /// The head passes, the body breaks.
    Break(Reason),
}

/// What edited requests become.
pub(super) const PLAIN: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) want: Want,
}

/// All rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut want = None;
    for (number, line) in include_str!("corpus.txt").lines().enumerate() {
        if let Some(heading) = line.strip_prefix('[') {
            want = Some(heading_want(heading.trim_end_matches(']')));
        } else if !line.is_empty() && !line.starts_with('#') {
            cases.push(Case {
                name: format!("corpus.txt:{}: {line}", number + 1),
                bytes: unescape(line),
                want: want.expect("a heading comes first"),
            });
        }
    }
    cases.extend(long_heads());
    cases.extend(long_bodies());
    cases
}

fn heading_want(heading: &str) -> Want {
    let (kind, rest) = heading.split_once(' ').unwrap_or((heading, ""));
    let reason = || {
        let known = Reason::ALL.iter().find(|reason| reason.as_str() == rest);
        *known.unwrap_or_else(|| panic!("{rest} is no reason"))
    };
    match kind {
        "pass" => Want::Pass(rest.parse().unwrap()),
        "edit" => Want::Edit,
        "refuse" => Want::Refuse(reason()),
        "break" => Want::Break(reason()),
        _ => panic!("{heading} is no heading"),
    }
}

fn unescape(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = line.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = match (first, tail) {
            (b'\\', [b'x', hex @ ..]) => {
                rest = &hex[2..];
                u8::from_str_radix(std::str::from_utf8(&hex[..2]).unwrap(), 16).unwrap()
            }
            (b'\\', [letter, tail @ ..]) => {
                rest = tail;
                match letter {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'\\' => b'\\',
                    _ => panic!("unknown escape in {line}"),
                }
            }
            _ => *first,
        };
        out.push(byte);
    }
    out
}

/// A request that is described by its name, being too long to print.
fn long(name: &str, text: String, want: Want) -> Case {
    Case {
        name: name.to_owned(),
        bytes: text.into_bytes(),
        want,
    }
}

fn long_heads() -> Vec<Case> {
    use Reason::{HeadersTooLarge, HostInvalid, Method, TargetTooLong, TooManyHeaders};
    use Want::{Pass, Refuse};
    let fields = |lines: String| format!("GET /f HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let numbered = |count| fields((0..count).map(|n| format!("X-{n}: {n}\r\n")).collect());
    let target = |length: usize| {
        format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "x".repeat(length - 1)
        )
    };
    let host = |length: usize| format!("GET /h HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(length));
    // What Host, the name, the line ends and the empty line leave of 32 KiB.
    let room = 32 * 1024 - "Host: a\r\n".len() - "X: \r\n".len() - "\r\n".len();
    let value = |length| fields(format!("X: {}\r\n", "y".repeat(length)));
    let cookie = fields(format!("Cookie: s={}\r\n", "x".repeat(16 * 1024)));
    vec![
        long("a cookie of 16 KiB", cookie, Pass(1)),
        long("100 fields", numbered(99), Pass(1)),
        long("101 fields", numbered(100), Refuse(TooManyHeaders)),
        long("1001 fields", numbered(1000), Refuse(TooManyHeaders)),
        long("32 KiB of fields", value(room), Pass(1)),
        long("one byte more", value(room + 1), Refuse(HeadersTooLarge)),
        long("100 KB of fields", value(100_000), Refuse(HeadersTooLarge)),
        long(
            "a field without end",
            fields("y".repeat(40_000)),
            Refuse(HeadersTooLarge),
        ),
        long("target of 8 KiB", target(8192), Pass(1)),
        long("target of 8 KiB and 1", target(8193), Refuse(TargetTooLong)),
        long("target of 70 KB", target(70_000), Refuse(TargetTooLong)),
        long(
            "target without end",
            format!("GET /{}", "x".repeat(9000)),
            Refuse(TargetTooLong),
        ),
        long("host of 255 bytes", host(255), Pass(1)),
        long("host of 256 bytes", host(256), Refuse(HostInvalid)),
        long("method without end", "X".repeat(9000), Refuse(Method)),
    ]
}

fn long_bodies() -> Vec<Case> {
    use Reason::{ChunkExtension, ChunkSize, TrailersTooLarge};
    use Want::{Break, Pass};
    let body = |body: String| {
        format!("POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
    };
    // With its semicolon.
    let extension = |length: usize| format!("1;{}\r\nx\r\n", "a".repeat(length - 1));
    let end = "0\r\n\r\n";
    let trailers = |count| format!("0\r\n{}\r\n", "X: y\r\n".repeat(count));
    let trailer = |length: usize| {
        format!(
            "0\r\nX: {}\r\n\r\n",
            "y".repeat(length - "X: \r\n\r\n".len())
        )
    };
    vec![
        long(
            "extension of 256 bytes",
            body(extension(256) + end),
            Pass(1),
        ),
        long(
            "extension of 257 bytes",
            body(extension(257) + end),
            Break(ChunkExtension),
        ),
        long(
            "extension without end",
            body(format!("1;{}", "a".repeat(5000))),
            Break(ChunkExtension),
        ),
        long(
            "less than 16 KiB of extensions",
            body(extension(256).repeat(63) + end),
            Pass(1),
        ),
        long(
            "16 KiB of them",
            body(extension(256).repeat(64) + end),
            Pass(1),
        ),
        long(
            "one byte more of them",
            body(extension(256).repeat(64) + "0;\r\n\r\n"),
            Break(ChunkExtension),
        ),
        long("size without end", body("f".repeat(400)), Break(ChunkSize)),
        long("64 trailers", body(trailers(64)), Pass(1)),
        long("65 trailers", body(trailers(65)), Break(TrailersTooLarge)),
        long("8 KiB of trailers", body(trailer(8192)), Pass(1)),
        long(
            "one byte more",
            body(trailer(8193)),
            Break(TrailersTooLarge),
        ),
    ]
}
