//! libFuzzer's entry into `targets::policy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pointsman_fuzz::targets::policy(bytes));
