//! Takes decisions from requests without making them wait, keeps the last ones, and writes all of them on a thread.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

use super::escalation::EscalationRecord;
use super::files::{FileOptions, Files};
use super::line::{Line, Lines};
use super::record::{Context, DecisionRecord};
use super::writer::{LogKind, LogWriter};
use crate::domain::{ClassifierRef, TierControl};
use crate::policy::Policy;
use crate::telemetry::Metrics;

/// The decision log. Shared by all requests.
#[derive(Debug)]
pub struct DecisionLog {
    capacity: usize,
    recent: Mutex<VecDeque<Entry>>,
    writer: Option<LogWriter<(Line, Arc<Context>)>>,
    keep_text: bool,
    context: ArcSwapOption<Context>,
}

/// What a decision log keeps and where.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LogOptions {
    /// Decisions kept in memory; 0: none.
    pub recent: usize,
    /// Files; `None`: decisions are kept in memory only.
    pub files: Option<FileOptions>,
    /// Whether the text is kept too.
    pub keep_text: bool,
}

/// The log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The folder cannot be used.
    #[error("cannot write the decision log to {}", .dir.display())]
    Folder {
        /// The folder.
        dir: std::path::PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The system refuses another thread.
    #[error("cannot start the decision log's thread")]
    Thread(#[source] io::Error),
}

#[derive(Clone, Debug)]
struct Entry {
    record: Arc<DecisionRecord>,
    context: Arc<Context>,
}

/// Names of a decision log's files begin with this.
pub const DECISIONS: &str = "decisions";
/// Decisions that may wait for the disk; at 10,000 a second half a second of a disk that stands still.
const QUEUE: usize = 4_096;

// === impl DecisionLog ===

impl DecisionLog {
    /// Starts the log and, where there are files, its thread.
    ///
    /// # Errors
    /// When the folder or the thread cannot be had.
    pub fn start(options: LogOptions, metrics: Arc<Metrics>) -> Result<Self, LogError> {
        let writer = match options.files {
            None => None,
            Some(files) => {
                let dir = files.dir.clone();
                let files = Files::open(files, DECISIONS).map_err(|source| LogError::Folder { dir, source })?;
                let kind = LogKind {
                    name: "decision",
                    capacity: QUEUE,
                    append: |files: &mut Files, (line, context): &(Line, Arc<Context>)| files.append(line, context),
                    count: Arc::new(move |fate, n| metrics.record_logged(fate, n)),
                };
                Some(LogWriter::start(files, kind).map_err(LogError::Thread)?)
            }
        };
        Ok(Self {
            capacity: options.recent,
            recent: Mutex::new(VecDeque::with_capacity(options.recent.min(QUEUE))),
            writer,
            keep_text: options.keep_text,
            context: ArcSwapOption::empty(),
        })
    }

    /// Whether decisions are kept at all.
    pub fn is_on(&self) -> bool {
        self.capacity > 0 || self.writer.is_some()
    }

    /// Whether texts are kept.
    pub fn keeps_text(&self) -> bool {
        self.keep_text
    }

    /// What decisions of `policy` and `classifier` have in common; made once for both.
    pub fn context(
        &self,
        policy: &Policy,
        classifier: &ClassifierRef,
        intents: &Arc<[Arc<str>]>,
        tier_control: &TierControl,
    ) -> Arc<Context> {
        let known = self.context.load_full().filter(|context| {
            context.policy_sha256 == *policy.sha256() && context.classifier_sha256 == classifier.sha256
        });
        if let Some(context) = known {
            return context;
        }
        let context = Arc::new(Context::new(policy, classifier, intents, tier_control));
        self.context.store(Some(Arc::clone(&context)));
        context
    }

    /// Takes a decision; never waits. One that the queue has no room for is not written, and counted.
    pub fn record(&self, record: DecisionRecord, context: Arc<Context>) {
        let entry = Entry { record: Arc::new(record), context };
        if self.capacity > 0 {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            while recent.len() >= self.capacity {
                recent.pop_front();
            }
            recent.push_back(entry.clone());
        }
        let Entry { record, context } = entry;
        self.write(Line::Decision(record), context);
    }

    /// Takes a step of a cascade, for the files alone; never waits either.
    pub fn record_escalation(&self, record: EscalationRecord, context: Arc<Context>) {
        self.write(Line::Escalation(Arc::new(record)), context);
    }

    fn write(&self, line: Line, context: Arc<Context>) {
        if let Some(writer) = &self.writer {
            writer.write((line, context));
        }
    }

    /// The decisions in memory, the oldest first.
    pub fn recent(&self) -> Lines {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let contexts = recent.iter().map(|entry| (Arc::clone(&entry.context.id), Arc::clone(&entry.context)));
        Lines {
            contexts: contexts.collect(),
            records: recent.iter().map(|entry| Arc::clone(&entry.record)).collect(),
            escalations: Vec::new(),
            malformed: 0,
        }
    }

    /// Writes what is queued and ends the thread; blocks until the disk has it. Later decisions are not written.
    pub fn close(&self) {
        if let Some(writer) = &self.writer {
            writer.close();
        }
    }
}
