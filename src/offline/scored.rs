//! What `pointsman score` writes: one JSON object a line, in the order of the input.
//!
//! A row that could not be scored carries `id` and `error` and nothing else; it never stops a run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dataset::{DatasetError, read_lines};
use crate::domain::{Probability, Tier};

/// One line: the id of the input row, and its scores or why there are none.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "LineRead", into = "LineWritten")]
pub struct ScoredRow {
    /// The input row's id.
    pub id: String,
    /// Its scores, or why there are none.
    pub result: Result<Scores, String>,
}

/// What the classifier says about one text.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Scores {
    /// The most probable intent.
    pub intent: String,
    /// Every intent's calibrated probability.
    pub intent_probs: BTreeMap<String, f32>,
    /// How capable a model it needs.
    pub difficulty: Probability,
    /// The tier chosen.
    pub tier: Tier,
    /// Every tier's calibrated probability.
    pub tier_probs: TierProbabilities,
    /// P(`tier` suffices).
    pub confidence: Probability,
    /// Word pieces the encoder read.
    pub tokens: u32,
    /// Whether something was cut before or at the encoder.
    pub truncated: bool,
    /// Expected quality gained by the strong model of a pair over the weak one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<f64>,
}

/// A distribution over tiers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct TierProbabilities {
    /// P(a small model suffices).
    pub simple: f32,
    /// P(a mid-size model is needed and suffices).
    pub medium: f32,
    /// P(a frontier model is needed).
    pub complex: f32,
}

/// A line that is JSON of the right shape but says something impossible.
#[derive(Debug, thiserror::Error)]
pub enum BadScores {
    /// Neither an error nor complete scores.
    #[error("row {id} has neither an error nor complete scores: {why}")]
    Incomplete {
        /// The row.
        id: String,
        /// Which field is missing or wrong. Text, since serde keeps no sources.
        why: String,
    },
    /// Numbers that are no distribution.
    #[error("{what} of row {id} must lie within 0..=1 and sum to 1")]
    NotADistribution {
        /// The row.
        id: String,
        /// The field.
        what: &'static str,
    },
    /// An intent without a probability.
    #[error("the intent of row {0} is not among its intent_probs")]
    UnknownIntent(String),
}

/// The flat form that is read. Scores are parsed in a second step, so that a refusal can name the field at fault.
#[derive(Deserialize)]
struct LineRead {
    id: String,
    #[serde(default)]
    error: Option<String>,
    #[serde(flatten)]
    scores: serde_json::Map<String, serde_json::Value>,
}

/// The flat form that is written.
#[derive(Serialize)]
struct LineWritten {
    id: String,
    #[serde(flatten)]
    scores: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How far sums may be from 1: other writers may print few digits.
const SUM_TOLERANCE: f32 = 0.01;

/// Every line of a file that `pointsman score` wrote.
///
/// # Errors
/// Names the line at fault.
pub fn read_scored(path: &Path) -> Result<Vec<ScoredRow>, DatasetError> {
    read_lines(path)
}

// === impl ScoredRow ===

impl From<ScoredRow> for LineWritten {
    fn from(row: ScoredRow) -> Self {
        match row.result {
            Ok(scores) => Self { id: row.id, scores: Some(scores), error: None },
            Err(error) => Self { id: row.id, scores: None, error: Some(error) },
        }
    }
}

impl TryFrom<LineRead> for ScoredRow {
    type Error = BadScores;

    fn try_from(line: LineRead) -> Result<Self, BadScores> {
        let result = match line.error {
            Some(error) => Err(error),
            None => match serde_json::from_value::<Scores>(line.scores.into()) {
                Ok(scores) => {
                    scores.check(&line.id)?;
                    Ok(scores)
                }
                Err(error) => return Err(BadScores::Incomplete { id: line.id, why: error.to_string() }),
            },
        };
        Ok(Self { id: line.id, result })
    }
}

// === impl Scores ===

impl Scores {
    fn check(&self, id: &str) -> Result<(), BadScores> {
        let refuse = |what| Err(BadScores::NotADistribution { id: id.to_owned(), what });
        if !is_distribution(self.intent_probs.values().copied()) {
            return refuse("intent_probs");
        }
        if !is_distribution(self.tier_probs.as_array()) {
            return refuse("tier_probs");
        }
        if !self.intent_probs.contains_key(&self.intent) {
            return Err(BadScores::UnknownIntent(id.to_owned()));
        }
        Ok(())
    }
}

fn is_distribution(probabilities: impl IntoIterator<Item = f32>) -> bool {
    let mut sum = 0.0;
    for p in probabilities {
        if !(0.0..=1.0).contains(&p) {
            return false;
        }
        sum += p;
    }
    (sum - 1.0_f32).abs() <= SUM_TOLERANCE
}

// === impl TierProbabilities ===

impl TierProbabilities {
    /// In the order of [`Tier::ALL`].
    pub fn as_array(self) -> [f32; 3] {
        [self.simple, self.medium, self.complex]
    }

    /// The most probable tier; the cheaper of equals.
    pub fn top(self) -> (Tier, f32) {
        let mut best = (Tier::Simple, self.simple);
        for (tier, p) in Tier::ALL.into_iter().zip(self.as_array()) {
            if p > best.1 {
                best = (tier, p);
            }
        }
        best
    }
}

impl From<[f32; 3]> for TierProbabilities {
    fn from([simple, medium, complex]: [f32; 3]) -> Self {
        Self { simple, medium, complex }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"id":"a/1","intent":"code","intent_probs":{"code":0.75,"math":0.25},"difficulty":0.5,"tier":"medium","tier_probs":{"simple":0.25,"medium":0.5,"complex":0.25},"confidence":0.75,"tokens":12,"truncated":false}"#;

    #[test]
    fn lines_round_trip() {
        for line in [GOOD, r#"{"id":"a/2","error":"empty text"}"#, &GOOD.replace("false}", "false,\"gain\":-0.25}")] {
            let row: ScoredRow = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&row).unwrap(), line);
        }
    }

    #[test]
    fn impossible_scores_are_refused() {
        let refused = |line: String| serde_json::from_str::<ScoredRow>(&line).unwrap_err().to_string();
        assert!(refused(GOOD.replace("\"math\":0.25", "\"math\":0.9")).contains("intent_probs of row a/1"));
        assert!(refused(GOOD.replace("\"medium\":0.5", "\"medium\":-0.5")).contains("tier_probs"));
        assert!(refused(GOOD.replace("\"intent\":\"code\"", "\"intent\":\"chat\"")).contains("not among"));
        assert!(refused(GOOD.replace("\"difficulty\":0.5", "\"difficulty\":1.5")).contains("1.5 is not a probability"));
        assert!(refused(r#"{"id":"a/3"}"#.to_owned()).contains("missing field `intent`"));
    }

    #[test]
    fn reading_names_the_bad_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{GOOD}\n\n{{\"id\":\"a/2\",\"error\":\"too long\"}}\n")).unwrap();
        let rows = read_scored(file.path()).unwrap();
        assert_eq!(rows[1].result, Err("too long".to_owned()));
        std::fs::write(file.path(), format!("{GOOD}\n{{}}\n")).unwrap();
        assert!(read_scored(file.path()).unwrap_err().to_string().ends_with(":2: not a row"));
    }

    #[test]
    fn the_cheaper_of_equal_tiers_is_on_top() {
        assert_eq!(TierProbabilities::from([0.4, 0.4, 0.2]).top(), (Tier::Simple, 0.4));
    }
}
