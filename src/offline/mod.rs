//! Work on files instead of requests: import encoders, train, score, evaluate, report.
//!
//! Uses the classifier and what lies below it; nothing that serves requests uses this.

pub mod ability;
pub mod calibrate;
pub mod dataset;
pub mod evaluate;
pub mod gain;
pub mod import;
pub mod metrics;
pub mod off_policy;
pub mod perturb;
pub mod recalibrate;
pub mod register;
pub mod report;
pub mod robustness;
pub mod score;
pub mod scored;
pub mod split;
pub mod train;
