//! `pointsman eval`: how good and how honest the scores are.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::ModelArgs;
use crate::domain::Probability;
use crate::offline::dataset::{Row, read_rows};
use crate::offline::evaluate::{self, Compared, EvalOptions, ModelPair, models::canonical_name};
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
    /// What `pointsman score` wrote for the same rows with another model: adds the difference of both.
    #[arg(long, conflicts_with = "against")]
    compare: Option<PathBuf>,
    /// Another classifier, a name or a directory, that scores the same rows now: adds the difference of both.
    #[arg(long)]
    against: Option<String>,
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

/// Rows as one model scored them.
struct Scored {
    /// What a report calls the model.
    name: String,
    rows: Vec<ScoredRow>,
    /// The model, where it scored the rows just now.
    model: Option<ModelRef>,
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
    let evaluated = match &args.scored {
        Some(path) => Scored::read(path)?,
        None => Scored::now(&rows, &args.model)?,
    };
    let compared = match (&args.compare, &args.against) {
        (Some(path), _) => Some(Scored::read(path)?),
        (None, Some(name)) => Some(Scored::now(&rows, &ModelArgs { model: name.clone(), ..args.model.clone() })?),
        (None, None) => None,
    };
    let options = EvalOptions {
        pair: args.pair.clone(),
        bootstrap: Bootstrap { n_draws: args.resamples, ..Bootstrap::default() },
        ..EvalOptions::default()
    };
    let mut evaluation = evaluate::run(&rows, &evaluated.rows, &options);
    evaluation.comparison = compared.as_ref().map(|other| {
        let [first, second] = names(&evaluated, other);
        let first = Compared { name: &first, scored: &evaluated.rows };
        evaluate::compare::run(&rows, first, Compared { name: &second, scored: &other.rows }, &options)
    });
    super::print_line(&report::text(&evaluation));

    if args.json.is_some() || args.html.is_some() {
        let files = args.input.iter().chain(&args.scored).chain(&args.compare).filter(|path| path.is_file());
        let provenance = Provenance {
            inputs: files.map(|path| FileRef::of(path)).collect::<Result<_, _>>()?,
            model: evaluated.model,
            compared: compared.and_then(|other| other.model),
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

/// What to call two models: their names, told apart where they are the same.
fn names(first: &Scored, second: &Scored) -> [String; 2] {
    if first.name == second.name {
        return [format!("{} (first)", first.name), format!("{} (second)", second.name)];
    }
    [first.name.clone(), second.name.clone()]
}

// === impl Scored ===

impl Scored {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self { name, rows: read_scored(path)?, model: None })
    }

    fn now(rows: &[Row], model: &ModelArgs) -> anyhow::Result<Self> {
        let classifier = model.load()?;
        let texts: Vec<(&str, &str)> = rows.iter().map(|row| (row.id.as_str(), row.text.as_str())).collect();
        let bar = super::scoring_bar(texts.len())?;
        let min_confidence = Probability::new(DEFAULT_MIN_CONFIDENCE)?;
        let rows = score_texts(&classifier, &texts, min_confidence, &|done| bar.set_position(done));
        bar.finish_and_clear();
        let model = ModelRef::of(&classifier);
        Ok(Self { name: format!("{} {}", model.name, model.version), rows, model: Some(model) })
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
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
