//! The ability of a language model from graded answers, on the scale of a classifier's difficulty head.
//!
//! P(a good answer) = sigmoid(ability - z), where `z` is the prompt's latent difficulty as the classifier predicts it:
//! the very formula that a policy's `ability` goes into, so a new model needs a few dozen graded answers and no
//! training. The estimate is the maximum of the posterior under a wide normal prior, its error the observed
//! information there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::evaluate::models::canonical_name;
use super::gain::latent;
use super::scored::ScoredRow;

/// A prompt with the grades of one or more models' answers.
#[derive(Clone, Debug, Deserialize)]
pub struct GradedRow {
    /// Any name; told when the row is at fault.
    pub id: String,
    /// The prompt.
    pub text: String,
    /// Score of each model's answer, 0..1.
    #[serde(default)]
    pub outcomes: BTreeMap<String, Option<f64>>,
    /// Score of the answer of the one model that the caller names, 0..1.
    #[serde(default)]
    pub score: Option<f64>,
}

/// One graded answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradedAnswer {
    /// Latent difficulty of the prompt, in logits.
    pub difficulty: f64,
    /// 0: useless, 1: as good as can be.
    pub score: f64,
}

/// A fitted ability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AbilityFit {
    /// In logits.
    pub ability: f64,
    /// Its standard error in logits.
    pub standard_error: f64,
    /// Graded answers behind it.
    pub answers: usize,
    /// Their mean score.
    pub mean_score: f64,
    /// Why the figure may mean little.
    pub warnings: Vec<String>,
}

/// Why graded rows cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GradeError {
    /// Whose answer was it?
    #[error("row {0} has a score, but nothing says of which model; name it with --name")]
    Nameless(String),
    /// A grade beyond the scale.
    #[error("row {id} has the score {score}; scores lie within 0..=1")]
    OutOfRange {
        /// The row.
        id: String,
        /// The score.
        score: f64,
    },
    /// No grade of the model asked for, or none at all.
    #[error("no row that could be scored has a grade{0}")]
    NoGrades(String),
}

/// Standard deviation of the prior on abilities, in logits; that of the training fit.
const PRIOR_SD: f64 = 2.0;

/// Below this many answers the normal approximation behind a standard error is loose.
const FEW_ANSWERS: usize = 30;

/// The answers of each model by canonical name, or those of `name` alone; rows without scores are left out.
///
/// # Errors
/// Names the row at fault.
pub fn answers_by_model(
    rows: &[GradedRow],
    scored: &[ScoredRow],
    name: Option<&str>,
) -> Result<BTreeMap<String, Vec<GradedAnswer>>, GradeError> {
    let mut by_model: BTreeMap<String, Vec<GradedAnswer>> = BTreeMap::new();
    for (row, scored) in rows.iter().zip(scored) {
        // A model under two names is one model: its grades of one prompt are averaged.
        let mut grades: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (model, score) in &row.outcomes {
            grades.entry(canonical_name(model)).or_default().extend(*score);
        }
        if let Some(score) = row.score {
            let name = name.ok_or_else(|| GradeError::Nameless(row.id.clone()))?;
            grades.entry(canonical_name(name)).or_default().push(score);
        }
        if let Some(score) = grades.values().flatten().find(|score| !(0.0..=1.0).contains(*score)) {
            return Err(GradeError::OutOfRange { id: row.id.clone(), score: *score });
        }
        let Ok(scores) = &scored.result else { continue };
        for (model, grades) in grades {
            if let Some(score) = super::metrics::mean(grades) {
                let answer = GradedAnswer { difficulty: latent(scores.difficulty), score };
                by_model.entry(model).or_default().push(answer);
            }
        }
    }
    if let Some(name) = name.map(canonical_name) {
        by_model.retain(|model, _| *model == name);
    }
    if by_model.is_empty() {
        return Err(GradeError::NoGrades(name.map(|name| format!(" of {name}")).unwrap_or_default()));
    }
    Ok(by_model)
}

/// The most probable ability given `answers`; the prior's centre without any.
pub fn fit(answers: &[GradedAnswer]) -> AbilityFit {
    let precision = 1.0 / (PRIOR_SD * PRIOR_SD);
    let slope = |ability: f64| {
        let surprises = answers.iter().map(|answer| answer.score - sigmoid(ability - answer.difficulty));
        surprises.sum::<f64>() - ability * precision
    };
    // The slope falls strictly and changes its sign within n / precision of 0: halving cannot fail.
    let most = answers.len() as f64 / precision + 1.0;
    let (mut low, mut high) = (-most, most);
    while high - low > 1e-9 * (1.0 + low.abs()) {
        let middle = f64::midpoint(low, high);
        if slope(middle) > 0.0 { low = middle } else { high = middle }
    }
    let ability = f64::midpoint(low, high);
    let information: f64 =
        answers.iter().map(|answer| sigmoid(ability - answer.difficulty)).map(|p| p * (1.0 - p)).sum();
    AbilityFit {
        ability,
        standard_error: 1.0 / (information + precision).sqrt(),
        answers: answers.len(),
        mean_score: super::metrics::mean(answers.iter().map(|answer| answer.score)).unwrap_or_default(),
        warnings: warnings(answers),
    }
}

