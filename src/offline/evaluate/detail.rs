//! Closer looks at one head: how honest it is on short and on long inputs, and what it got most confidently wrong.

use serde::Serialize;

use super::Case;
use crate::offline::metrics::calibration::N_BINS;
use crate::offline::metrics::{ReliabilityBin, expected_calibration_error, mean, reliability};

/// Rows whose input is of about one length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenBucket {
    /// Which lengths.
    pub group: &'static str,
    /// Rows of it.
    pub n: usize,
    /// Share right.
    pub accuracy: f64,
    /// Expected calibration error.
    pub ece: f64,
    /// Confidence against accuracy.
    pub reliability: Vec<ReliabilityBin>,
}

/// A wrong verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    /// The row.
    pub id: String,
    /// The start of its text. Only a page shows it: figures are passed on further than prompts should be.
    #[serde(skip)]
    pub text: String,
    /// What is right.
    pub truth: String,
    /// What the head said.
    pub prediction: String,
    /// The probability it gave that.
    pub confidence: f64,
}

/// What a head said of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) case: Case<'a>,
    pub(super) truth: &'a str,
    pub(super) prediction: &'a str,
    pub(super) confidence: f64,
}

/// Most word pieces of each bucket. A text that was cut is longer than any encoder input.
const BUCKETS: [(u32, &str); 4] =
    [(16, "up to 16 tokens"), (64, "17-64 tokens"), (256, "65-256 tokens"), (u32::MAX, "more than 256 tokens")];
/// Mistakes shown.
const N_WORST: usize = 20;
/// Characters of a text shown.
const SHOWN_CHARS: usize = 160;

/// Honesty by length of input, from short to long; buckets without rows are absent.
pub(super) fn by_tokens(said: &[Said<'_>]) -> Vec<TokenBucket> {
    let buckets = BUCKETS.iter().enumerate().filter_map(|(index, (_, group))| {
        let judged: Vec<(f64, bool)> = said
            .iter()
            .filter(|said| said.bucket() == Some(index))
            .map(|said| (said.confidence, said.right()))
            .collect();
        let bins = reliability(&judged, N_BINS);
        Some(TokenBucket {
            group,
            n: judged.len(),
            accuracy: mean(judged.iter().map(|(_, right)| f64::from(u8::from(*right))))?,
            ece: expected_calibration_error(&bins)?,
            reliability: bins,
        })
    });
    buckets.collect()
}

/// The most confident wrong verdicts, the worst first.
pub(super) fn worst(said: &[Said<'_>]) -> Vec<Mistake> {
    let mut wrong: Vec<&Said<'_>> = said.iter().filter(|said| !said.right()).collect();
    wrong.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| a.case.row.id.cmp(&b.case.row.id)));
    let mistake = |said: &Said<'_>| Mistake {
        id: said.case.row.id.clone(),
        text: shorten(&said.case.row.text),
        truth: said.truth.to_owned(),
        prediction: said.prediction.to_owned(),
        confidence: said.confidence,
    };
    wrong.into_iter().take(N_WORST).map(mistake).collect()
}

// === impl Said ===

impl Said<'_> {
    fn right(&self) -> bool {
        self.truth == self.prediction
    }

    fn bucket(&self) -> Option<usize> {
        let scores = self.case.scores?;
        let tokens = if scores.truncated { u32::MAX } else { scores.tokens };
        BUCKETS.iter().position(|(most, _)| tokens <= *most)
    }
}

/// The start of a text in one line.
fn shorten(text: &str) -> String {
    let mut line = String::with_capacity(SHOWN_CHARS);
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.chars().nth(SHOWN_CHARS).is_some() {
            let start: String = line.chars().take(SHOWN_CHARS - 1).collect();
            return format!("{}…", start.trim_end());
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::tests::{row, scores};
    use super::*;

    #[test]
    fn lengths_are_told_apart_and_mistakes_are_ordered() {
        let rows = [row("a/1", "short"), row("a/2", &"long ".repeat(100)), row("a/3", "cut"), row("a/4", "short too")];
        let mut all: Vec<_> = (0..4).map(|_| scores("code", [1.0, 0.0, 0.0], 0.5)).collect();
        (all[1].tokens, all[2].tokens, all[2].truncated) = (256, 256, true);
        let said: Vec<Said<'_>> = rows
            .iter()
            .zip(&all)
            .zip([0.5, 0.9, 0.95, 0.6])
            .map(|((row, scores), confidence)| Said {
                case: Case { row, scores: Some(scores) },
                truth: if row.id == "a/3" { "code" } else { "math" },
                prediction: "code",
                confidence,
            })
            .collect();
        let buckets: Vec<(&str, usize, f64)> = by_tokens(&said).iter().map(|b| (b.group, b.n, b.accuracy)).collect();
        assert_eq!(buckets, [("up to 16 tokens", 2, 0.0), ("65-256 tokens", 1, 0.0), ("more than 256 tokens", 1, 1.0)]);
        let worst = worst(&said);
        assert_eq!(worst.iter().map(|mistake| mistake.id.as_str()).collect::<Vec<_>>(), ["a/2", "a/4", "a/1"]);
        assert!(worst[0].text.chars().count() <= SHOWN_CHARS && worst[0].text.ends_with('…'));
    }
}
