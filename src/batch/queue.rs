//! The queue itself: bounded, most urgent first, counting tokens.

use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{BatchError, Classified};
use crate::classifier::Input;
use crate::domain::Priority;

/// A query that waits.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) input: Input,
    pub(super) priority: Priority,
    pub(super) deadline: Option<Instant>,
    pub(super) arrived: Instant,
    pub(super) reply: oneshot::Sender<Result<Classified, BatchError>>,
}

/// What one call of [`Queue::take`] found.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// To be classified in one pass.
    pub(super) batch: Vec<Entry>,
    /// Entries whose deadline has passed.
    pub(super) expired: Vec<Entry>,
    /// Entries whose caller went away.
    pub(super) n_cancelled: usize,
}

/// Word pieces that wait, by priority, the lowest first.
type TokensByPriority = [usize; 3];

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    heap: BinaryHeap<Waiting>,
    tokens: TokensByPriority,
    sequence: u64,
    closed: bool,
}

#[derive(Debug)]
struct Waiting {
    entry: Entry,
    sequence: u64,
}

/// How long the caller of a full queue should wait; the queue's own estimate comes first wherever it can tell.
const FULL_RETRY_AFTER: Duration = Duration::from_millis(100);

// === impl Entry ===

impl Entry {
    /// Whether nobody would read an answer given at `now`.
    pub(super) fn is_waste(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Answers the caller, if it is still there.
    pub(super) fn answer(self, answer: Result<Classified, BatchError>) {
        // An error here means that the caller went away, which is its right.
        drop(self.reply.send(answer));
    }
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), capacity }
    }

    pub(super) fn push(&self, entry: Entry) -> Result<(), BatchError> {
        let mut state = self.lock();
        if state.closed {
            return Err(BatchError::Closed);
        }
        if state.heap.len() >= self.capacity {
            return Err(BatchError::Overloaded { retry_after: FULL_RETRY_AFTER });
        }
        state.tokens[entry.priority as usize] += entry.input.n_tokens();
        state.sequence += 1;
        let sequence = state.sequence;
        state.heap.push(Waiting { entry, sequence });
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for entries, then takes the most urgent ones up to `max_tokens` (at least one). `None`: closed and empty.
    pub(super) fn take(&self, max_tokens: usize) -> Option<Taken> {
        let mut state = self.lock();
        while state.heap.is_empty() {
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let now = Instant::now();
        let (mut taken, mut n_tokens) = (Taken::default(), 0);
        while let Some(next) = state.heap.peek() {
            let n = next.entry.input.n_tokens();
            let gone = next.entry.reply.is_closed();
            let expired = next.entry.deadline.is_some_and(|deadline| deadline <= now);
            if !gone && !expired && !taken.batch.is_empty() && n_tokens + n > max_tokens {
                break;
            }
            let Some(Waiting { entry, .. }) = state.heap.pop() else { break };
            state.tokens[entry.priority as usize] -= n;
            if gone {
                taken.n_cancelled += 1;
            } else if expired {
                taken.expired.push(entry);
            } else {
                n_tokens += n;
                taken.batch.push(entry);
            }
        }
        Some(taken)
    }

    /// Refuses further entries; those that wait are still taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Word pieces of entries that a new one of `priority` would have to wait for.
    pub(super) fn tokens_ahead(&self, priority: Priority) -> usize {
        self.lock().tokens.iter().skip(priority as usize).sum()
    }

    /// Entries and tokens that wait.
    pub(super) fn depth(&self) -> (usize, usize) {
        let state = self.lock();
        (state.heap.len(), state.tokens.iter().sum())
    }

    /// The state is valid between any two statements, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waiting ===

/// Greater is more urgent: higher priority, nearer deadline, earlier arrival.
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let nearer = match (self.entry.deadline, other.entry.deadline) {
            (Some(own), Some(others)) => others.cmp(&own),
            (Some(_), None) => std::cmp::Ordering::Greater,
            (None, Some(_)) => std::cmp::Ordering::Less,
            (None, None) => std::cmp::Ordering::Equal,
        };
        self.entry.priority.cmp(&other.entry.priority).then(nearer).then(other.sequence.cmp(&self.sequence))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Waiting {}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = oneshot::Receiver<Result<Classified, BatchError>>;

    fn push(queue: &Queue, n_tokens: usize, priority: Priority, deadline: Option<Instant>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let input = Input::of_length(n_tokens);
        queue.push(Entry { input, priority, deadline, arrived: Instant::now(), reply }).unwrap();
        answer
    }

    fn lengths(taken: &Taken) -> Vec<usize> {
        taken.batch.iter().map(|entry| entry.input.n_tokens()).collect()
    }

    #[test]
    fn urgent_entries_come_first_and_a_pass_is_bounded() {
        let queue = Queue::new(10);
        let soon = Instant::now() + Duration::from_secs(60);
        let _a = push(&queue, 10, Priority::Normal, None);
        let _b = push(&queue, 20, Priority::Low, Some(soon));
        let _c = push(&queue, 30, Priority::Normal, Some(soon));
        let _d = push(&queue, 40, Priority::High, None);
        let _e = push(&queue, 11, Priority::Normal, None);
        assert_eq!(queue.depth(), (5, 111));
        let ahead = [Priority::High, Priority::Normal, Priority::Low].map(|priority| queue.tokens_ahead(priority));
        assert_eq!(ahead, [40, 91, 111]);
        assert_eq!(lengths(&queue.take(80).unwrap()), [40, 30, 10], "11 more would be over 80");
        assert_eq!(lengths(&queue.take(5).unwrap()), [11], "a pass has at least one entry");
        assert_eq!(lengths(&queue.take(80).unwrap()), [20]);
        assert_eq!(queue.depth(), (0, 0));
    }

    #[test]
    fn expired_and_cancelled_entries_are_not_classified() {
        let queue = Queue::new(10);
        let _expired = push(&queue, 10, Priority::Normal, Some(Instant::now()));
        drop(push(&queue, 20, Priority::Normal, None));
        let _alive = push(&queue, 30, Priority::Normal, None);
        let taken = queue.take(100).unwrap();
        assert_eq!((lengths(&taken), taken.expired.len(), taken.n_cancelled), (vec![30], 1, 1));
    }

    #[test]
    fn bounds_and_closing_refuse() {
        let queue = Queue::new(1);
        let _a = push(&queue, 1, Priority::Normal, None);
        let refused = |queue: &Queue| {
            let (reply, _answer) = oneshot::channel();
            let entry = Entry {
                input: Input::of_length(1),
                priority: Priority::Normal,
                deadline: None,
                arrived: Instant::now(),
                reply,
            };
            queue.push(entry).unwrap_err()
        };
        assert_eq!(refused(&queue), BatchError::Overloaded { retry_after: FULL_RETRY_AFTER });
        queue.close();
        assert_eq!(refused(&queue), BatchError::Closed);
        assert_eq!(lengths(&queue.take(100).unwrap()), [1], "what waited is still served");
        assert!(queue.take(100).is_none());
    }
}
