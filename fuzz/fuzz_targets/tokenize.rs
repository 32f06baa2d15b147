//! libFuzzer's entry into `targets::tokenize`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pointsman_fuzz::targets::tokenize(bytes));
