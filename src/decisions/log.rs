//! Takes decisions from requests without making them wait, keeps the last ones, and writes all of them on a thread.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::escalation::EscalationRecord;
use super::files::{FileOptions, Files};
use super::line::{Line, Lines};
use super::record::{Context, DecisionRecord};
use crate::domain::{ClassifierRef, TierControl};
use crate::policy::Policy;
use crate::telemetry::{LogFate, Metrics};

/// The decision log. Shared by all requests.
#[derive(Debug)]
pub struct DecisionLog {
    metrics: Arc<Metrics>,
    capacity: usize,
    recent: Mutex<VecDeque<Entry>>,
    writer: Option<SyncSender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
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

#[derive(Debug)]
enum Message {
    Line(Line, Arc<Context>),
    /// Write what came before and end.
    Close,
}

/// Names of a decision log's files begin with this.
pub const DECISIONS: &str = "decisions";
/// Decisions that may wait for the disk; at 10,000 a second half a second of a disk that stands still.
const QUEUE: usize = 4_096;
/// How long the files are left alone after an error.
const RETRY_AFTER: Duration = Duration::from_secs(1);

// === impl DecisionLog ===

impl DecisionLog {
    /// Starts the log and, where there are files, its thread.
    ///
    /// # Errors
    /// When the folder or the thread cannot be had.
    pub fn start(options: LogOptions, metrics: Arc<Metrics>) -> Result<Self, LogError> {
        let (writer, thread) = match options.files {
            None => (None, None),
            Some(files) => {
                let dir = files.dir.clone();
                let files = Files::open(files, DECISIONS).map_err(|source| LogError::Folder { dir, source })?;
                let (sender, receiver) = sync_channel(QUEUE);
                let metrics = Arc::clone(&metrics);
                let run = move || Writer { files, metrics, broken_until: None }.run(&receiver);
                let thread = std::thread::Builder::new().name("decision-log".to_owned()).spawn(run);
                (Some(sender), Some(thread.map_err(LogError::Thread)?))
            }
        };
        Ok(Self {
            metrics,
            capacity: options.recent,
            recent: Mutex::new(VecDeque::with_capacity(options.recent.min(QUEUE))),
            writer,
            thread: Mutex::new(thread),
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
        let Some(writer) = &self.writer else { return };
        match writer.try_send(Message::Line(line, context)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.metrics.record_logged(LogFate::QueueFull, 1),
            Err(TrySendError::Disconnected(_)) => self.metrics.record_logged(LogFate::Closed, 1),
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
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(writer), Some(thread)) = (&self.writer, thread)
            && writer.send(Message::Close).is_ok()
            && thread.join().is_err()
        {
            tracing::error!("the decision log's thread panicked");
        }
    }
}

impl Drop for DecisionLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread that writes.
struct Writer {
    files: Files,
    metrics: Arc<Metrics>,
    broken_until: Option<Instant>,
}

// === impl Writer ===

impl Writer {
    fn run(mut self, receiver: &Receiver<Message>) {
        loop {
            let message = match receiver.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // Nothing waits: what is in the buffer can be read from the file now.
                    let flushed = self.files.flush();
                    self.count(flushed);
                    match receiver.recv_timeout(RETRY_AFTER) {
                        Ok(message) => message,
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
            };
            match message {
                Message::Line(line, context) => self.write(&line, &context),
                Message::Close => break,
            }
        }
        let finished = self.files.finish();
        self.count(finished);
    }

    fn write(&mut self, line: &Line, context: &Arc<Context>) {
        if self.broken_until.is_some_and(|until| Instant::now() < until) {
            self.metrics.record_logged(LogFate::Failed, 1);
            return;
        }
        let appended = self.files.append(line, context);
        if appended.is_err() {
            self.metrics.record_logged(LogFate::Failed, 1);
        }
        self.count(appended);
    }

    fn count(&mut self, written: io::Result<u64>) {
        match written {
            Ok(n) => {
                if n > 0 && self.broken_until.take().is_some() {
                    tracing::info!("the decision log can be written again");
                }
                self.metrics.record_logged(LogFate::Written, n);
            }
            Err(error) => {
                // Once per failure and not once per decision; serving goes on.
                if self.broken_until.is_none() {
                    tracing::warn!(%error, "the decision log cannot be written; decisions are dropped");
                }
                self.metrics.record_logged(LogFate::Failed, self.files.lose());
                self.broken_until = Some(Instant::now() + RETRY_AFTER);
            }
        }
    }
}
