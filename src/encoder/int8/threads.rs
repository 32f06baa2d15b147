//! A few threads that wait for passes, spinning for a moment before they sleep.
//!
//! A pass over one short query takes a few hundred microseconds: waking a thread anew for each of its steps would cost
//! as much. So a pass is handed out once, its steps meet at a [`Barrier`], and a thread that has just worked looks
//! out for more work a little longer than the next query usually takes to come.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Something that several threads do together.
pub(super) trait Job: Send + Sync {
    /// The part of one member; 0 is the caller's.
    fn run(&self, member: usize);
    /// Told when a member has panicked, so that the others stop waiting for it.
    fn give_up(&self);
}

/// The threads beside the caller's.
#[derive(Debug)]
pub(super) struct Threads {
    workers: Vec<Worker>,
    /// Held while a job runs: another caller then works alone.
    busy: Mutex<()>,
}

/// The right to hand out one job.
pub(super) struct Claim<'a> {
    threads: &'a Threads,
    _busy: MutexGuard<'a, ()>,
}

/// Where the members of a job wait for each other.
#[derive(Debug)]
pub(super) struct Barrier {
    n_members: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
}

/// A member has panicked.
#[derive(Debug)]
pub(super) struct Broken;

#[derive(Debug)]
struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Mailbox {
    /// Grows by one with each order; the last bit of news a spinning thread looks at.
    orders: AtomicU64,
    order: Mutex<Option<Order>>,
    closed: AtomicBool,
}

#[derive(Clone)]
struct Order {
    job: Arc<dyn Job>,
    member: usize,
    unfinished: Arc<AtomicUsize>,
}

/// Looks at a flag before a thread sleeps or gives way: some tens of microseconds.
const SPINS: u32 = 1_500;

// === impl Threads ===

impl Threads {
    /// Threads for jobs of `n_members`, the caller among them.
    pub(super) fn new(n_members: usize) -> std::io::Result<Self> {
        let workers = (1..n_members).map(Worker::start).collect::<std::io::Result<_>>()?;
        Ok(Self { workers, busy: Mutex::new(()) })
    }

    /// The threads, unless another caller has them.
    pub(super) fn claim(&self) -> Option<Claim<'_>> {
        let busy = match self.busy.try_lock() {
            Ok(busy) => busy,
            // Guards nothing: a panic under it left nothing half done.
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        (!self.workers.is_empty()).then_some(Claim { threads: self, _busy: busy })
    }
}

impl Claim<'_> {
    /// Members of a job, the caller among them.
    pub(super) fn n_members(&self) -> usize {
        self.threads.workers.len() + 1
    }

    /// Runs all parts of a job; returns when the last one has ended.
    pub(super) fn run(&self, job: &Arc<impl Job + 'static>) {
        let unfinished = Arc::new(AtomicUsize::new(self.threads.workers.len()));
        for (index, worker) in self.threads.workers.iter().enumerate() {
            let job: Arc<dyn Job> = Arc::clone(job) as Arc<dyn Job>;
            worker.post(Order { job, member: index + 1, unfinished: Arc::clone(&unfinished) });
        }
        run_part(&**job, 0);
        wait_until(|| unfinished.load(Ordering::Acquire) == 0);
    }
}

fn run_part(job: &dyn Job, member: usize) {
    if catch_unwind(AssertUnwindSafe(|| job.run(member))).is_err() {
        job.give_up();
    }
}

/// Spins, then gives way to whoever else wants the core.
fn wait_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

// === impl Worker ===

impl Worker {
    fn start(index: usize) -> std::io::Result<Self> {
        let mailbox = Arc::new(Mailbox::default());
        let own = Arc::clone(&mailbox);
        let handle = std::thread::Builder::new().name(format!("encoder-{index}")).spawn(move || own.serve())?;
        Ok(Self { mailbox, thread: handle.thread().clone(), handle: Some(handle) })
    }

