//! libFuzzer's entry to [`gateway_fuzz::router`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::router(data));
