//! The fuzz targets as functions of bytes: each calls code that reads what others send, and asserts what must hold for all of it.
//!
//! libFuzzer calls them from `fuzz_targets`; `cargo xtask fuzz` runs each for a bounded time, beginning with the inputs in `seeds`.

mod head;
mod manifest;
mod route;

pub use head::{authority, head_scanner};
pub use manifest::translate_yaml;
pub use route::router;

use gateway_user::l7::path::normalise;
use gateway_user::l7::proxy_protocol::{Read, read, write};
use gateway_user::snapshot::ProxyVersion;

/// PROXY protocol headers: a verdict on some bytes is the verdict on more of them, and what is read can be written and read
/// again.
pub fn proxy_header(data: &[u8]) {
    let whole = read(data);
    for end in 0..data.len().min(256) {
        let part = read(&data[..end]);
        assert!(
            part == Ok(Read::More) || part == whole,
            "{end}: {part:?}, {whole:?}"
        );
    }
    let Ok(Read::Header {
        length,
        source,
        destination,
    }) = whole
    else {
        return;
    };
    assert!(length <= data.len());
    assert_eq!(source.is_some(), destination.is_some());
    if let (Some(source), Some(destination)) = (source, destination) {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let bytes = write(version, source, destination);
            let again = Read::Header {
                length: bytes.len(),
                source: Some(source),
                destination: Some(destination),
            };
            assert_eq!(read(&bytes), Ok(again));
        }
    }
}

/// Paths: the normal form is its own, is absolute and has no dot segment.
pub fn path(data: &[u8]) {
    let Ok(path) = str::from_utf8(data) else {
        return;
    };
    let once = normalise(path).into_owned();
    assert_eq!(normalise(&once), once);
    assert!(once.starts_with('/'));
    for segment in once.split('/') {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        assert!(plain != "." && plain != "..", "{once}");
    }
}
