//! Pointsman decides which language model should answer a query.
//!
//! `ARCHITECTURE.md` tells how the modules fit together; each uses only modules above it in this list
//! (`tests/integration/tidy.rs` holds the order).

pub mod domain;
pub mod policy;
pub mod rules;
pub mod sources;
