//! What another policy would have earned, from the logs of the one that served: inverse propensities and doubly robust.
//!
//! A log shows the reward of what was done, and what was done depends on the query: the mean reward of a model in a log
//! is not what the model would earn on all queries. Where the log's choice was random with known probabilities, weighting
//! by their inverse makes the estimate unbiased; a model of the reward makes it steadier, and right even where only one
//! of the two is.

use serde::Serialize;

use super::metrics::{Bootstrap, Estimate, mean};

/// One logged decision with its reward, seen from a target policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoggedReward {
    /// What was earned, for example the answer's score.
    pub reward: f64,
    /// With what probability the logging policy chose what it chose, for this query.
    pub propensity: f64,
    /// Whether the target policy would have chosen the same.
    pub same: bool,
    /// What is predicted of the target policy's choice.
    pub predicted: f64,
}

/// The value of a target policy, by three estimators.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyValue {
    /// Logged decisions.
    pub n: usize,
    /// Share of them in which the target chooses what was chosen.
    pub overlap: f64,
    /// Mean reward of what was logged.
    pub logged: Option<Estimate>,
    /// By inverse propensity: unbiased where every choice of the target had a chance.
    pub inverse_propensity: Option<Estimate>,
    /// The same with weights that sum to one: steadier, biased a little.
    pub self_normalised: Option<Estimate>,
    /// Doubly robust: the prediction, corrected where the log knows better.
    pub doubly_robust: Option<Estimate>,
}

/// The value of the target policy that `rows` are seen from.
pub fn value(rows: &[LoggedReward], bootstrap: &Bootstrap) -> PolicyValue {
    let weight = |row: &LoggedReward| if row.same { 1.0 / row.propensity } else { 0.0 };
    let [logged, inverse_propensity, self_normalised, doubly_robust] = bootstrap.estimates(rows.len(), |drawn| {
        let over = |of: fn(&LoggedReward, f64) -> f64| {
            mean(drawn.iter().map(|row| rows.get(*row).map_or(0.0, |row| of(row, weight(row)))))
        };
        let weights = over(|_, weight| weight).filter(|sum| *sum > 0.0);
        let weighted = over(|row, weight| weight * row.reward);
        [
            over(|row, _| row.reward),
            weighted.filter(|_| weights.is_some()),
            weighted.zip(weights).map(|(weighted, weights)| weighted / weights),
            over(|row, weight| row.predicted + weight * (row.reward - row.predicted)),
        ]
    });
    let same = rows.iter().filter(|row| row.same).count();
    PolicyValue {
        n: rows.len(),
        overlap: same as f64 / rows.len().max(1) as f64,
        logged,
        inverse_propensity,
        self_normalised,
        doubly_robust,
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// A log in which hard queries mostly go to the strong model, seen from "always strong"; the true value beside it.
    ///
    /// `wrong_reward` predicts nonsense, `wrong_propensity` says 0.5 whatever the query.
    fn log(n: usize, seed: u64, wrong_reward: bool, wrong_propensity: bool) -> (Vec<LoggedReward>, f64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut rows, mut truth) = (Vec::new(), 0.0);
        for _ in 0..n {
            let z: f64 = rng.random_range(-3.0..3.0);
            let strong_chance = 0.15 + 0.7 * sigmoid(2.0 * z);
            let strong = rng.random::<f64>() < strong_chance;
            let right = |strong: bool| sigmoid(if strong { 1.5 } else { -0.5 } - z);
            let reward = f64::from(u8::from(rng.random::<f64>() < right(strong)));
            truth += right(true) / n as f64;
            let chosen = if strong { strong_chance } else { 1.0 - strong_chance };
            rows.push(LoggedReward {
                reward,
                propensity: if wrong_propensity { 0.5 } else { chosen },
                same: strong,
                predicted: if wrong_reward { 0.2 } else { right(true) },
            });
        }
        (rows, truth)
    }

    fn quick() -> Bootstrap {
        Bootstrap { n_draws: 200, ..Bootstrap::default() }
    }

    #[test]
    fn the_known_truth_is_recovered_and_the_plain_mean_is_not() {
        let (rows, truth) = log(20_000, 1, false, false);
        let found = value(&rows, &quick());
        let strong: Vec<f64> = rows.iter().filter(|row| row.same).map(|row| row.reward).collect();
        let naive = mean(strong).unwrap();
        assert!((naive - truth).abs() > 0.08, "confounded: {naive} against {truth}");
        for estimate in [found.inverse_propensity, found.self_normalised, found.doubly_robust].map(Option::unwrap) {
            assert!((estimate.value - truth).abs() < 0.02, "{estimate:?} against {truth}");
        }
        let width = |estimate: Option<Estimate>| estimate.map(|e| e.high - e.low).unwrap();
        assert!(width(found.doubly_robust) < width(found.inverse_propensity), "steadier");
        assert!((0.4..0.6).contains(&found.overlap));
    }

    #[test]
    fn one_of_the_two_models_may_be_wrong() {
        for (wrong_reward, wrong_propensity) in [(true, false), (false, true)] {
            let (rows, truth) = log(40_000, 2, wrong_reward, wrong_propensity);
            let found = value(&rows, &quick()).doubly_robust.unwrap();
            assert!((found.value - truth).abs() < 0.02, "{found:?} against {truth}");
        }
        let (rows, truth) = log(40_000, 2, true, true);
        let found = value(&rows, &quick()).doubly_robust.unwrap();
        assert!((found.value - truth).abs() > 0.05, "both wrong: {found:?} against {truth}");
    }

    #[test]
    fn intervals_cover_as_often_as_they_say() {
        let covered = (0..60).filter(|seed| {
            let (rows, truth) = log(600, 100 + seed, false, false);
            !value(&rows, &quick()).doubly_robust.unwrap().differs_from(truth)
        });
        let covered = covered.count();
        assert!(covered >= 52, "{covered} of 60 intervals of 95 % hold the truth");
    }

    #[test]
    fn without_overlap_only_the_prediction_speaks() {
        let row = LoggedReward { reward: 1.0, propensity: 1.0, same: false, predicted: 0.3 };
        let found = value(&[row; 5], &quick());
        assert_eq!((found.inverse_propensity, found.self_normalised), (None, None));
        assert!((found.doubly_robust.unwrap().value - 0.3).abs() < 1e-12);
        assert_eq!(value(&[], &quick()).logged, None);
    }
}
