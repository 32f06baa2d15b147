//! The thread behind a log: whoever has something to write never waits for the disk.
//!
//! What the queue has no room for is dropped and counted. After an error the files are left alone for a moment, what comes
//! meanwhile is counted as lost, and serving goes on.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::files::Files;
use crate::telemetry::LogFate;

/// Hands items to the thread that writes them.
pub(super) struct LogWriter<T> {
    queue: SyncSender<Message<T>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    kind: LogKind<T>,
}

/// What one log differs in from another.
pub(super) struct LogKind<T> {
    /// For people and the thread's name: `decision`, `outcome`.
    pub(super) name: &'static str,
    /// Items that may wait for the disk.
    pub(super) capacity: usize,
    /// Writes one; the number of lines that reached the disk by it.
    pub(super) append: fn(&mut Files, &T) -> io::Result<u64>,
    /// Counts what became of lines.
    pub(super) count: Count,
}

type Count = Arc<dyn Fn(LogFate, u64) + Send + Sync>;

enum Message<T> {
    Item(T),
    /// Write what came before and end.
    Close,
}

struct Worker<T> {
    files: Files,
    kind: LogKind<T>,
    broken_until: Option<Instant>,
}

/// How long the files are left alone after an error.
const RETRY_AFTER: Duration = Duration::from_secs(1);

// === impl LogWriter ===

impl<T: Send + 'static> LogWriter<T> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses another thread.
    pub(super) fn start(files: Files, kind: LogKind<T>) -> io::Result<Self> {
        let (queue, receiver) = sync_channel(kind.capacity);
        let worker = Worker { files, kind: kind.clone(), broken_until: None };
        let thread =
            std::thread::Builder::new().name(format!("{}-log", kind.name)).spawn(move || worker.run(&receiver))?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)), kind })
    }

    /// Never waits.
    pub(super) fn write(&self, item: T) {
        match self.queue.try_send(Message::Item(item)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => (self.kind.count)(LogFate::QueueFull, 1),
            Err(TrySendError::Disconnected(_)) => (self.kind.count)(LogFate::Closed, 1),
        }
    }
}

impl<T> LogWriter<T> {
    /// Writes what is queued and ends the thread; blocks until the disk has it. Later items are not written.
    pub(super) fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && self.queue.send(Message::Close).is_ok()
            && thread.join().is_err()
        {
            tracing::error!(log = self.kind.name, "the log's thread panicked");
        }
    }
}

impl<T> Drop for LogWriter<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> std::fmt::Debug for LogWriter<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("name", &self.kind.name).finish_non_exhaustive()
    }
}

// === impl LogKind ===

/// Derived, it would ask `T` to be `Clone` too.
impl<T> Clone for LogKind<T> {
    fn clone(&self) -> Self {
        Self { count: Arc::clone(&self.count), ..*self }
    }
}

// === impl Worker ===

impl<T> Worker<T> {
    fn run(mut self, receiver: &Receiver<Message<T>>) {
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
                Message::Item(item) => self.write(&item),
                Message::Close => break,
            }
        }
        let finished = self.files.finish();
        self.count(finished);
    }

    fn write(&mut self, item: &T) {
        if self.broken_until.is_some_and(|until| Instant::now() < until) {
            (self.kind.count)(LogFate::Failed, 1);
            return;
        }
        let appended = (self.kind.append)(&mut self.files, item);
        if appended.is_err() {
            (self.kind.count)(LogFate::Failed, 1);
        }
        self.count(appended);
    }

    fn count(&mut self, written: io::Result<u64>) {
        match written {
            Ok(n) => {
                if n > 0 && self.broken_until.take().is_some() {
                    tracing::info!(log = self.kind.name, "the log can be written again");
                }
                (self.kind.count)(LogFate::Written, n);
            }
            Err(error) => {
                // Once per failure and not once per line; serving goes on.
                if self.broken_until.is_none() {
                    tracing::warn!(%error, log = self.kind.name, "the log cannot be written; its lines are dropped");
                }
                (self.kind.count)(LogFate::Failed, self.files.lose());
                self.broken_until = Some(Instant::now() + RETRY_AFTER);
            }
        }
    }
}
