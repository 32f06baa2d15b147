//! libFuzzer's entry into `targets::rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pointsman_fuzz::targets::rules(bytes));
