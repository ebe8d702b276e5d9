//! libFuzzer's entry to [`gateway_fuzz::authority`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::authority(data));