    fn post(&self, order: Order) {
        *self.mailbox.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.mailbox.orders.fetch_add(1, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.mailbox.closed.store(true, Ordering::Release);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // It ends by itself now; a panic in it was told of when it happened.
            drop(handle.join());
        }
    }
}

impl Mailbox {
    fn serve(&self) {
        let mut seen = 0;
        while self.wait(seen) {
            seen = self.orders.load(Ordering::Acquire);
            let order = self.order.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Order { job, member, unfinished }) = order {
                run_part(&*job, member);
                // The job's memory goes back before the caller goes on.
                drop(job);
                unfinished.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Until there is a new order (true) or the end of all (false).
    fn wait(&self, seen: u64) -> bool {
        let mut spins = 0;
        loop {
            if self.closed.load(Ordering::Acquire) {
                return false;
            }
            if self.orders.load(Ordering::Acquire) != seen {
                return true;
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::park();
            }
        }
    }
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order").field("member", &self.member).finish_non_exhaustive()
    }
}

// === impl Barrier ===

impl Barrier {
    pub(super) fn new(n_members: usize) -> Self {
        Self { n_members, arrived: AtomicUsize::new(0), round: AtomicUsize::new(0), broken: AtomicBool::new(false) }
    }

    /// Waits for all members.
    ///
    /// # Errors
    /// When one of them will not come.
    pub(super) fn wait(&self) -> Result<(), Broken> {
        if self.n_members > 1 {
            let round = self.round.load(Ordering::Acquire);
            if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.n_members {
                self.arrived.store(0, Ordering::Relaxed);
                self.round.fetch_add(1, Ordering::Release);
            } else {
                wait_until(|| self.round.load(Ordering::Acquire) != round || self.broken.load(Ordering::Acquire));
            }
        }
        if self.broken.load(Ordering::Acquire) { Err(Broken) } else { Ok(()) }
    }

    /// Nobody waits any more.
    pub(super) fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count {
        barrier: Barrier,
        /// What each member saw of the others after each round.
        rounds: Vec<AtomicUsize>,
        panics: Option<usize>,
    }

    impl Count {
        fn new(n: usize, panics: Option<usize>) -> Arc<Self> {
            let rounds = (0..200).map(|_| AtomicUsize::new(0)).collect();
            Arc::new(Self { barrier: Barrier::new(n), rounds, panics })
        }
    }

    impl Job for Count {
        fn run(&self, member: usize) {
            for (at, round) in self.rounds.iter().enumerate() {
                assert!(!(at == 50 && self.panics == Some(member)), "as the test wants");
                round.fetch_add(1, Ordering::Relaxed);
                if self.barrier.wait().is_err() {
                    return;
                }
                assert_eq!(round.load(Ordering::Relaxed), self.barrier.n_members);
            }
        }

        fn give_up(&self) {
            self.barrier.give_up();
        }
    }

    #[test]
    fn members_meet_in_every_round_of_every_job() {
        let threads = Threads::new(3).unwrap();
        for _ in 0..20 {
            let job = Count::new(3, None);
            let claim = threads.claim().unwrap();
            assert!(threads.claim().is_none(), "one job at a time");
            claim.run(&job);
            assert!(job.rounds.iter().all(|round| round.load(Ordering::Relaxed) == 3));
        }
    }

    #[test]
    fn a_panic_frees_the_others_and_the_threads_live_on() {
        let threads = Threads::new(2).unwrap();
        for member in [0, 1] {
            let job = Count::new(2, Some(member));
            threads.claim().unwrap().run(&job);
            assert!(job.barrier.broken.load(Ordering::Acquire));
        }
        let job = Count::new(2, None);
        threads.claim().unwrap().run(&job);
        assert!(job.rounds.iter().all(|round| round.load(Ordering::Relaxed) == 2));
    }

    #[test]
    fn one_thread_has_no_helpers() {
        assert!(Threads::new(1).unwrap().claim().is_none());
    }
}
