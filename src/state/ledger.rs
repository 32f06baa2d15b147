//! Accounts, sessions and awaited outcomes in this process: all there is of the state, or what stands in for a shared
//! store that is away.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;

use super::account::{BadAnswer, Budget, Nanos, Rate, Session, nanos};
use super::pending::{Booking, Outline, Pending, spent};
use crate::domain::{OutcomeReport, Priority};
use crate::policy::{KeyDigest, Unreported};
use crate::recent::Recent;

/// Memory of this process.
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: Mutex<HashMap<String, Account>>,
    sessions: Recent<String, (Session, u64)>,
    bad: Recent<String, (BadAnswer, u64)>,
    /// By the digest of the decision's id: ids of somebody else's making may be long.
    pending: Recent<KeyDigest, Pending>,
    outlines: Cache<Arc<Outline>, Arc<Outline>>,
}

/// How much of a budget this process may book by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// All of it: nobody else books.
    Whole,
    /// An equal part, among so many, of what the shared store was last known to have left.
    Among(u32),
}

#[derive(Debug)]
struct Account {
    tokens: f64,
    /// When tokens were last counted, Unix milliseconds; `None`: never, the bucket is full.
    counted_ms: Option<u64>,
    window: u64,
    window_ms: u64,
    /// Spent and reserved in the window, by this process alone.
    booked: Nanos,
    /// Spent and reserved in the window by all, as the shared store last said.
    known: Nanos,
    /// Reservations that end, the earliest first.
    ending: BinaryHeap<Reverse<(u64, KeyDigest)>>,
}

/// Sessions kept: about 30 MB.
const MAX_SESSIONS: usize = 100_000;
/// Decisions whose outcomes are awaited: about 30 MB.
const MAX_PENDING: usize = 200_000;
/// Outlines of those; one that is crowded out is kept once more for the decisions that come.
const MAX_OUTLINES: usize = 2_000;
/// Reservations of one account that can be released; older ones are charged.
const MAX_ENDING: usize = 50_000;

