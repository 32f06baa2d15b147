//! The outcome log: what callers reported, one JSON object a line, in files beside those of the decision log.
//!
//! As with decisions, no request waits for the disk: what the queue has no room for is dropped and counted.

use std::sync::Arc;

use super::files::{FileOptions, Files};
use super::log::LogError;
use super::writer::{LogKind, LogWriter};
use crate::domain::OutcomeReport;
use crate::telemetry::OutcomeMetrics;

/// The outcome log. Shared by all requests.
#[derive(Debug)]
pub struct OutcomeLog {
    writer: LogWriter<OutcomeReport>,
}

/// What was read of an outcome log.
#[derive(Clone, Debug, Default)]
pub struct OutcomeLines {
    /// The outcomes, in order.
    pub outcomes: Vec<OutcomeReport>,
    /// Lines that are none; a write that was cut off leaves one.
    pub malformed: u64,
}

/// Names of an outcome log's files begin with this.
pub const OUTCOMES: &str = "outcomes";
/// Outcomes that may wait for the disk.
const QUEUE: usize = 8_192;

// === impl OutcomeLog ===

impl OutcomeLog {
    /// Starts the log and its thread.
    ///
    /// # Errors
    /// When the folder or the thread cannot be had.
    pub fn start(options: FileOptions, metrics: Arc<OutcomeMetrics>) -> Result<Self, LogError> {
        let dir = options.dir.clone();
        let files = Files::open(options, OUTCOMES).map_err(|source| LogError::Folder { dir, source })?;
        let writer = LogWriter::start(
            files,
            LogKind {
                name: "outcome",
                capacity: QUEUE,
                append: |files, report| files.append_json(report),
                count: Arc::new(move |fate, n| metrics.record_logged(fate, n)),
            },
        );
        Ok(Self { writer: writer.map_err(LogError::Thread)? })
    }

    /// Takes an outcome; never waits. One that the queue has no room for is not written, and counted.
    pub fn record(&self, report: OutcomeReport) {
        self.writer.write(report);
    }

    /// Writes what is queued and ends the thread; blocks until the disk has it. Later outcomes are not written.
    pub fn close(&self) {
        self.writer.close();
    }
}

/// Reads the lines of one or more outcome logs; empty ones are skipped.
pub fn read_outcomes<'a>(lines: impl IntoIterator<Item = &'a str>) -> OutcomeLines {
    let mut read = OutcomeLines::default();
    for line in lines.into_iter().map(str::trim).filter(|line| !line.is_empty()) {
        match serde_json::from_str(line) {
            Ok(outcome) => read.outcomes.push(outcome),
            Err(_) => read.malformed += 1,
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Metrics;

    fn report(n: u64) -> OutcomeReport {
        OutcomeReport {
            time_unix_ms: n,
            decision_id: format!("d{n}"),
            model: "m".to_owned(),
            score: Some(0.5),
            scorer: "judge".to_owned(),
            failure: None,
            tokens: 7,
            cost_usd: 0.001,
            latency_ms: 20,
            attempt: None,
        }
    }

    #[test]
    fn what_is_reported_can_be_read_back_over_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let options = FileOptions {
            dir: dir.path().to_owned(),
            max_file_bytes: 2_000,
            max_file_age: Duration::from_secs(3_600),
            max_total_bytes: 1_000_000,
        };
        // A decision log's file in the same folder is left alone.
        std::fs::write(dir.path().join("decisions.jsonl"), "mine\n").unwrap();
        let metrics = Metrics::new();
        let log = OutcomeLog::start(options, Arc::clone(metrics.outcomes())).unwrap();
        (0..100).for_each(|n| log.record(report(n)));
        log.close();
        log.record(report(100));
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        // Those put aside, by time, before the one that grows.
        names.sort_by_key(|path| (path.ends_with("outcomes.jsonl"), path.clone()));
        names.retain(|path| !path.ends_with("decisions.jsonl"));
        assert!(names.len() > 3, "{names:?}");
        let texts: Vec<String> = names.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let read = read_outcomes(texts.iter().flat_map(|text| text.lines()).chain(["half a li"]));
        assert_eq!((read.outcomes, read.malformed), ((0..100).map(report).collect(), 1));
        assert_eq!(std::fs::read_to_string(dir.path().join("decisions.jsonl")).unwrap(), "mine\n");
        let page = metrics.encode(None).unwrap();
        assert!(page.contains("pointsman_outcome_log_lines_total{fate=\"Written\"} 100"), "{page}");
        assert!(page.contains("pointsman_outcome_log_lines_total{fate=\"Closed\"} 1"), "{page}");
    }
}
