//! A bounded, deadline-aware queue and the thread that runs the encoder.
//!
//! Requests hand in tokenised texts and wait; a dedicated thread takes what waits, most urgent first, and classifies
//! it in one ragged pass, while the next pass gathers. There is no fixed delay: a query that arrives at an idle
//! encoder starts at once. A pass takes at most [`BatchOptions::tokens_per_pass`] word pieces, so one long document
//! does not stall short queries for long. Expired and cancelled entries are dropped unread.
//!
//! What waits is measured in time, by what passes have cost: [`Batcher::admit`] refuses before a text is tokenised when
//! the wait would be longer than [`BatchOptions::max_wait`] or than the caller's deadline allows.

mod breaker;
mod cost;
mod queue;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::classifier::{Classifier, Input};
use crate::domain::{Classification, Priority};
use crate::encoder::EncoderError;
use crate::telemetry::Metrics;
use breaker::Breaker;
use cost::CostModel;
use queue::{Entry, Queue};

/// What classifies a batch: the classifier, or what a test puts in its place.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Classifies `inputs` in one forward pass, in their order.
    ///
    /// # Errors
    /// When the pass fails; nothing is known of any input then.
    fn classify(&self, inputs: &[&Input]) -> Result<Vec<Classification>, EncoderError>;
}

/// Bounds of the queue and of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Most queries that may wait.
    pub queue_entries: usize,
    /// Most word pieces of one pass; a single longer text still gets a pass of its own.
    pub tokens_per_pass: usize,
    /// Longest wait for a pass that a query is taken in for.
    pub max_wait: Duration,
}

/// On what terms a query is to be classified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// When an answer is of no use any more.
    pub deadline: Option<Instant>,
    /// The call that the query is part of was admitted as a whole, so the query itself is not turned away.
    pub admitted: bool,
}

/// A classification and how long its parts took.
#[derive(Clone, Debug)]
pub struct Classified {
    /// What the classifier says.
    pub classification: Classification,
    /// Time in the queue.
    pub queued: Duration,
    /// When the pass began.
    pub began: Instant,
    /// Time of the pass, shared with the other queries in it.
    pub inference: Duration,
}

/// Why a query was not classified.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BatchError {
    /// More work waits than is done within the longest wait allowed.
    #[error("more queries wait for the classifier than it can serve in time")]
    Overloaded {
        /// When there should be room again.
        retry_after: Duration,
    },
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
    engine: Arc<dyn Engine>,
    metrics: Arc<Metrics>,
    options: BatchOptions,
    cost: CostModel,
    breaker: Breaker,
    /// An input that was classified, to tell a broken encoder from inputs that break it.
    known_good: OnceLock<Input>,
    epoch: Instant,
    /// When the pass that runs should be done, in nanoseconds since `epoch`; in the past when none runs.
    busy_until: AtomicU64,
}

/// A query without deadline is given up after this many times the longest wait: those of higher priority could keep
/// it waiting for ever.
const PATIENCE: u32 = 4;
/// Passes of one batch that may fail without a single one that does not, per halving that finds a culprit: when more
/// do, it is not the inputs.
const FAILURES_PER_HALVING: u32 = 2;

// === impl Batcher ===