// === impl Ledger ===

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            accounts: Mutex::default(),
            sessions: Recent::new(MAX_SESSIONS),
            bad: Recent::new(MAX_SESSIONS),
            pending: Recent::new(MAX_PENDING),
            outlines: Cache::new(MAX_OUTLINES),
        }
    }

    /// Takes one request out of the account's rate; the time to wait where there is none.
    pub(super) fn admit(&self, account: &str, rate: Rate, priority: Priority, now_ms: u64) -> Result<(), Duration> {
        let mut accounts = self.accounts();
        let account = entry(&mut accounts, account);
        let passed = account.counted_ms.map(|counted| now_ms.saturating_sub(counted));
        let earned = passed.map_or(f64::INFINITY, |passed| passed as f64 * 1e-3 * rate.per_second);
        account.tokens = (account.tokens + earned).min(rate.burst);
        // A clock that was set back earns nothing until it has caught up.
        account.counted_ms = Some(account.counted_ms.map_or(now_ms, |counted| counted.max(now_ms)));
        let needed = rate.needed(priority);
        if account.tokens >= needed {
            account.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((needed - account.tokens) / rate.per_second))
    }

    /// What is spent and reserved in the budget's window, as far as this process knows.
    pub(super) fn booked(&self, account: &str, budget: &Budget, now_ms: u64) -> Nanos {
        let mut accounts = self.accounts();
        let account = entry(&mut accounts, account);
        self.turn(account, budget, now_ms);
        account.booked + account.known
    }

    /// Reserves a decision's cost and keeps it until its outcome; false: that would be more than the budget.
    pub(super) fn book(&self, booking: &Booking<'_>, part: Part, now_ms: u64) -> bool {
        let mut pending = booking.pending.clone();
        if let Some(budget) = &booking.budget {
            let mut accounts = self.accounts();
            let account = entry(&mut accounts, &pending.outline.account);
            self.turn(account, budget, now_ms);
            let room = budget.hard.map(|hard| match part {
                Part::Whole => hard,
                Part::Among(replicas) => (hard - account.known).max(0) / Nanos::from(replicas.max(1)),
            });
            if room.is_some_and(|room| account.booked + pending.reserved > room) {
                return false;
            }
            account.booked += pending.reserved;
            pending.window = account.window;
            if budget.unreported == Unreported::Release && account.ending.len() < MAX_ENDING {
                let ends = now_ms.saturating_add(u64::try_from(budget.reserve.as_millis()).unwrap_or(u64::MAX));
                account.ending.push(Reverse((ends, KeyDigest::of(booking.decision_id))));
            }
        }
        self.keep(booking, pending, now_ms);
        true
    }

    /// Keeps a decision until its outcome, and its session.
    pub(super) fn keep(&self, booking: &Booking<'_>, mut pending: Pending, now_ms: u64) {
        if let (Some((key, _)), Some((session, seconds))) = (pending.session.as_deref(), &booking.session) {
            self.sessions.insert(key.clone(), (session.clone(), ends_ms(now_ms, *seconds)));
        }
        match self.outlines.get(&pending.outline) {
            Some(kept) => pending.outline = kept,
            None => self.outlines.insert(Arc::clone(&pending.outline), Arc::clone(&pending.outline)),
        }
        self.pending.insert(KeyDigest::of(booking.decision_id), pending);
    }

    /// What is kept of a decision.
    pub(super) fn pending(&self, decision_id: &str) -> Option<Pending> {
        self.pending.get(&KeyDigest::of(decision_id))
    }

    /// Puts what was spent in the place of what was reserved; further answers to the same decision are added. Gives
    /// what is known of the decision.
    pub(super) fn settle(&self, report: &OutcomeReport, now_ms: u64) -> Option<Pending> {
        let mut accounts = self.accounts();
        // Under the lock of accounts, so that two outcomes do not both take the reservation.
        let key = KeyDigest::of(&report.decision_id);
        let pending = self.pending.get(&key)?;
        if let Some((window_ms, _)) = pending.budget {
            let settled = Pending { reserved: 0, ..pending.clone() };
            self.pending.update(key, settled);
            let account = entry(&mut accounts, &pending.outline.account);
            let actual = spent(report).map_or(pending.reserved, nanos);
            let change = actual - pending.reserved;
            let current = account.window_ms == window_ms && account.window == now_ms / window_ms;
            let same = current && account.window == pending.window;
            // Of what was reserved before the window turned only the excess is news.
            account.booked += if same { change } else { change.max(0) };
        }
        Some(pending)
    }

    /// The reservation was settled elsewhere.
    pub(super) fn settled(&self, decision_id: &str) {
        let key = KeyDigest::of(decision_id);
        if let Some(pending) = self.pending.get(&key).filter(|pending| pending.reserved > 0) {
            self.pending.update(key, Pending { reserved: 0, ..pending });
        }
    }

    /// Says that a session's answer was bad.
    pub(super) fn mark_bad(&self, session: &str, bad: BadAnswer, seconds: u32) {
        self.bad.insert(session.to_owned(), (bad, ends_ms(bad.at_ms, seconds)));
    }

    /// What is kept of a session.
    pub(super) fn session(&self, key: &str, now_ms: u64) -> (Option<Session>, Option<BadAnswer>) {
        let session = self.sessions.get(key).filter(|(_, ends)| now_ms < *ends).map(|(session, _)| session);
        (session, self.bad.get(key).filter(|(_, ends)| now_ms < *ends).map(|(bad, _)| bad))
    }

    /// What the shared store says is booked in `window`, with what this process told it.
    pub(super) fn learn(&self, name: &str, (window_ms, window): (u64, u64), known: Nanos) {
        let mut accounts = self.accounts();
        let account = entry(&mut accounts, name);
        if (account.window_ms, account.window) != (window_ms, window) {
            (account.window_ms, account.window, account.booked) = (window_ms, window, 0);
        }
        account.known = known;
    }

    /// What this process booked that the shared store was not told: account, window length, window, amount.
    pub(super) fn untold(&self) -> Vec<(String, u64, u64, Nanos)> {
        let accounts = self.accounts();
        let untold = accounts.iter().filter(|(_, account)| account.booked != 0);
        untold.map(|(name, account)| (name.clone(), account.window_ms, account.window, account.booked)).collect()
    }

    /// The shared store was told.
    pub(super) fn told(&self, name: &str, window: u64, amount: Nanos, known: Nanos) {
        let mut accounts = self.accounts();
        let account = entry(&mut accounts, name);
        if account.window == window {
            account.booked -= amount;
            account.known = known;
        }
    }

    /// Accounts with a budget: name, window length.
    pub(super) fn budgeted(&self) -> Vec<(String, u64)> {
        let accounts = self.accounts();
        let budgeted = accounts.iter().filter(|(_, account)| account.window_ms > 0);
        budgeted.map(|(name, account)| (name.clone(), account.window_ms)).collect()
    }

    /// Begins a new window where it is time, and releases reservations that have ended.
    fn turn(&self, account: &mut Account, budget: &Budget, now_ms: u64) {
        let window = budget.window_at(now_ms);
        if account.window_ms != budget.window_ms() || window > account.window {
            (account.window_ms, account.window) = (budget.window_ms(), window);
            (account.booked, account.known) = (0, 0);
        }
        while let Some(Reverse((ends, _))) = account.ending.peek()
            && *ends <= now_ms
        {
            let Some(Reverse((_, key))) = account.ending.pop() else { break };
            if let Some(pending) = self.pending.get(&key).filter(|pending| pending.reserved > 0) {
                if pending.window == account.window {
                    account.booked -= pending.reserved;
                }
                self.pending.update(key, Pending { reserved: 0, ..pending });
            }
        }
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<String, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry<'a>(accounts: &'a mut HashMap<String, Account>, name: &str) -> &'a mut Account {
    accounts.entry(name.to_owned()).or_insert_with(|| Account {
        tokens: 0.0,
        counted_ms: None,
        window: 0,
        window_ms: 0,
        booked: 0,
        known: 0,
        ending: BinaryHeap::new(),
    })
}

fn ends_ms(from_ms: u64, seconds: u32) -> u64 {
    from_ms.saturating_add(u64::from(seconds) * 1_000)
}
