//! A bounded, deadline-aware queue and the threads that run the encoder.
//!
//! Requests hand in tokenised texts and wait; a dedicated thread takes what waits, most urgent first, and classifies
//! it in one ragged pass, while the next pass gathers. There is no fixed delay: a query that arrives at an idle
//! encoder starts at once. A pass takes at most [`BatchOptions::tokens_per_pass`] word pieces, so one long document
//! does not stall short queries for long. Expired and cancelled entries are dropped unread.

mod queue;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::classifier::{Classifier, Input};
use crate::domain::{Classification, Priority};
use crate::telemetry::Metrics;
use queue::{Entry, Queue};

/// Bounds of the queue and of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Most queries that may wait.
    pub queue_entries: usize,
    /// Most word pieces of one pass; a single longer text still gets a pass of its own.
    pub tokens_per_pass: usize,
}

/// A classification and how long its parts took.
#[derive(Clone, Debug)]
pub struct Classified {
    /// What the classifier says.
    pub classification: Classification,
    /// Time in the queue.
    pub queued: Duration,
    /// Time of the pass, shared with the other queries in it.
    pub inference: Duration,
}

/// Why a query was not classified.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BatchError {
    /// The queue is full.
    #[error("the classification queue is full")]
    Full,
    /// The deadline passes before a pass would be done.
    #[error("the deadline is too near for a forward pass")]
    DeadlineTooNear,
    /// The pass failed or panicked; the cause is in the log.
    #[error("the forward pass failed")]
    Failed,
    /// The service is shutting down.
    #[error("the classification queue is closed")]
    Closed,
}

/// Hands queries to the encoder's thread. Dropping it closes the queue and waits for the thread.
#[derive(Debug)]
pub struct Batcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    queue: Queue,
    classifier: Arc<Classifier>,
    metrics: Arc<Metrics>,
    options: BatchOptions,
    /// Moving average of a pass's cost, in nanoseconds per word piece.
    ns_per_token: AtomicU64,
}

/// Weight of the newest pass in the moving average is 1 / this.
const AVERAGE_OVER_PASSES: u64 = 8;

// === impl Batcher ===

impl Batcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses another thread.
    pub fn start(classifier: Arc<Classifier>, metrics: Arc<Metrics>, options: BatchOptions) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Queue::new(options.queue_entries),
            classifier,
            metrics,
            options,
            ns_per_token: AtomicU64::new(0),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("pointsman-encoder".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Classifies `input` before `deadline`, if there is one.
    ///
    /// Cancel-safe: when the caller goes away, the entry is dropped unread.
    ///
    /// # Errors
    /// When the queue is full or closed, the deadline is too near, or the pass failed.
    pub async fn classify(
        &self,
        input: Input,
        priority: Priority,
        deadline: Option<Instant>,
    ) -> Result<Classified, BatchError> {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now + self.shared.estimate(input.n_tokens()) > deadline) {
            return Err(BatchError::DeadlineTooNear);
        }
        let (reply, answer) = oneshot::channel();
        self.shared.queue.push(Entry { input, priority, deadline, arrived: now, reply })?;
        self.shared.publish_depth();
        let answer = match deadline {
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), answer).await {
                Ok(answer) => answer,
                // A pass took longer than expected. The entry, its receiver gone, is dropped unread.
                Err(_) => return Err(BatchError::DeadlineTooNear),
            },
            None => answer.await,
        };
        answer.unwrap_or(Err(BatchError::Closed))
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the encoder thread panicked");
        }
    }
}

// === impl Shared ===

impl Shared {
    fn run(&self) {
        while let Some(taken) = self.queue.take(self.options.tokens_per_pass) {
            self.publish_depth();
            for entry in taken.expired {
                self.metrics.record_skipped();
                entry.answer(Err(BatchError::DeadlineTooNear));
            }
            (0..taken.n_cancelled).for_each(|_| self.metrics.record_skipped());
            if !taken.batch.is_empty() {
                self.run_pass(taken.batch);
            }
        }
    }

    fn run_pass(&self, batch: Vec<Entry>) {
        let started = Instant::now();
        let inputs: Vec<&Input> = batch.iter().map(|entry| &entry.input).collect();
        let n_tokens: usize = inputs.iter().map(|input| input.n_tokens()).sum();
        // A panic in a kernel costs the queries of this pass, not the service.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.classifier.classify(&inputs)));
        let inference = started.elapsed();
        self.metrics.record_batch(batch.len(), n_tokens);
        match outcome {
            Ok(Ok(classifications)) => {
                self.learn_cost(inference, n_tokens);
                for (entry, classification) in batch.into_iter().zip(classifications) {
                    let queued = started.saturating_duration_since(entry.arrived);
                    entry.answer(Ok(Classified { classification, queued, inference }));
                }
            }
            failure => {
                self.metrics.record_batch_failure();
                if let Ok(Err(error)) = failure {
                    tracing::error!(%error, n_tokens, "forward pass failed");
                } else {
                    tracing::error!(n_tokens, "forward pass panicked");
                }
                batch.into_iter().for_each(|entry| entry.answer(Err(BatchError::Failed)));
            }
        }
    }

    /// Time until a text of `n_tokens` that is handed in now would be classified.
    fn estimate(&self, n_tokens: usize) -> Duration {
        let ahead = self.queue.tokens_waiting();
        Duration::from_nanos(self.ns_per_token.load(Ordering::Relaxed) * (ahead + n_tokens) as u64)
    }

    fn learn_cost(&self, inference: Duration, n_tokens: usize) {
        let cost = u64::try_from(inference.as_nanos()).unwrap_or(u64::MAX) / n_tokens.max(1) as u64;
        let average = self.ns_per_token.load(Ordering::Relaxed);
        let next =
            if average == 0 { cost } else { average - average / AVERAGE_OVER_PASSES + cost / AVERAGE_OVER_PASSES };
        self.ns_per_token.store(next, Ordering::Relaxed);
    }

    fn publish_depth(&self) {
        let (entries, tokens) = self.queue.depth();
        self.metrics.set_queue(entries, tokens);
    }
}
