//! Fuzz targets; see `docs/fuzzing.md`.
#![allow(missing_docs, reason = "each target says what it does")]

pub mod targets;
