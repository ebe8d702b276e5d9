//! libFuzzer's entry to [`gateway_fuzz::head_scanner`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::head_scanner(data));
