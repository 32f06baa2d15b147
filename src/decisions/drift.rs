//! Whether the queries of today look like those of before: the population stability index of the classifier's signals.
//!
//! PSI = sum over bins of (p - q) ln(p / q), with half a row added to every bin. Two samples of one population differ by
//! about (bins - 1) (1/n + 1/m) by chance alone; by custom 0.1 is worth a look and 0.25 is another population.

use std::sync::{Mutex, PoisonError};

use crate::domain::Classification;

/// How often each kind of signal occurred.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SignalCounts {
    intents: Vec<u64>,
    tiers: [u64; 3],
    difficulties: [u64; DIFFICULTY_BINS],
    total: u64,
}

/// The stability of each signal, by its name.
pub type Stability = [(&'static str, f64); 3];

/// Compares the last window of decisions with the first one since the start.
#[derive(Debug)]
pub struct DriftMonitor {
    window: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    reference: Option<SignalCounts>,
    current: SignalCounts,
}

const DIFFICULTY_BINS: usize = 10;

// === impl SignalCounts ===

impl SignalCounts {
    /// Counts one query: its most probable intent, its most probable tier, the tenth of the scale its difficulty is in.
    pub fn add(&mut self, intents: &[f32], tiers: [f32; 3], difficulty: f64) {
        let top = |values: &[f32]| {
            let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            best.map_or(0, |(index, _)| index)
        };
        let intent = top(intents);
        if self.intents.len() <= intent {
            self.intents.resize(intent + 1, 0);
        }
        let bin = ((difficulty * DIFFICULTY_BINS as f64) as usize).min(DIFFICULTY_BINS - 1);
        let tier = top(&tiers);
        let slots = [self.intents.get_mut(intent), self.tiers.get_mut(tier), self.difficulties.get_mut(bin)];
        for count in slots.into_iter().flatten() {
            *count += 1;
        }
        self.total += 1;
    }

    /// How many queries were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How far `self` is from `reference`; `None` where one of them is empty.
    pub fn stability(&self, reference: &Self) -> Option<Stability> {
        Some([
            ("intent", psi(&reference.intents, &self.intents)?),
            ("tier", psi(&reference.tiers, &self.tiers)?),
            ("difficulty", psi(&reference.difficulties, &self.difficulties)?),
        ])
    }
}

/// The population stability index of two counts over the same bins; missing bins are empty. `None` of nothing.
pub fn psi(reference: &[u64], current: &[u64]) -> Option<f64> {
    let bins = reference.len().max(current.len());
    let sum = |counts: &[u64]| counts.iter().sum::<u64>() as f64 + 0.5 * bins as f64;
    let share = |counts: &[u64], bin: usize| (counts.get(bin).copied().unwrap_or_default() as f64 + 0.5) / sum(counts);
    let empty = |counts: &[u64]| counts.iter().all(|count| *count == 0);
    if empty(reference) || empty(current) {
        return None;
    }
    let terms = (0..bins).map(|bin| {
        let (q, p) = (share(reference, bin), share(current, bin));
        (p - q) * (p / q).ln()
    });
    Some(terms.sum())
}

// === impl DriftMonitor ===

impl DriftMonitor {
    /// Compares windows of so many decisions.
    pub fn new(window: u64) -> Self {
        Self { window, state: Mutex::default() }
    }

    /// Counts a classification; at the end of every window but the first, how far it is from the first.
    pub fn record(&self, classification: &Classification) -> Option<Stability> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (intents, difficulty) = (classification.intent.probabilities(), classification.difficulty.value());
        state.current.add(intents, classification.tiers, difficulty);
        if state.current.total < self.window {
            return None;
        }
        let full = std::mem::take(&mut state.current);
        match &state.reference {
            Some(reference) => full.stability(reference),
            None => {
                state.reference = Some(full);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_the_textbook_one_and_small_by_chance() {
        assert_eq!(psi(&[], &[1]), None);
        assert!(psi(&[500, 500], &[5_000, 5_000]).unwrap() < 1e-6);
        // 0.5 ln(0.75/0.25) from 25:75 to 75:25, twice 0.5 * 1.0986.
        let far = psi(&[25_000, 75_000], &[75_000, 25_000]).unwrap();
        assert!((far - 1.0986).abs() < 1e-3, "{far}");
        assert!(psi(&[10, 10], &[20]).unwrap() > 0.25, "a bin that is gone");
    }

    #[test]
    fn windows_are_compared_with_the_first() {
        let monitor = DriftMonitor::new(100);
        let classification = |difficulty: f64, tiers: [f32; 3]| {
            let labels: std::sync::Arc<[std::sync::Arc<str>]> = ["a", "b"].map(std::sync::Arc::from).into();
            Classification {
                intent: crate::domain::Distribution::new(labels, vec![0.75, 0.25]).unwrap(),
                difficulty: crate::domain::Probability::saturating(difficulty),
                tiers,
                tier_control: crate::domain::TierControl::default(),
                out_of_scope: crate::domain::Probability::ZERO,
                tokens_used: 1,
                tokens_cut: 0,
            }
        };
        let run = |difficulty: f64, tiers: [f32; 3]| {
            (0..100).filter_map(|_| monitor.record(&classification(difficulty, tiers))).next_back()
        };
        let (easy, hard) = ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]);
        assert_eq!(run(0.15, easy), None, "the first window is what the others are compared with");
        let same = run(0.15, easy).unwrap();
        assert!(same.iter().all(|(_, psi)| *psi < 1e-9), "{same:?}");
        let moved = run(0.95, hard).unwrap();
        assert!(moved[0].1 < 1e-9 && moved[1].1 > 0.25 && moved[2].1 > 0.25, "{moved:?}");
    }
}
