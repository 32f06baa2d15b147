//! `pointsman eval`: how good and how honest the scores are.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::ModelArgs;
use crate::domain::Probability;
use crate::offline::dataset::{Row, read_rows};
use crate::offline::evaluate::{self, EvalOptions, ModelPair, models::canonical_name};
use crate::offline::metrics::Bootstrap;
use crate::offline::report::{self, FileRef, ModelRef, Provenance};
use crate::offline::score::score_texts;
use crate::offline::scored::{ScoredRow, read_scored};
use crate::offline::split::Split;
use crate::router::DEFAULT_MIN_CONFIDENCE;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rows with what is known of them (intent, tier, outcomes); files or folders of JSON Lines.
    #[arg(long, required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// What `pointsman score` wrote for the same rows [default: score them now].
    #[arg(long)]
    scored: Option<PathBuf>,
    /// Keep only rows of one split, decided by the hash of the id.
    #[arg(long)]
    split: Option<SplitName>,
    /// The field that holds the true label: intent, or task for a source's own labels.
    #[arg(long, default_value = "intent")]
    label_field: LabelField,
    /// The models to route between, WEAK,STRONG [default: the pair of the published tables, or the best known one].
    #[arg(long, value_parser = parse_pair, value_name = "WEAK,STRONG")]
    pair: Option<ModelPair>,
    /// Resamples behind each 95 % interval.
    #[arg(long, default_value_t = 1_000)]
    resamples: usize,
    /// Also write the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also write the report as a self-contained HTML page.
    #[arg(long)]
    html: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum LabelField {
    Intent,
    Task,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SplitName {
    Train,
    Calibration,
    Test,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    super::set_threads(args.model.threads)?;
    let mut rows = Vec::new();
    for path in &args.input {
        rows.extend(read_rows(path)?);
    }
    if let Some(split) = args.split {
        let wanted = match split {
            SplitName::Train => Split::Train,
            SplitName::Calibration => Split::Calibration,
            SplitName::Test => Split::Test,
        };
        rows.retain(|row| Split::of(&row.id) == wanted);
    }
    if args.label_field == LabelField::Task {
        for row in &mut rows {
            row.intent = row.task.take();
        }
    }
    if rows.is_empty() {
        bail!("no row is left to evaluate");
    }
    let (scored, model) = match &args.scored {
        Some(path) => (read_scored(path)?, None),
        None => {
            let (scored, model) = score_rows(&rows, &args.model)?;
            (scored, Some(model))
        }
    };
    let options = EvalOptions {
        pair: args.pair.clone(),
        bootstrap: Bootstrap { n_draws: args.resamples, ..Bootstrap::default() },
        ..EvalOptions::default()
    };
    let evaluation = evaluate::run(&rows, &scored, &options);
    super::print_line(&report::text(&evaluation));

    if args.json.is_some() || args.html.is_some() {
        let files = args.input.iter().chain(&args.scored).filter(|path| path.is_file());
        let provenance = Provenance {
            inputs: files.map(|path| FileRef::of(path)).collect::<Result<_, _>>()?,
            model,
            command: super::command_line(),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        };
        if let Some(path) = &args.json {
            write(path, &report::json(&evaluation, &provenance)?)?;
        }
        if let Some(path) = &args.html {
            write(path, &report::html(&evaluation, &provenance)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn score_rows(rows: &[Row], model: &ModelArgs) -> anyhow::Result<(Vec<ScoredRow>, ModelRef)> {
    let classifier = model.load()?;
    let texts: Vec<(&str, &str)> = rows.iter().map(|row| (row.id.as_str(), row.text.as_str())).collect();
    let bar = super::scoring_bar(texts.len())?;
    let min_confidence = Probability::new(DEFAULT_MIN_CONFIDENCE)?;
    let scored = score_texts(&classifier, &texts, min_confidence, &|done| bar.set_position(done));
    bar.finish_and_clear();
    Ok((scored, ModelRef::of(&classifier)))
}

fn write(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn parse_pair(value: &str) -> Result<ModelPair, String> {
    match value.split(',').map(str::trim).collect::<Vec<_>>()[..] {
        [weak, strong] if !weak.is_empty() && !strong.is_empty() => {
            Ok(ModelPair { weak: canonical_name(weak), strong: canonical_name(strong) })
        }
        _ => Err("write two models with a comma between them, the weak one first".into()),
    }
}
