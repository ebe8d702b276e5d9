//! Percent-encoding (RFC 3986, 2.1), which URLs and `grpc-message` share.

/// Appends `%` and two hex digits in upper case.
pub(super) fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_upper_case() {
        let mut out = String::new();
        for byte in [0, 0x0a, 0x25, 0xff] {
            push_escape(&mut out, byte);
        }
        assert_eq!(out, "%00%0A%25%FF");
    }
}
