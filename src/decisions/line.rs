//! Lines of a decision log: each one JSON object that says what it is.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::escalation::EscalationRecord;
use super::record::{Context, DecisionRecord};

/// One line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Line {
    /// Stands before the first decision that refers to it, in every file.
    Context(Arc<Context>),
    /// A decision.
    Decision(Arc<DecisionRecord>),
    /// A step of a cascade.
    Escalation(Arc<EscalationRecord>),
}

/// What was read of a log.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// The decisions, in order.
    pub records: Vec<Arc<DecisionRecord>>,
    /// Steps of cascades, in order.
    pub escalations: Vec<Arc<EscalationRecord>>,
    /// What they refer to.
    pub contexts: HashMap<Arc<str>, Arc<Context>>,
    /// Lines that are no JSON object of a known type; a write that was cut off leaves one.
    pub malformed: u64,
}

/// Reads the lines of one or more logs; empty ones are skipped.
pub fn read_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Lines {
    let mut read = Lines::default();
    for line in lines.into_iter().map(str::trim).filter(|line| !line.is_empty()) {
        match serde_json::from_str(line) {
            Ok(Line::Context(context)) => {
                read.contexts.insert(Arc::clone(&context.id), context);
            }
            Ok(Line::Decision(record)) => read.records.push(record),
            Ok(Line::Escalation(record)) => read.escalations.push(record),
            Err(_) => read.malformed += 1,
        }
    }
    read
}
