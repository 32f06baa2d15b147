//! Every task of the service, so that a drain can tell them to end and wait for them.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks and tells them when to end, in three steps.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: CancellationToken,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl Tasks {
    /// No task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tasks that are told to end together with these and are waited for apart.
    #[must_use]
    pub fn group(&self) -> Self {
        Self { tracker: TaskTracker::new(), ..self.clone() }
    }

    /// Runs a task that [`Self::wait`] waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Tells that the end has begun: nobody should send new work, which is still taken.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Tells every task to take no more work and to end.
    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }

    /// Tells every task to end at once.
    pub fn cut(&self) {
        self.stop();
        self.cut.cancel();
    }

    /// Cancelled when the end has begun.
    pub fn draining(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Cancelled when tasks should end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Cancelled when tasks should end at once.
    pub fn cutting(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// How many tasks have not ended.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether every task has ended.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Ends when every task has ended.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Lets hyper run the calls of a connection.
impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
