//! `pointsman eval`: how good and how honest the scores are.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::ModelArgs;
use crate::classifier::Classifier;
use crate::domain::{Probability, TierControl};
use crate::offline::dataset::{Row, read_rows};
use crate::offline::evaluate::{self, EvalOptions};
use crate::offline::gain::{AbilityPair, PairSpec};
use crate::offline::metrics::Bootstrap;
use crate::offline::report::{self, FileRef, ModelRef, Provenance};
use crate::offline::score::ScoreOptions;
use crate::offline::scored::read_scored;
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
    /// The models to route between, WEAK,STRONG: whose outcomes are compared and, where rows are scored now, whose
    /// abilities gain comes from. Two names, or two abilities in logits, which leave the outcomes to the default
    /// [default: the pair of the published tables, or the best known one].
    #[arg(long, value_name = "WEAK,STRONG", allow_hyphen_values = true)]
    pair: Option<PairSpec>,
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
    if args.pair.as_ref().is_some_and(|pair| pair.models().is_none() && !pair.is_numbers()) {
        bail!("--pair needs two names or two abilities here: outcomes are found by name");
    }
    let (scored, tier_control, model, gain) = match &args.scored {
        Some(path) => (read_scored(path)?, TierControl::default(), None, None),
        None => {
            let classifier = args.model.load()?;
            let (pair, gain) = gain_pair(&rows, args.pair.as_ref(), &classifier);
            eprintln!("gain is that of {gain}");
            let min_confidence = Probability::new(DEFAULT_MIN_CONFIDENCE)?;
            let texts = rows.iter().map(|row| (row.id.as_str(), row.text.as_str()));
            let scored = super::score_texts(&classifier, texts, &ScoreOptions { min_confidence, pair })?;
            (scored, classifier.tier_control().clone(), Some(model_ref(&classifier)), Some(gain))
        }
    };
    let options = EvalOptions {
        pair: args.pair.as_ref().and_then(PairSpec::models),
        tier_control,
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
            gain,
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

fn model_ref(classifier: &Classifier) -> ModelRef {
    let reference = classifier.reference();
    ModelRef {
        name: reference.name.to_string(),
        version: reference.version.to_string(),
        sha256: reference.sha256.to_string(),
    }
}

/// The pair whose outcomes are compared is the pair whose gain is expected, where the classifier knows both.
fn gain_pair(rows: &[Row], asked: Option<&PairSpec>, classifier: &Classifier) -> (AbilityPair, String) {
    let compared = match asked {
        Some(numbers) if numbers.is_numbers() => Some(numbers.clone()),
        _ => evaluate::pair_of(rows, asked.and_then(PairSpec::models).as_ref()).map(PairSpec::from),
    };
    let reference = || AbilityPair::reference(classifier.reference_pair(), classifier.abilities());
    match compared.map(|pair| AbilityPair::of(&pair, classifier.abilities())) {
        Some(Ok(pair)) => {
            let said = pair.to_string();
            (pair, said)
        }
        Some(Err(error)) => (reference(), format!("{}, since {error}", reference())),
        None => (reference(), reference().to_string()),
    }
}

fn write(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
