//! Finds what is wrong or not meant.
use super::finding::Finding;
use super::parse::Parsed;
use super::snapshot::PolicyOptions;

pub(super) fn validate(parsed: &Parsed, _options: &PolicyOptions) -> Vec<Finding> {
    parsed.findings.clone()
}