fn warnings(answers: &[GradedAnswer]) -> Vec<String> {
    let mut warnings = Vec::new();
    if answers.len() < FEW_ANSWERS {
        warnings.push(format!("fewer than {FEW_ANSWERS} answers: the ability is little more than a guess"));
    }
    for (score, all, other) in [(1.0, "right", "harder"), (0.0, "wrong", "easier")] {
        if answers.iter().all(|answer| answer.score == score) {
            warnings.push(format!(
                "every answer is {all}: only the prior keeps the ability finite, grade {other} prompts too"
            ));
        }
    }
    warnings
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::offline::evaluate::tests::scores;

    fn simulated(ability: f64, n: usize, rng: &mut StdRng) -> Vec<GradedAnswer> {
        (0..n)
            .map(|_| {
                let difficulty = rng.random_range(-2.0..3.0);
                let right = rng.random::<f64>() < sigmoid(ability - difficulty);
                GradedAnswer { difficulty, score: f64::from(u8::from(right)) }
            })
            .collect()
    }

    #[test]
    fn a_known_ability_is_recovered_within_two_standard_errors() {
        let mut rng = StdRng::seed_from_u64(11);
        let (n_fits, mut within) = (400, 0);
        for _ in 0..n_fits {
            let ability = rng.random_range(-1.0..2.5);
            let fit = fit(&simulated(ability, 100, &mut rng));
            within += usize::from((fit.ability - ability).abs() <= 2.0 * fit.standard_error);
            assert!((fit.ability - ability).abs() <= 4.5 * fit.standard_error, "{fit:?} for {ability}");
            assert!((0.15..0.4).contains(&fit.standard_error) && fit.warnings.is_empty(), "{fit:?}");
        }
        // 95.4 % are expected; 92 % is three standard deviations of 400 draws below.
        assert!(within * 100 >= n_fits * 92, "{within} of {n_fits}");
    }

    #[test]
    fn what_means_little_is_said() {
        let right = vec![GradedAnswer { difficulty: 0.0, score: 1.0 }; 40];
        let fit_right = fit(&right);
        assert!(fit_right.ability > 2.0 && fit_right.ability < 10.0, "{fit_right:?}");
        assert!(fit_right.warnings.len() == 1 && fit_right.warnings[0].contains("every answer is right"));
        let wrong = fit(&[GradedAnswer { difficulty: 0.0, score: 0.0 }]);
        assert!(wrong.warnings.len() == 2 && wrong.warnings[1].contains("easier"), "{wrong:?}");
        let none = fit(&[]);
        assert!((none.ability.abs() < 1e-6) && (none.standard_error - PRIOR_SD).abs() < 1e-9, "{none:?}");
    }

    #[test]
    fn grades_are_gathered_by_model_and_checked() {
        let row = |json: &str| serde_json::from_str::<GradedRow>(json).unwrap();
        let scored = |id: &str| ScoredRow { id: id.into(), result: Ok(scores("code", [1.0, 0.0, 0.0], 0.5)) };
        let rows = [
            row(r#"{"id": "1", "text": "x", "outcomes": {"A@one": 1.0, "a": 0.0, "b": null}}"#),
            row(r#"{"id": "2", "text": "y", "score": 0.25}"#),
            row(r#"{"id": "3", "text": "", "score": 1}"#),
        ];
        let scored = [scored("1"), scored("2"), ScoredRow { id: "3".into(), result: Err("empty".into()) }];
        let by_model = answers_by_model(&rows, &scored, Some("New Model")).unwrap();
        assert_eq!(by_model.keys().collect::<Vec<_>>(), ["new-model"]);
        assert_eq!(by_model["new-model"], [GradedAnswer { difficulty: 0.0, score: 0.25 }]);
        let by_model = answers_by_model(&rows[..1], &scored, None).unwrap();
        assert_eq!(by_model["a"], [GradedAnswer { difficulty: 0.0, score: 0.5 }], "one model under two names");
        assert!(!by_model.contains_key("b"));

        let refused = |rows: &[GradedRow], name| answers_by_model(rows, &scored, name).unwrap_err().to_string();
        assert!(refused(&rows, None).contains("--name"));
        assert!(refused(&rows[..1], Some("zed")).contains("of zed"));
        assert!(refused(&[row(r#"{"id": "9", "text": "x", "score": 7}"#)], Some("a")).contains("row 9"));
    }

    proptest! {
        #[test]
        fn a_better_answer_never_lowers_the_ability(
            raw in prop::collection::vec((-6.0_f64..6.0, 0_u8..=4), 1..60), better in 0_usize..60,
        ) {
            let mut answers: Vec<GradedAnswer> = raw
                .iter()
                .map(|(difficulty, score)| GradedAnswer { difficulty: *difficulty, score: f64::from(*score) / 4.0 })
                .collect();
            let before = fit(&answers);
            prop_assert!(before.ability.is_finite() && before.standard_error > 0.0 && before.standard_error <= PRIOR_SD);
            let index = better % answers.len();
            answers[index].score = 1.0;
            prop_assert!(fit(&answers).ability >= before.ability - 1e-6);
        }
    }
}
