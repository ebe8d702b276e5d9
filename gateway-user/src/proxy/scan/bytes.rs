//! Classes of bytes, and the few operations on header fields that head, trailers and responses share.

use super::reason::Reason;

const TOKEN: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 4;

/// One entry a byte: the classes that it belongs to.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        let c = b as u8;
        let alphanumeric = c.is_ascii_alphanumeric();
        if alphanumeric
            || matches!(
                c,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            table[b] |= TOKEN;
        }
        // What RFC 3986 allows, and what browsers send unescaped beyond it as far as `http::Uri` takes it.
        if alphanumeric
            || matches!(
                c,
                b'!' | b'$'
                    ..=b'/'
                        | b':'
                        | b';'
                        | b'='
                        | b'@'
                        | b'['
                        | b']'
                        | b'^'
                        | b'_'
                        | b'{'
                        | b'|'
                        | b'}'
                        | b'~'
            )
        {
            table[b] |= PATH | QUERY;
        }
        if matches!(c, b'?' | b'\\' | b'`') {
            table[b] |= QUERY;
        }
        b += 1;
    }
    table
}

/// Whether all bytes may stand in a token (RFC 9110, 5.6.2); an empty one is none.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| CLASS[usize::from(*b)] & TOKEN != 0)
}

/// Whether all bytes may stand in a path.
pub(super) fn is_path(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| CLASS[usize::from(*b)] & PATH != 0)
}

/// Whether all bytes may stand in a query.
pub(super) fn is_query(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| CLASS[usize::from(*b)] & QUERY != 0)
}

/// Whether a control byte other than HTAB is among them. Without an early exit, so that it is vectorised.
pub(super) fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |bad, &b| {
        bad | ((b < 0x20) & (b != b'\t')) | (b == 0x7f)
    })
}

/// Without spaces and tabs at both ends.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list, trimmed; empty ones are left out (RFC 9110, 5.6.1.2).
pub(super) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|b| *b == b',')
        .map(trim)
        .filter(|e| !e.is_empty())
}

/// Splits a field line without its line end into name and trimmed value.
///
/// # Errors
/// Why the line is no header field.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    if let [b' ' | b'\t', ..] = line {
        return Err(Reason::ObsFold);
    }
    let length = line
        .iter()
        .position(|b| CLASS[usize::from(*b)] & TOKEN == 0)
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(length);
    match rest {
        [b':', value @ ..] if !name.is_empty() => {
            if !has_control(value) {
                Ok((name, trim(value)))
            } else if value.contains(&b'\r') {
                Err(Reason::BareCr)
            } else {
                Err(Reason::HeaderValue)
            }
        }
        [b'\r', ..] => Err(Reason::BareCr),
        _ => Err(Reason::HeaderName),
    }
}

/// Fields that decide where a message ends, where it goes, who sent it or what its body is: `Connection` may not have
/// them removed.
const PROTECTED: [&[u8]; 17] = [
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"trailer",
    b"expect",
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"authorization",
    b"proxy-authorization",
    b"proxy-authenticate",
    b"cookie",
    b"set-cookie",
    b"max-forwards",
];

/// Families of such fields.
const PROTECTED_PREFIX: [&[u8]; 3] = [b"x-forwarded-", b"x-envoy-", b"x-original-"];

/// Fields about one connection, which `Connection` rightly names.
const HOP: [&[u8]; 6] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"upgrade",
    b"http2-settings",
];

/// Whether `Connection` may not name this field. `_` reads as `-`.
pub fn is_protected(name: &[u8]) -> bool {
    PROTECTED.iter().any(|known| same(name, known))
        || PROTECTED_PREFIX
            .iter()
            .any(|known| name.len() > known.len() && same(&name[..known.len()], known))
}

/// Whether the field may come neither as a trailer nor, read with `-` for `_`, under another name.
pub fn is_protected_or_hop(name: &[u8]) -> bool {
    is_protected(name) || HOP.iter().any(|known| same(name, known))
}

/// Whether `name` is `known` (lower case, with dashes), where case does not count and `_` reads as `-`.
fn same(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && name
            .iter()
            .zip(known)
            .all(|(a, b)| a.to_ascii_lowercase() == *b || (*a == b'_' && *b == b'-'))
}
