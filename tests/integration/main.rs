//! One binary for every integration test: one link step, shared fixtures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::disallowed_methods,
    reason = "a failed step should fail the test at once, and no drain has to wait for a test's tasks"
)]

mod bad_input;
mod calibrate;
mod cascade;
mod commands;
mod control_plane;
mod control_plane_changes;
mod control_plane_etcd;
mod control_plane_faults;
mod control_plane_support;
mod control_plane_tls;
mod decisions;
mod documentation;
mod drill;
mod encoder;
mod grpc;
mod hostile;
mod hub;
mod lifecycle;
mod outcomes;
mod overload;
mod robustness;
mod state;
mod state_tls;
mod support;
mod tidy;
mod training;
