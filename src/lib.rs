//! Pointsman decides which language model should answer a query.
//!
//! `ARCHITECTURE.md` tells how the modules fit together; each uses only modules above it in this list
//! (`tests/integration/tidy.rs` holds the order).

pub mod artifact;
pub mod batch;
pub mod classifier;
pub mod cli;
pub mod config;
pub mod domain;
pub mod encoder;
pub mod heads;
pub mod loadgen;
pub mod offline;
pub mod policy;
pub mod router;
pub mod rpc;
pub mod rules;
pub mod serve;
pub mod sources;
pub mod telemetry;
pub mod text;
