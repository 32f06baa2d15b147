//! What a pass will cost: a line through the passes measured so far, old ones fading.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Learns `time = fixed + per_token * tokens` from passes.
#[derive(Debug, Default)]
pub(super) struct CostModel {
    sums: Mutex<Sums>,
}

/// Sums over past passes, each weighted by how recent it is.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    weight: f64,
    tokens: f64,
    tokens_squared: f64,
    nanos: f64,
    tokens_nanos: f64,
    /// The last pass was an outlier.
    surprised: bool,
}

/// Share of the past that one more pass leaves: about the last sixteen count.
const FADE: f64 = 15.0 / 16.0;
/// Passes before a single one is no longer believed when it took [`OUTLIER`] times what was expected.
const SETTLED: f64 = 4.0;
/// A machine that stands still for a moment is no measure of the encoder; a second such pass in a row is believed.
const OUTLIER: f64 = 4.0;
/// What is left of an estimate after a request was refused because of it while the encoder had nothing to do: half
/// after 44 refusals.
const DOUBT: f64 = 63.0 / 64.0;

// === impl CostModel ===

impl CostModel {
    /// Time of `passes` passes over `tokens` word pieces together; zero before anything was measured.
    pub(super) fn predict(&self, passes: usize, tokens: usize) -> Duration {
        let (fixed, per_token) = self.lock().line();
        Duration::from_nanos((fixed * passes as f64 + per_token * tokens as f64) as u64)
    }

    /// Takes in a pass over `tokens` that took `took`.
    pub(super) fn learn(&self, tokens: usize, took: Duration) {
        let mut sums = self.lock();
        let (fixed, per_token) = sums.line();
        let tokens = tokens as f64;
        let mut nanos = took.as_nanos() as f64;
        let most = OUTLIER * (fixed + per_token * tokens);
        let surprising = sums.weight >= SETTLED && nanos > most;
        if surprising && !sums.surprised {
            nanos = most;
        }
        sums.surprised = surprising;
        sums.scale(FADE);
        sums.weight += 1.0;
        sums.tokens += tokens;
        sums.tokens_squared += tokens * tokens;
        sums.nanos += nanos;
        sums.tokens_nanos += tokens * nanos;
    }

    /// Lowers estimates a little. Without it an estimate that is far too high would refuse every request, and so
    /// never be corrected by a pass.
    pub(super) fn doubt(&self) {
        let mut sums = self.lock();
        sums.nanos *= DOUBT;
        sums.tokens_nanos *= DOUBT;
    }

    /// The sums are consistent between any two statements that matter, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Sums ===

impl Sums {
    fn scale(&mut self, by: f64) {
        for sum in
            [&mut self.weight, &mut self.tokens, &mut self.tokens_squared, &mut self.nanos, &mut self.tokens_nanos]
        {
            *sum *= by;
        }
    }

    /// Nanoseconds a pass and a word piece, neither below zero.
    fn line(&self) -> (f64, f64) {
        if self.weight == 0.0 || self.tokens == 0.0 {
            return (0.0, 0.0);
        }
        let (mean_tokens, mean_nanos) = (self.tokens / self.weight, self.nanos / self.weight);
        let ratio = mean_nanos / mean_tokens;
        let variance = self.tokens_squared / self.weight - mean_tokens * mean_tokens;
        // Passes that are all alike tell nothing of where the line crosses zero.
        if variance < 1e-4 * mean_tokens * mean_tokens {
            return (0.0, ratio);
        }
        let covariance = self.tokens_nanos / self.weight - mean_tokens * mean_nanos;
        let per_token = (covariance / variance).clamp(0.0, ratio);
        (mean_nanos - per_token * mean_tokens, per_token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(duration: Duration) -> f64 {
        duration.as_secs_f64() * 1e3
    }

    #[test]
    fn finds_the_line_behind_passes_of_different_lengths() {
        let model = CostModel::default();
        assert_eq!(model.predict(1, 100), Duration::ZERO, "nothing is known yet");
        for tokens in [10, 200, 50, 512, 30, 100] {
            model.learn(tokens, Duration::from_micros(500 + 20 * tokens as u64));
        }
        assert!((millis(model.predict(1, 100)) - 2.5).abs() < 0.01, "{:?}", model.predict(1, 100));
        assert!((millis(model.predict(3, 1_000)) - 21.5).abs() < 0.1, "{:?}", model.predict(3, 1_000));
    }

    #[test]
    fn follows_a_machine_that_becomes_slower_and_not_one_hiccup() {
        let model = CostModel::default();
        (0..20).for_each(|_| model.learn(100, Duration::from_millis(2)));
        model.learn(100, Duration::from_secs(3));
        assert!(model.predict(1, 100) < Duration::from_millis(3), "{:?}", model.predict(1, 100));
        (0..12).for_each(|_| model.learn(100, Duration::from_millis(40)));
        assert!(model.predict(1, 100) > Duration::from_millis(20), "{:?}", model.predict(1, 100));
    }

    #[test]
    fn doubt_ends_an_estimate_that_refuses_everything() {
        let model = CostModel::default();
        model.learn(10, Duration::from_secs(60));
        let refusals =
            (0..2_000).take_while(|_| model.predict(1, 10) > Duration::from_millis(20)).map(|_| model.doubt());
        assert!((1..700).contains(&refusals.count()));
    }

    proptest! {
        #[test]
        fn estimates_are_finite_and_grow_with_the_work(
            passes in proptest::collection::vec((1_usize..2_000, 0_u64..1_000_000_000), 1..60),
            tokens in 0_usize..10_000,
        ) {
            let model = CostModel::default();
            passes.iter().for_each(|(tokens, nanos)| model.learn(*tokens, Duration::from_nanos(*nanos)));
            let (less, more) = (model.predict(1, tokens), model.predict(2, tokens + 100));
            prop_assert!(less <= more, "{less:?} for {tokens}, {more:?} for more");
            prop_assert!(more < Duration::from_secs(3_600));
        }
    }
}
