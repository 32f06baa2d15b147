//! The promises of `tests/robustness/README.md`, each with a test that fails without what keeps it.
//!
//! `cargo test --test integration robustness::` runs them all; figures are printed with `-- --nocapture`. Bounds of time
//! are several times what is measured on an idle machine, as tests share theirs; the table has the measured figures.

mod abuse;
mod access;
mod beside;
mod cancellation;
mod deadlines;
mod drain;
mod engines;
mod fuzz;
mod integrity;
mod model;
mod model_reload;
mod operations;
mod panics;
mod poison;
mod privacy;
mod raw;
pub(crate) mod reporting;
mod shedding;
mod soak;
mod together;
mod traces;
