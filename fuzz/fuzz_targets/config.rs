//! libFuzzer's entry into `targets::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pointsman_fuzz::targets::config(bytes));
