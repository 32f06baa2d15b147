//! `pointsman eval`: how good and how honest the scores are.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::ModelArgs;
use crate::domain::Probability;
use crate::offline::dataset::{Row, read_rows};
use crate::offline::evaluate::{self, Compared, EvalOptions, Evaluation, ModelPair, models::canonical_name};
use crate::offline::metrics::Bootstrap;
use crate::offline::register::Register;
use crate::offline::report::{self, DataCard, FileRef, ModelPage, ModelRef, Provenance};
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
    /// Also write the report as a self-contained HTML page. It quotes the prompts that were judged most wrongly.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Register of sources (training-data/sources.toml), whose licences the page's data card then states.
    #[arg(long, requires = "html")]
    sources: Option<PathBuf>,
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
    card: Option<DataCard>,
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
    let register = args.sources.as_deref().map(read_register).transpose()?;
    let mut evaluated = match &args.scored {
        Some(path) => Scored::read(path)?,
        None => Scored::now(&rows, &args.model, register.as_ref())?,
    };
    let mut compared = match (&args.compare, &args.against) {
        (Some(path), _) => Some(Scored::read(path)?),
        (None, Some(name)) => {
            Some(Scored::now(&rows, &ModelArgs { model: name.clone(), ..args.model.clone() }, register.as_ref())?)
        }
        (None, None) => None,
    };
    let options = EvalOptions {
        pair: args.pair.clone(),
        bootstrap: Bootstrap { n_draws: args.resamples, ..Bootstrap::default() },
        ..EvalOptions::default()
    };
    let mut evaluation = evaluate::run(&rows, &evaluated.rows, &options);
    if let Some(other) = &mut compared {
        tell_apart(&mut evaluated, other);
        evaluation.comparison = Some(evaluate::compare::run(&rows, evaluated.named(), other.named(), &options));
    }
    super::print_line(&report::text(&evaluation));

    if args.json.is_some() || args.html.is_some() {
        let files = args.input.iter().chain(&args.scored).chain(&args.compare).filter(|path| path.is_file());
        let provenance = Provenance {
            inputs: files.map(|path| FileRef::of(path)).collect::<Result<_, _>>()?,
            model: evaluated.model.clone(),
            compared: compared.as_ref().and_then(|other| other.model.clone()),
            command: super::command_line(),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        };
        if let Some(path) = &args.json {
            write(path, &report::json(&evaluation, &provenance)?)?;
        }
        if let Some(path) = &args.html {
            let others = compared.as_ref().map(|other| evaluate::run(&rows, &other.rows, &options));
            let mut pages = vec![evaluated.page(&evaluation)];
            pages.extend(compared.iter().zip(&others).map(|(other, evaluation)| other.page(evaluation)));
            write(path, &report::html(&pages, &provenance)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives two models of one name different ones.
fn tell_apart(first: &mut Scored, second: &mut Scored) {
    if first.name == second.name {
        first.name.push_str(" (first)");
        second.name.push_str(" (second)");
    }
}

// === impl Scored ===

impl Scored {
    fn named(&self) -> Compared<'_> {
        Compared { name: &self.name, scored: &self.rows }
    }

    fn page<'a>(&'a self, evaluation: &'a Evaluation) -> ModelPage<'a> {
        ModelPage { name: &self.name, evaluation, card: self.card.as_ref() }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self { name, rows: read_scored(path)?, model: None, card: None })
    }

    fn now(rows: &[Row], model: &ModelArgs, register: Option<&Register>) -> anyhow::Result<Self> {
        let classifier = model.load()?;
        let texts: Vec<(&str, &str)> = rows.iter().map(|row| (row.id.as_str(), row.text.as_str())).collect();
        let bar = super::scoring_bar(texts.len())?;
        let min_confidence = Probability::new(DEFAULT_MIN_CONFIDENCE)?;
        let rows = score_texts(&classifier, &texts, min_confidence, &|done| bar.set_position(done));
        bar.finish_and_clear();
        let model = ModelRef::of(&classifier);
        Ok(Self {
            name: format!("{} {}", model.name, model.version),
            rows,
            model: Some(model),
            card: Some(DataCard::of(&classifier, register)),
        })
    }
}

fn read_register(path: &Path) -> anyhow::Result<Register> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Register::parse(&text).with_context(|| format!("{} is no register of sources", path.display()))
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
