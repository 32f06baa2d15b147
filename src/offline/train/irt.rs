//! Item response theory: model abilities and item difficulties on one scale, from graded answers.
//!
//! The one-parameter model (Rasch 1960): `P(model m answers item i well) = sigmoid(ability_m - difficulty_i)`, with
//! normal priors so that an item everybody solves stays finite. Fitted by alternating Newton steps. The scale is
//! anchored at a reference model with ability 0, so `sigmoid(difficulty)` is the probability that it fails.

use std::collections::BTreeMap;

use crate::artifact::ModelAbility;
use crate::offline::dataset::Row;
use crate::offline::evaluate::models::{REFERENCE_WEAK, canonical_name};

/// Ability 0 on the scale.
pub const REFERENCE_MODEL: &str = REFERENCE_WEAK;

/// Standard deviation of the prior on difficulties, in logits.
const DIFFICULTY_SD: f32 = 2.0;
/// Standard deviation of the prior on abilities, in logits.
const ABILITY_SD: f32 = 2.0;
const N_ROUNDS: usize = 60;
/// Largest step of one Newton update, in logits.
const MAX_STEP: f32 = 1.0;

/// The fitted scale.
#[derive(Clone, Debug, Default)]
pub struct Scale {
    /// Ability of each model, by canonical name.
    pub abilities: BTreeMap<String, f32>,
    /// The same abilities with their errors, as a manifest keeps them.
    pub measured: BTreeMap<String, ModelAbility>,
    /// Difficulty of each row that has outcomes, by row index.
    pub difficulties: BTreeMap<usize, f32>,
}

/// One graded answer.
#[derive(Clone, Copy, Debug)]
struct Answer {
    item: usize,
    model: usize,
    score: f32,
}

/// Puts every graded answer of `rows` on one scale. Empty when no row has outcomes.
pub fn fit(rows: &[&Row]) -> Scale {
    let mut models: BTreeMap<String, usize> = BTreeMap::new();
    let mut answers = Vec::new();
    for (item, row) in rows.iter().enumerate() {
        for (name, score) in &row.outcomes {
            let Some(score) = score else { continue };
            let next = models.len();
            let model = *models.entry(canonical_name(name)).or_insert(next);
            answers.push(Answer { item, model, score: score.clamp(0.0, 1.0) });
        }
    }
    if answers.is_empty() {
        return Scale::default();
    }
    let (mut abilities, mut difficulties) = (vec![0.0_f32; models.len()], vec![0.0_f32; rows.len()]);
    for _ in 0..N_ROUNDS {
        newton_step(&answers, &mut difficulties, DIFFICULTY_SD, |answer, difficulties| {
            (answer.item, sigmoid(abilities[answer.model] - difficulties[answer.item]), -1.0)
        });
        newton_step(&answers, &mut abilities, ABILITY_SD, |answer, abilities| {
            (answer.model, sigmoid(abilities[answer.model] - difficulties[answer.item]), 1.0)
        });
    }
    let anchor = models.get(REFERENCE_MODEL).map_or_else(|| mean(&abilities), |&index| abilities[index]);
    let evidence = evidence(&answers, &abilities, &difficulties);
    let answered: std::collections::BTreeSet<usize> = answers.iter().map(|answer| answer.item).collect();
    let measure = |(name, &index): (&String, &usize)| {
        let (curvature, answers): (f32, u64) = evidence[index];
        // Three decimals: the error is never smaller.
        let rounded = |value: f32| (f64::from(value) * 1_000.0).round() / 1_000.0;
        let (ability, standard_error) = (rounded(abilities[index] - anchor), rounded(1.0 / curvature.sqrt()));
        (name.clone(), ModelAbility { ability, standard_error, answers })
    };
    Scale {
        measured: models.iter().map(measure).collect(),
        abilities: models.into_iter().map(|(name, index)| (name, abilities[index] - anchor)).collect(),
        difficulties: answered.into_iter().map(|item| (item, difficulties[item] - anchor)).collect(),
    }
}

/// Moves every parameter towards the maximum of its posterior, given the others.
///
/// `predict` gives the parameter's index, the predicted score, and the sign of its influence.
fn newton_step(
    answers: &[Answer],
    parameters: &mut [f32],
    prior_sd: f32,
    predict: impl Fn(&Answer, &[f32]) -> (usize, f32, f32),
) {
    let precision = 1.0 / (prior_sd * prior_sd);
    let mut gradients: Vec<f32> = parameters.iter().map(|value| -value * precision).collect();
    let mut curvatures = vec![precision; parameters.len()];
    for answer in answers {
        let (index, predicted, sign) = predict(answer, parameters);
        gradients[index] += sign * (answer.score - predicted);
        curvatures[index] += predicted * (1.0 - predicted);
    }
    for ((value, gradient), curvature) in parameters.iter_mut().zip(gradients).zip(curvatures) {
        *value += (gradient / curvature).clamp(-MAX_STEP, MAX_STEP);
    }
}

/// Curvature of the log posterior in each model's ability, the difficulties held fixed; and its number of answers.
fn evidence(answers: &[Answer], abilities: &[f32], difficulties: &[f32]) -> Vec<(f32, u64)> {
    let mut evidence = vec![(1.0 / (ABILITY_SD * ABILITY_SD), 0); abilities.len()];
    for answer in answers {
        let p = sigmoid(abilities[answer.model] - difficulties[answer.item]);
        let (curvature, n) = &mut evidence[answer.model];
        *curvature += p * (1.0 - p);
        *n += 1;
    }
    evidence
}

fn sigmoid(x: f32) -> f32 {
    crate::heads::sigmoid(x)
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn recovers_a_known_scale() {
        let mut rng = StdRng::seed_from_u64(7);
        let abilities = [(REFERENCE_MODEL, 0.0_f32), ("weak", -1.0), ("strong", 1.5), ("mid", 0.5), ("other", 0.2)];
        let truth: Vec<f32> = (0..600).map(|_| rng.random_range(-2.0..2.0)).collect();
        let rows: Vec<Row> = truth
            .iter()
            .enumerate()
            .map(|(index, difficulty)| {
                let outcomes = abilities
                    .iter()
                    .map(|(name, ability)| {
                        let solved = rng.random::<f32>() < sigmoid(ability - difficulty);
                        ((*name).to_owned(), Some(f32::from(u8::from(solved))))
                    })
                    .collect();
                Row {
                    id: format!("t/{index}"),
                    text: String::new(),
                    intent: None,
                    soft: BTreeMap::new(),
                    tier: None,
                    task: None,
                    outcomes,
                    split: None,
                    judged: false,
                }
            })
            .collect();
        let scale = fit(&rows.iter().collect::<Vec<_>>());
        for (name, ability) in abilities {
            assert!((scale.abilities[name] - ability).abs() < 0.45, "{name}: {} for {ability}", scale.abilities[name]);
        }
        let strong = scale.measured["strong"];
        assert!((strong.ability - f64::from(scale.abilities["strong"])).abs() < 1e-3 && strong.answers == 600);
        // 600 answers of at most a quarter of information each, and of little less than an eighth on average.
        assert!((0.08..0.13).contains(&strong.standard_error), "{strong:?}");
        let easy = mean(&(0..600).filter(|i| truth[*i] < -1.0).map(|i| scale.difficulties[&i]).collect::<Vec<_>>());
        let hard = mean(&(0..600).filter(|i| truth[*i] > 1.0).map(|i| scale.difficulties[&i]).collect::<Vec<_>>());
        assert!(hard - easy > 1.5, "{easy} {hard}");
    }
}
