//! Each rule on a sample that breaks it and one that does not.

use super::*;

fn found(name: &str, text: &str) -> Vec<String> {
    check(name, text).iter().map(ToString::to_string).collect()
}

#[test]
fn a_tidy_file_has_no_findings() {
    let text = "//! Docs.\n\nfn f() -> u8 { 1 }\n\n#[cfg(test)]\nmod tests {\n    fn g() { Some(1).unwrap(); }\n}\n";
    assert_eq!(found("gateway-user/src/l7/split.rs", text), [""; 0]);
}

#[test]
fn files_are_measured_without_their_tests() {
    let long = format!("//! Docs.\n{}", "\n".repeat(499));
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(300));
    assert_eq!(found("xtask/src/a.rs", &format!("{long}{tests}")), [""; 0]);
    assert_eq!(
        found("xtask/src/a.rs", &format!("{long}\n{tests}")),
        ["xtask/src/a.rs:1: the file has 501 lines without tests, 500 are the limit: split it"],
    );
}

#[test]
fn functions_are_measured_in_lines_of_code() {
    let function = |lines| {
        format!(
            "//! Docs.\nfn f(a: [u8; 2]) {{\n{}\n\n    // comment\n}}\n",
            "    g();\n".repeat(lines)
        )
    };
    assert_eq!(found("xtask/src/a.rs", &function(60)), [""; 0]);
    assert_eq!(
        found("xtask/src/a.rs", &function(61)),
        ["xtask/src/a.rs:2: function `f` has 61 lines, 60 are the limit: split it"],
    );
}

#[test]
fn declarations_and_pointer_types_have_no_body() {
    let text = "//! Docs.\ntrait T { fn f(&self, x: [u8; 4]); }\ntype F = fn(u8) -> u8;\n";
    assert_eq!(found("xtask/src/a.rs", text), [""; 0]);
}

#[test]
fn modules_begin_with_docs_and_have_their_own_name() {
    assert_eq!(
        found("gateway-user/src/l7/mod.rs", "use std::fmt;\n"),
        [
            "gateway-user/src/l7/mod.rs:1: the module does not begin with `//!`: say what it is and what it does not do",
            "gateway-user/src/l7/mod.rs:1: `mod.rs` is not used here: name the file after its module, beside its folder",
        ],
    );
}

#[test]
fn unsafe_has_its_places_and_its_reasons() {
    let bare = "//! Docs.\nfn f() { unsafe { g() } }\n";
    let reasoned =
        "//! Docs.\nfn f() {\n    // SAFETY: g has no conditions.\n    unsafe { g() }\n}\n";
    assert_eq!(
        found("gateway-user/src/datapath/mmap.rs", reasoned),
        [""; 0]
    );
    assert_eq!(
        found("gateway-user/src/datapath/mmap.rs", bare),
        ["gateway-user/src/datapath/mmap.rs:2: `unsafe` without a `// SAFETY:` comment above it"],
    );
    assert_eq!(
        found("gateway-user/src/proxy/scan.rs", reasoned),
        ["gateway-user/src/proxy/scan.rs:4: `unsafe` is not allowed in this module"],
    );
    assert_eq!(
        found(
            "xtask/src/a.rs",
            "//! Docs.\n#![forbid(unsafe_code)]\n// unsafe\n"
        ),
        [""; 0]
    );
}

#[test]
fn unwrap_is_for_tests() {
    assert_eq!(
        found(
            "xtask/src/a.rs",
            "//! Docs.\nfn f() { g().unwrap(); g().unwrap_or(1); }\n"
        ),
        ["xtask/src/a.rs:2: `unwrap` outside tests: return the error, or `expect` the invariant"],
    );
    assert_eq!(
        found(
            "tests/scenarios/a.rs",
            "//! Docs.\nfn f() { g().unwrap(); }\n"
        ),
        [""; 0]
    );
}

#[test]
fn pure_modules_know_no_runtime_and_no_clock() {
    let text = "//! Docs: tokio.\nuse tokio::sync::mpsc;\nfn f() { let now = std::time::Instant::now(); }\n";
    assert_eq!(
        found("gateway-user/src/l4/diff.rs", text),
        [
            "gateway-user/src/l4/diff.rs:2: `tokio` in the pure module `l4`: take it as an argument, or move it to the shell",
            "gateway-user/src/l4/diff.rs:3: `Instant::now` in the pure module `l4`: take it as an argument, or move it to the shell",
        ],
    );
    assert_eq!(found("gateway-user/src/proxy/pool.rs", text), [""; 0]);
    assert_eq!(
        found(
            "gateway-user/src/status.rs",
            "//! Docs.\nuse tokio::spawn;\n"
        )
        .len(),
        1
    );
}

#[test]
fn tests_do_not_sleep() {
    let text = "//! Docs.\nfn f() { std::thread::sleep(d); }\n";
    assert_eq!(
        found("tests/src/client.rs", text),
        ["tests/src/client.rs:2: `sleep` in a test: poll with a bound, or pause the clock"],
    );
    assert_eq!(found("tests/src/eventually.rs", text), [""; 0]);
    assert_eq!(found("gateway-user/src/proxy/drain.rs", text), [""; 0]);
    let unit = "//! Docs.\n#[cfg(test)]\nmod tests {\n    fn f() { sleep(1); }\n}\n";
    assert_eq!(found("gateway-user/src/proxy/drain.rs", unit).len(), 1);
}