impl Batcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses another thread.
    pub fn start(engine: Arc<dyn Engine>, metrics: Arc<Metrics>, options: BatchOptions) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Queue::new(options.queue_entries),
            engine,
            metrics,
            options,
            cost: CostModel::default(),
            breaker: Breaker::default(),
            known_good: OnceLock::new(),
            epoch: Instant::now(),
            busy_until: AtomicU64::new(0),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("pointsman-encoder".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether a text of about `n_tokens` would be classified in time. Cheap, so that it can be asked before the text
    /// is tokenised.
    ///
    /// # Errors
    /// When the deadline is too near, too much waits already, or the encoder fails every time.
    pub fn admit(&self, n_tokens: usize, priority: Priority, terms: Terms) -> Result<(), BatchError> {
        let (shared, now) = (&self.shared, Instant::now());
        if !shared.breaker.admits(now) {
            return Err(BatchError::Failed);
        }
        let wait = shared.wait(priority, now);
        let refusal = if terms.deadline.is_some_and(|deadline| now + wait + shared.cost.predict(1, n_tokens) > deadline)
        {
            BatchError::DeadlineTooNear
        } else if !terms.admitted && wait > shared.options.max_wait {
            BatchError::Overloaded { retry_after: wait.saturating_sub(shared.options.max_wait) }
        } else {
            return Ok(());
        };
        if wait.is_zero() {
            shared.cost.doubt();
        }
        Err(refusal)
    }

    /// Whether there is room for a call of many texts, each of which asks [`Self::admit`] for itself later.
    ///
    /// # Errors
    /// When too much waits already.
    pub fn has_room(&self, priority: Priority) -> Result<(), BatchError> {
        let (wait, most) = (self.shared.wait(priority, Instant::now()), self.shared.options.max_wait);
        if wait > most { Err(BatchError::Overloaded { retry_after: wait.saturating_sub(most) }) } else { Ok(()) }
    }

    /// Classifies `input`, which [`Self::admit`] has let pass.
    ///
    /// Cancel-safe: when the caller goes away, the entry is dropped unread.
    ///
    /// # Errors
    /// When the queue is full or closed, the deadline is too near, or the pass failed.
    pub async fn classify(&self, input: Input, priority: Priority, terms: Terms) -> Result<Classified, BatchError> {
        let now = Instant::now();
        let (reply, answer) = oneshot::channel();
        self.shared.queue.push(Entry { input, priority, deadline: terms.deadline, arrived: now, reply })?;
        self.shared.publish_depth();
        let max_wait = self.shared.options.max_wait;
        // Where time runs out, the entry, its receiver gone, is dropped unread.
        let answer = match terms.deadline {
            Some(deadline) => {
                let answer = tokio::time::timeout_at(deadline.into(), answer).await;
                answer.map_err(|_| BatchError::DeadlineTooNear)?
            }
            None if terms.admitted => answer.await,
            None => {
                let answer = tokio::time::timeout(max_wait * PATIENCE, answer).await;
                answer.map_err(|_| BatchError::Overloaded { retry_after: max_wait })?
            }
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

impl Engine for Classifier {
    fn classify(&self, inputs: &[&Input]) -> Result<Vec<Classification>, EncoderError> {
        Self::classify(self, inputs)
    }
}

impl From<Option<Instant>> for Terms {
    fn from(deadline: Option<Instant>) -> Self {
        Self { deadline, admitted: false }
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
                self.run_passes(taken.batch);
            }
        }
    }

    /// Classifies a batch. When that fails, its halves are tried until the inputs at fault are alone, so that they
    /// cost nobody else an answer.
    fn run_passes(&self, batch: Vec<Entry>) {
        let halvings = usize::BITS - batch.len().leading_zeros();
        let mut failures_left = FAILURES_PER_HALVING * halvings;
        let (mut to_do, mut any_succeeded) = (vec![batch], false);
        while let Some(mut batch) = to_do.pop() {
            // Some callers go away while other parts are tried.
            let now = Instant::now();
            batch.retain(|entry| !entry.is_waste(now));
            if batch.is_empty() {
                continue;
            }
            let Err(mut failed) = self.run_pass(batch) else {
                any_succeeded = true;
                continue;
            };
            if !any_succeeded {
                failures_left = failures_left.saturating_sub(1);
                any_succeeded = failures_left == 0 && self.still_works();
            }
            if failed.len() <= 1 || failures_left == 0 && !any_succeeded {
                failed.into_iter().for_each(|entry| entry.answer(Err(BatchError::Failed)));
                continue;
            }
            let second = failed.split_off(failed.len() / 2);
            to_do.extend([second, failed]);
        }
        if any_succeeded || self.breaker.is_about_to_open() && self.still_works() {
            self.breaker.succeeded();
        } else if self.breaker.failed(Instant::now()) {
            tracing::error!("passes fail one after the other; the encoder is asked once a second");
        }
    }

    /// Whether the encoder classifies what it has classified before: then the inputs that came since are at fault.
    fn still_works(&self) -> bool {
        let try_out = |input| catch_unwind(AssertUnwindSafe(|| self.engine.classify(&[input]).is_ok()));
        self.known_good.get().is_some_and(|input| try_out(input).unwrap_or(false))
    }

    /// One pass; gives the batch back when it failed.
    fn run_pass(&self, batch: Vec<Entry>) -> Result<(), Vec<Entry>> {
        let started = Instant::now();
        let inputs: Vec<&Input> = batch.iter().map(|entry| &entry.input).collect();
        let n_tokens: usize = inputs.iter().map(|input| input.n_tokens()).sum();
        self.metrics.record_wasted(batch.iter().filter(|entry| entry.is_waste(started)).count() as u64);
        self.set_busy(started, self.cost.predict(1, n_tokens));
        // A panic in a kernel costs the query that provokes it, not the service.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.engine.classify(&inputs)));
        let inference = started.elapsed();
        self.set_busy(started, inference);
        self.metrics.record_batch(batch.len(), n_tokens);
        match outcome {
            Ok(Ok(classifications)) => {
                self.cost.learn(n_tokens, inference);
                if let Some(entry) = batch.first() {
                    self.known_good.get_or_init(|| entry.input.clone());
                }
                for (entry, classification) in batch.into_iter().zip(classifications) {
                    let queued = started.saturating_duration_since(entry.arrived);
                    entry.answer(Ok(Classified { classification, queued, began: started, inference }));
                }
                Ok(())
            }
            failure => {
                self.metrics.record_batch_failure();
                match failure {
                    Ok(Err(error)) => tracing::error!(%error, n_tokens, queries = batch.len(), "forward pass failed"),
                    _ => tracing::error!(n_tokens, queries = batch.len(), "forward pass panicked"),
                }
                Err(batch)
            }
        }
    }

    /// Time until a pass takes an entry of `priority` that is handed in now.
    fn wait(&self, priority: Priority, now: Instant) -> Duration {
        let busy_until = self.epoch + Duration::from_nanos(self.busy_until.load(Ordering::Relaxed));
        let ahead = self.queue.tokens_ahead(priority);
        let passes = ahead.div_ceil(self.options.tokens_per_pass);
        busy_until.saturating_duration_since(now) + self.cost.predict(passes, ahead)
    }

    fn set_busy(&self, since: Instant, time: Duration) {
        let until = (since + time).saturating_duration_since(self.epoch);
        self.busy_until.store(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn publish_depth(&self) {
        let (entries, tokens) = self.queue.depth();
        self.metrics.set_queue(entries, tokens);
    }
}
