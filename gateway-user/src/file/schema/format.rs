//! Formats of strings.

use std::time::Duration;

use crate::allocate::PoolRange;
use crate::snapshot::Prefix;
use crate::translate::duration;

use super::Schema;

/// What a string must look like.
#[derive(Clone, Copy)]
pub(super) struct Format {
    /// In the words of a message: expected …
    pub(super) expected: &'static str,
    pub(super) fits: fn(&str) -> bool,
}

const fn format(expected: &'static str, fits: fn(&str) -> bool) -> Format {
    Format { expected, fits }
}

/// Anything; where the empty string is refused, this is what is told.
pub(super) const FREE: Format = format("a string that is not empty", |_| true);
pub(super) const SUBDOMAIN: Format = format("a lower-case DNS name", is_subdomain);
pub(super) const LABEL: Format = format("a lower-case DNS label", is_label);
pub(super) const SERVICE_NAME: Format =
    format("a lower-case DNS label that begins with a letter", |text| {
        is_label(text) && text.starts_with(|first: char| first.is_ascii_lowercase())
    });
pub(super) const LABEL_KEY: Format = format("a label key such as example.com/name", is_label_key);
/// As a label key, with capitals in the domain too.
pub(super) const ANNOTATION_KEY: Format =
    format("an annotation key such as example.com/name", |text| {
        is_label_key(&text.to_ascii_lowercase())
    });
pub(super) const LABEL_VALUE: Format = format(
    "letters, digits, -, _ and ., beginning and ending with a letter or digit",
    |text| text.is_empty() || is_qualified(text),
);
pub(super) const SECRET_KEY: Format = format("letters, digits, -, _ and .", |text| {
    (1..=253).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
});
pub(super) const TOKEN: Format = format(
    "letters, digits and the signs of an HTTP header name",
    |text| !text.is_empty() && text.bytes().all(is_token_byte),
);
pub(super) const HOSTNAME: Format = format("a lower-case DNS name, or *. and one", |text| {
    is_subdomain(text.strip_prefix("*.").unwrap_or(text))
});
pub(super) const KIND: Format = format("a kind such as Service", is_kind);
pub(super) const GROUP: Format = format("an API group such as apps, or none", |text| {
    text.is_empty() || is_subdomain(text)
});
pub(super) const CONTROLLER: Format = format(
    "a controller's name such as example.com/controller",
    |text| {
        text.split_once('/').is_some_and(|(domain, path)| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
            is_subdomain(domain) && !path.is_empty() && path.bytes().all(allowed)
        })
    },
);
/// Gateway API's pattern for a protocol: a word, or DOMAIN/WORD of a vendor.
pub(super) const PROTOCOL: Format = format("a protocol such as HTTP", |text| {
    is_word(text)
        || text.rsplit_once('/').is_some_and(|(domain, word)| {
            is_subdomain(domain)
                && !word.is_empty()
                && word.bytes().all(|b| b.is_ascii_alphanumeric())
        })
});
/// GEP-2257.
pub(super) const DURATION: Format = format("a duration such as 10s or 1m30s", |text| {
    duration::gateway_api(text).is_some()
});
/// Go's form, as Istio's webhook wants it.
pub(super) const GO_DURATION: Format = format(
    "a duration of whole milliseconds, at least 1ms, such as 30s",
    |text| duration::go(text).is_some_and(is_whole_milliseconds),
);
/// The same, or zero for none.
pub(super) const GO_DURATION_OR_ZERO: Format = format(
    "a duration of whole milliseconds such as 30s, or 0s",
    |text| duration::go(text).is_some_and(|d| d.is_zero() || is_whole_milliseconds(d)),
);
/// Istio: a DNS name whose first label may be or begin with a star.
pub(super) const ISTIO_HOST: Format = format(
    "a DNS name whose first label may begin with *",
    is_istio_host,
);
pub(super) const EXPORT_TO: Format = format("., *, ~ or a namespace", |text| {
    matches!(text, "." | "*" | "~") || is_label(text)
});
pub(super) const CIDR: Format = format(
    "a CIDR without bits behind its length, such as 10.0.0.0/8",
    |text| text.parse::<Prefix>().is_ok(),
);
pub(super) const POOL_RANGE: Format = format(
    "a CIDR or FIRST-LAST, such as 192.0.2.0/24 or 192.0.2.10-192.0.2.20",
    |text| PoolRange::parse(text).is_ok(),
);
pub(super) const BASE64: Format = format("base64", |text| {
    use base64::Engine as _;
    let text: String = text.split_ascii_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .is_ok()
});

pub(super) const NAME: Schema = Schema::Text(1, 253, FREE);
pub(super) const DNS_NAME: Schema = Schema::Text(1, 253, SUBDOMAIN);
pub(super) const NAMESPACE: Schema = Schema::Text(1, 63, LABEL);
pub(super) const PORT: Schema = Schema::Number(1, 65_535);
pub(super) const GROUP_NAME: Schema = Schema::Text(0, 253, GROUP);
pub(super) const KIND_NAME: Schema = Schema::Text(1, 63, KIND);
pub(super) const HOST: Schema = Schema::Text(1, 253, HOSTNAME);
/// A hostname that stands for itself only.
pub(super) const PRECISE_HOST: Schema = DNS_NAME;

fn is_whole_milliseconds(value: Duration) -> bool {
    value >= Duration::from_millis(1) && value.subsec_nanos().is_multiple_of(1_000_000)
}

pub(super) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_any_label(text)
}

/// A label of any length: patterns bound only the name as a whole.
fn is_any_label(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_any_label)
}

fn is_qualified(text: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => prefix.len() <= 253 && is_subdomain(prefix) && is_qualified(name),
        None => is_qualified(text),
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_kind(text: &str) -> bool {
    is_word(text) && text.starts_with(|first: char| first.is_ascii_alphabetic())
}

fn is_istio_host(text: &str) -> bool {
    if text.len() > 255 {
        return false;
    }
    let lower = text.to_ascii_lowercase();
    let (first, rest) = match lower.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (lower.as_str(), None),
    };
    // `*`, `*name`, `*-name` or a label.
    let first_fits = first.strip_prefix('*').map_or_else(
        || is_label(first),
        |rest| rest.is_empty() || is_label(rest.strip_prefix('-').unwrap_or(rest)),
    );
    let rest_fits = rest.is_none_or(|rest| {
        let rest = rest.strip_suffix('.').unwrap_or(rest);
        let top = rest.rsplit('.').next().unwrap_or(rest);
        rest.split('.').all(is_label) && top.parse::<i64>().is_err()
    });
    first_fits && rest_fits
}
