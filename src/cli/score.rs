//! `pointsman score`: a file of prompts, scored in bulk.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::ModelArgs;
use crate::domain::Probability;
use crate::offline::score::{ScoreCounts, score};
use crate::router::DEFAULT_MIN_CONFIDENCE;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// JSON Lines, one {"id", "text"} a line.
    #[arg(long)]
    input: PathBuf,
    /// Where to write one line of scores per row, in the same order.
    #[arg(long)]
    output: PathBuf,
    /// P(the tier suffices) that the chosen tier must reach.
    #[arg(long, default_value_t = DEFAULT_MIN_CONFIDENCE)]
    min_confidence: f64,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let started = std::time::Instant::now();
    super::set_threads(args.model.threads)?;
    let classifier = args.model.load()?;
    let output = File::create(&args.output).with_context(|| format!("cannot write {}", args.output.display()))?;
    let counts = score_file(&classifier, &args.input, BufWriter::new(output), args.min_confidence)?;
    let seconds = started.elapsed().as_secs_f64();
    let n = counts.n_scored + counts.n_errors;
    eprintln!(
        "{} scored, {} with errors, in {seconds:.1} s ({:.0} a second)",
        counts.n_scored,
        counts.n_errors,
        n as f64 / seconds.max(1e-9)
    );
    Ok(ExitCode::SUCCESS)
}

/// Scores a file with a progress bar on standard error.
pub(super) fn score_file(
    classifier: &crate::classifier::Classifier,
    input: &Path,
    output: impl std::io::Write,
    min_confidence: f64,
) -> anyhow::Result<ScoreCounts> {
    let file = File::open(input).with_context(|| format!("cannot read {}", input.display()))?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let bar = ProgressBar::new(size)
        .with_style(ProgressStyle::with_template("scoring [{wide_bar}] {bytes}/{total_bytes} {eta}")?);
    let min_confidence = Probability::new(min_confidence)?;
    let counts = score(classifier, BufReader::new(file), output, min_confidence, &|done| bar.set_position(done))?;
    bar.finish_and_clear();
    Ok(counts)
}
