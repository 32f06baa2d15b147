//! One binary for every integration test: one link step, shared fixtures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed step should fail the test at once"
)]

mod encoder;
