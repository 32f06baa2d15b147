//! Pointsman decides which language model should answer a query.
//!
//! `ARCHITECTURE.md` tells how the modules fit together. Each uses only modules below it in a one-way order, which
//! `tests/integration/tidy.rs` holds.

pub mod access;
pub mod artifact;
pub mod batch;
pub mod cascade;
pub mod classifier;
pub mod cli;
pub mod client;
pub mod config;
pub mod decisions;
pub mod domain;
pub mod encoder;
pub mod heads;
pub mod health;
pub mod loadgen;
pub mod offline;
pub mod policy;
pub mod recent;
pub mod router;
pub mod rpc;
pub mod rules;
pub mod serve;
pub mod sources;
pub mod state;
pub mod telemetry;
pub mod text;
