//! Scores a file in bulk: rows in, [`ScoredRow`]s out, in the same order.
//!
//! A chunk of lines is prepared on all cores, sorted by length, and classified in passes of many texts. A line that
//! cannot be scored becomes a row with an `error`; it never stops the run.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use rayon::prelude::*;

use super::gain::AbilityPair;
use super::scored::{ScoredRow, Scores, TierProbabilities};
use crate::classifier::{Classifier, Input};
use crate::domain::{Classification, Probability, Query};
use crate::text;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ScoreCounts {
    /// Rows with scores.
    pub n_scored: usize,
    /// Rows with an error.
    pub n_errors: usize,
}

/// What a run asks of the classifier.
#[derive(Clone, Debug)]
pub struct ScoreOptions {
    /// P(the tier suffices) that the chosen tier must reach.
    pub min_confidence: Probability,
    /// The models that gain is measured between.
    pub pair: AbilityPair,
}

/// Why a run stopped: the input or output file, never a row.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The input cannot be read further.
    #[error("cannot read the input after line {0}")]
    Read(usize, #[source] std::io::Error),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Write(#[source] std::io::Error),
    /// A row cannot be written as JSON.
    #[error("cannot write a row as JSON")]
    Json(#[from] serde_json::Error),
}

/// Lines read ahead of a pass.
const CHUNK_LINES: usize = 2_048;
/// Most word pieces of one pass.
const TOKENS_PER_PASS: usize = 2_048;

/// The part of a line that is scored.
#[derive(serde::Deserialize)]
struct Line {
    id: String,
    text: String,
}

/// A line on its way: its id, and what the classifier reads or why it cannot.
struct Pending {
    id: String,
    input: Result<(Input, bool), String>,
}

/// Scores every line of `input`; `progress` is told how many bytes of input are done.
///
/// # Errors
/// When the input cannot be read or the output cannot be written.
pub fn score(
    classifier: &Classifier,
    mut input: impl BufRead,
    mut output: impl Write,
    options: &ScoreOptions,
    progress: &dyn Fn(u64),
) -> Result<ScoreCounts, ScoreError> {
    let mut counts = ScoreCounts::default();
    let (mut n_lines, mut n_bytes) = (0, 0);
    loop {
        let mut lines: Vec<(usize, Vec<u8>)> = Vec::new();
        while lines.len() < CHUNK_LINES {
            // Bytes, not text: a line that is not UTF-8 costs that line, not the run.
            let mut line = Vec::new();
            let read = input.read_until(b'\n', &mut line).map_err(|source| ScoreError::Read(n_lines, source))?;
            if read == 0 {
                break;
            }
            n_lines += 1;
            n_bytes += read as u64;
            if !line.trim_ascii().is_empty() {
                lines.push((n_lines, line));
            }
        }
        if lines.is_empty() {
            return Ok(counts);
        }
        let pending = lines.par_iter().map(|(number, line)| prepare(classifier, *number, line)).collect();
        for row in classify(classifier, pending, options) {
            counts.n_scored += usize::from(row.result.is_ok());
            counts.n_errors += usize::from(row.result.is_err());
            serde_json::to_writer(&mut output, &row)?;
            output.write_all(b"\n").map_err(ScoreError::Write)?;
        }
        output.flush().map_err(ScoreError::Write)?;
        progress(n_bytes);
    }
}

/// Scores texts in memory, in their order; `progress` is told the share that is done.
///
/// # Errors
/// None that a text can cause: see [`score`].
pub fn score_texts<'a>(
    classifier: &Classifier,
    texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    options: &ScoreOptions,
    progress: &dyn Fn(f64),
) -> Result<Vec<ScoredRow>, ScoreError> {
    let mut lines = Vec::new();
    for (id, text) in texts {
        serde_json::to_writer(&mut lines, &serde_json::json!({ "id": id, "text": text }))?;
        lines.push(b'\n');
    }
    let (mut output, n_bytes) = (Vec::new(), lines.len().max(1) as f64);
    score(classifier, lines.as_slice(), &mut output, options, &|done| progress(done as f64 / n_bytes))?;
    let rows = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(rows.map(serde_json::from_slice).collect::<Result<_, _>>()?)
}

