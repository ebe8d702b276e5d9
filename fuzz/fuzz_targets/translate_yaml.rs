//! libFuzzer's entry to [`gateway_fuzz::translate_yaml`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::translate_yaml(data));
