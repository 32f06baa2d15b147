//! Bounded memory of what was written last.
//!
//! A cache keeps what is asked for often, and lets what is new prove itself: one that has filled up with decisions keeps
//! those and forgets the next ones within seconds. What waits for something to come (an outcome, the same report again,
//! the session's next request) is asked for once or never, and has to stay for as long as there is room, the newest
//! first. This is that: the oldest goes.

use std::borrow::Borrow;
use std::hash::Hash;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter};

/// About the last so many entries, by when they were written; the last nine tenths of them for sure.
#[derive(Debug)]
pub struct Recent<Key, Value> {
    entries: Cache<Key, Value>,
}

// === impl Recent ===

impl<Key: Eq + Hash, Value: Clone> Recent<Key, Value> {
    /// Room for `capacity` entries, taken as they come.
    pub fn new(capacity: usize) -> Self {
        // No entry is kept for being asked for, but for one in each shard, and no traces of entries that went.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(capacity)
            .weight_capacity(capacity as u64)
            .hot_allocation(0.0)
            .ghost_allocation(0.0)
            .build()
            .unwrap_or_else(|error| unreachable!("all that must be said is said: {error:?}"));
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self { entries: Cache::with_options(options, UnitWeighter, hasher, lifecycle) }
    }

    /// What was written last under `key`, as long as it is kept. To ask keeps it no longer.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<Value>
    where
        Key: Borrow<Q>,
    {
        self.entries.peek(key)
    }

    /// Writes an entry as the newest. Who asks for it while it is written again may find nothing.
    pub fn insert(&self, key: Key, value: Value) {
        // Written over it would stay as old as it is.
        self.entries.remove(&key);
        self.entries.insert(key, value);
    }

    /// Writes over an entry that is still kept, which gets no younger.
    pub fn update(&self, key: Key, value: Value) {
        // One that has gone meanwhile is not wanted any more.
        drop(self.entries.replace(key, value, true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u32 = 20_000;

    fn kept(recent: &Recent<u32, u32>, of: std::ops::Range<u32>) -> usize {
        of.filter(|key| recent.get(key).is_some()).count()
    }

    #[test]
    fn the_newest_are_kept_whatever_was_asked_for() {
        let recent = Recent::new(CAPACITY as usize);
        for key in 0..3 * CAPACITY {
            recent.insert(key, key);
            // The first ones are asked for all the time, and some change.
            assert!(recent.get(&(key % 100)).is_none_or(|value| value == key % 100));
            if key % 3 == 0 {
                recent.update(key, key);
            }
        }
        let newest = CAPACITY * 9 / 10;
        assert_eq!(kept(&recent, 3 * CAPACITY - newest..3 * CAPACITY), newest as usize);
        assert!(kept(&recent, 0..CAPACITY) < CAPACITY as usize / 20);
        assert!(kept(&recent, 0..3 * CAPACITY) <= CAPACITY as usize);
    }

    #[test]
    fn what_is_written_again_is_new_and_what_is_changed_is_not() {
        let recent = Recent::new(CAPACITY as usize);
        for key in 0..CAPACITY / 2 {
            recent.insert(key, key);
        }
        let again = |of: std::ops::Range<u32>| of.for_each(|key| recent.insert(key, 7));
        let changed = |of: std::ops::Range<u32>| of.for_each(|key| recent.update(key, 8));
        again(0..1_000);
        changed(1_000..2_000);
        changed(CAPACITY..CAPACITY + 1);
        assert_eq!([0, 1_000, CAPACITY].map(|key| recent.get(&key)), [Some(7), Some(8), None]);
        for key in CAPACITY..CAPACITY * 5 / 2 {
            recent.insert(key, key);
            if key % 5_000 == 0 {
                again(0..1_000);
                changed(1_000..2_000);
            }
        }
        assert_eq!(kept(&recent, 0..1_000), 1_000);
        assert!(kept(&recent, 1_000..2_000) < CAPACITY as usize / 20);
    }
}