fn prepare(classifier: &Classifier, number: usize, line: &[u8]) -> Pending {
    match serde_json::from_slice(line) {
        Ok(Line { id, text }) => prepare_text(classifier, id, text),
        Err(error) => {
            let id = id_of(line).unwrap_or_else(|| format!("line {number}"));
            Pending { id, input: Err(format!("line {number} is not a row with id and text: {error}")) }
        }
    }
}

fn prepare_text(classifier: &Classifier, id: String, text: String) -> Pending {
    let query = Query::from_text(text);
    if let Err(invalid) = query.check() {
        return Pending { id, input: Err(format!("text: {}", invalid.problem)) };
    }
    let prepared = text::prepare(&query.content);
    let input =
        classifier.tokenize(&prepared).map(|input| (input, prepared.bytes_cut > 0)).map_err(|error| error.to_string());
    Pending { id, input }
}

/// The id of a line that has one, whatever else is wrong with it.
fn id_of(line: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    value.get("id").and_then(|id| id.as_str()).map(str::to_owned)
}

/// Classifies in passes of texts of similar length, back in order.
fn classify(classifier: &Classifier, pending: Vec<Pending>, options: &ScoreOptions) -> Vec<ScoredRow> {
    let mut results: Vec<Option<Result<Scores, String>>> = Vec::with_capacity(pending.len());
    results.resize_with(pending.len(), || None);
    let mut order: Vec<(usize, &Input, bool)> = pending
        .iter()
        .enumerate()
        .filter_map(|(index, row)| row.input.as_ref().ok().map(|(input, cut)| (index, input, *cut)))
        .collect();
    order.sort_by_key(|(_, input, _)| input.n_tokens());
    let mut rest = order.as_slice();
    while let Some((_, first, _)) = rest.first() {
        let mut n = (TOKENS_PER_PASS / first.n_tokens().max(1)).clamp(1, rest.len());
        while n > 1 && rest.iter().take(n).map(|(_, input, _)| input.n_tokens()).sum::<usize>() > TOKENS_PER_PASS {
            n -= n.div_ceil(8);
        }
        let (pass, later) = rest.split_at(n.max(1));
        let inputs: Vec<&Input> = pass.iter().map(|(_, input, _)| *input).collect();
        match classifier.classify(&inputs) {
            Ok(classifications) => {
                for ((index, _, cut), classification) in pass.iter().zip(classifications) {
                    results[*index] = Some(Ok(scores(&classification, *cut, options)));
                }
            }
            Err(error) => {
                for (index, _, _) in pass {
                    results[*index] = Some(Err(error.to_string()));
                }
            }
        }
        rest = later;
    }
    pending
        .into_iter()
        .zip(results)
        .map(|(row, result)| {
            let result = match row.input {
                Err(error) => Err(error),
                Ok(_) => result.unwrap_or_else(|| Err("not classified".into())),
            };
            ScoredRow { id: row.id, result }
        })
        .collect()
}

fn scores(classification: &Classification, bytes_cut: bool, options: &ScoreOptions) -> Scores {
    let choice = classification.choose_tier(options.min_confidence);
    let [simple, medium, complex] = classification.tiers;
    let intent_probs: BTreeMap<String, f32> =
        classification.intent.iter().map(|(label, p)| (label.to_string(), p)).collect();
    Scores {
        intent: classification.intent.top().0.to_string(),
        intent_probs,
        difficulty: classification.difficulty,
        tier: choice.tier,
        tier_probs: TierProbabilities { simple, medium, complex },
        confidence: choice.suffices,
        tokens: classification.tokens_used,
        truncated: bytes_cut || classification.tokens_cut > 0,
        gain: Some(options.pair.gain(classification.difficulty)),
    }
}
