//! `pointsman score`: a file of prompts, scored in bulk.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::ModelArgs;
use crate::domain::Probability;
use crate::offline::gain::{AbilityPair, PairSpec};
use crate::offline::score::{ScoreCounts, ScoreOptions, score};
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
    /// The models that `gain` is measured between, WEAK,STRONG: names the classifier knows, or abilities in logits
    /// [default: the classifier's reference pair; 0,2 where it has none, since the scale is anchored at the weak
    /// reference model and the strong one stands about two logits above it].
    #[arg(long, value_name = "WEAK,STRONG", allow_hyphen_values = true)]
    pair: Option<PairSpec>,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let started = std::time::Instant::now();
    super::set_threads(args.model.threads)?;
    let classifier = args.model.load()?;
    let pair = match &args.pair {
        Some(asked) => AbilityPair::of(asked, classifier.abilities()).context("--pair cannot be used")?,
        None => AbilityPair::reference(classifier.reference_pair(), classifier.abilities()),
    };
    eprintln!("gain is that of {pair}");
    let options = ScoreOptions { min_confidence: Probability::new(args.min_confidence)?, pair };
    let output = File::create(&args.output).with_context(|| format!("cannot write {}", args.output.display()))?;
    let counts = score_file(&classifier, &args.input, BufWriter::new(output), &options)?;
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
fn score_file(
    classifier: &crate::classifier::Classifier,
    input: &Path,
    output: impl std::io::Write,
    options: &ScoreOptions,
) -> anyhow::Result<ScoreCounts> {
    let file = File::open(input).with_context(|| format!("cannot read {}", input.display()))?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let bar = ProgressBar::new(size)
        .with_style(ProgressStyle::with_template("scoring [{wide_bar}] {bytes}/{total_bytes} {eta}")?);
    let counts = score(classifier, BufReader::new(file), output, options, &|done| bar.set_position(done))?;
    bar.finish_and_clear();
    Ok(counts)
}
