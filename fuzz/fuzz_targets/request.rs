//! libFuzzer's entry into `targets::request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pointsman_fuzz::targets::request(bytes));
