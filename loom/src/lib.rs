//! The encoder's threads under loom: every order in which two threads can meet, and every value that they may see.
//!
//! `cargo test --release --manifest-path loom/Cargo.toml`. The code is that of `src/encoder/int8/threads.rs`; `build.rs` swaps
//! the primitives. The models are written once and hold for the real code; each mutant breaks one of them.

/// One copy of the code and the models over it.
macro_rules! copy {
    ($name:ident) => {
        /// A copy of the code, and what must hold of it.
        #[allow(dead_code, reason = "not every model uses everything")]
        pub mod $name {
            mod threads {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
            }

            use std::sync::Arc;

            use loom::cell::UnsafeCell;
            use threads::{Barrier, Job, Threads};

            /// Each member writes its own place, all meet, each reads all places; again and again.
            struct Rounds {
                barrier: Barrier,
                places: Vec<[UnsafeCell<usize>; 2]>,
                /// Written by each member as the last thing it does.
                ends: [UnsafeCell<usize>; 2],
                panics: Option<usize>,
            }

            // Places are guarded by the barrier, which is what is tested.
            unsafe impl Send for Rounds {}
            unsafe impl Sync for Rounds {}

            impl Rounds {
                fn new(rounds: usize, panics: Option<usize>) -> Arc<Self> {
                    let places = (0..rounds).map(|_| [UnsafeCell::new(0), UnsafeCell::new(0)]).collect();
                    let ends = [UnsafeCell::new(0), UnsafeCell::new(0)];
                    Arc::new(Self { barrier: Barrier::new(2), places, ends, panics })
                }

                /// What stands in the places, read by the one that handed the job out.
                fn written(&self) -> Vec<usize> {
                    let read = |place: &UnsafeCell<usize>| place.with(|value| unsafe { *value });
                    self.places.iter().flatten().chain(&self.ends).map(read).collect()
                }
            }

            impl Job for Rounds {
                fn run(&self, member: usize) {
                    if self.panics == Some(member) {
                        // No message: hooks print it for each of the orders.
                        std::panic::resume_unwind(Box::new("as the model wants"));
                    }
                    for places in &self.places {
                        places[member].with_mut(|value| unsafe { *value = member + 1 });
                        if self.barrier.wait().is_err() {
                            return;
                        }
                        let other = places[1 - member].with(|value| unsafe { *value });
                        assert_eq!(other, 2 - member, "the other one's work is seen after the barrier");
                    }
                    self.ends[member].with_mut(|value| unsafe { *value = member + 3 });
                }

                fn give_up(&self) {
                    self.barrier.give_up();
                }
            }

            /// Two threads meet twice.
            pub fn members_meet() {
                loom::model(|| {
                    let job = Rounds::new(2, None);
                    let other = Arc::clone(&job);
                    let thread = loom::thread::spawn(move || other.run(1));
                    job.run(0);
                    thread.join().unwrap();
                });
            }

            /// Two jobs, one after the other, then the end: all parts done and seen, all memory given back, no thread left.
            pub fn jobs_end_and_are_seen() {
                loom::model(|| {
                    let threads = Threads::new(2).unwrap();
                    for _ in 0..2 {
                        let job = Rounds::new(1, None);
                        let claim = threads.claim().unwrap();
                        claim.run(&job);
                        assert_eq!(job.written(), [1, 2, 3, 4]);
                        assert_eq!(Arc::strong_count(&job), 1, "nobody holds the job when it has ended");
                    }
                });
            }

            /// A member panics; the other one is let go, and the next job is done.
            pub fn a_panic_lets_the_other_go(member: usize) {
                loom::model(move || {
                    let threads = Threads::new(2).unwrap();
                    let claim = threads.claim().unwrap();
                    let job = Rounds::new(1, Some(member));
                    claim.run(&job);
                    assert!(job.barrier.wait().is_err(), "who comes later does not wait");
                    drop(claim);
                    let job = Rounds::new(1, None);
                    threads.claim().unwrap().run(&job);
                    assert_eq!(job.written(), [1, 2, 3, 4]);
                });
            }

            /// Two callers at once: a claim is one caller's, the other is told and works alone.
            pub fn one_caller_has_the_threads() {
                // Three threads have too many orders to see all: those with at most three interruptions.
                let mut model = loom::model::Builder::new();
                model.preemption_bound = Some(3);
                model.check(|| {
                    let threads = Arc::new(Threads::new(2).unwrap());
                    let other = Arc::clone(&threads);
                    let caller = |threads: &Threads| {
                        let Some(claim) = threads.claim() else { return };
                        let job = Rounds::new(1, None);
                        claim.run(&job);
                        assert_eq!(job.written(), [1, 2, 3, 4]);
                    };
                    let thread = loom::thread::spawn(move || caller(&other));
                    caller(&threads);
                    thread.join().unwrap();
                });
            }
        }
    };
}

copy!(real);
copy!(no_wake);
copy!(early_news);
copy!(relaxed_end);
copy!(relaxed_arrival);
copy!(late_reset);
