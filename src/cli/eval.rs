//! `pointsman eval`: how good and how honest the scores are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::ModelArgs;
use crate::artifact::ModelAbility;
use crate::classifier::Classifier;
use crate::domain::{Probability, TierControl};
use crate::offline::dataset::{Row, read_rows};
use crate::offline::evaluate::{self, CascadeSpec, Compared, EvalOptions, Evaluation};
use crate::offline::gain::{AbilityPair, PairSpec};
use crate::offline::metrics::Bootstrap;
use crate::offline::register::Register;
use crate::offline::report::{self, DataCard, FileRef, ModelPage, ModelRef, Provenance};
use crate::offline::score::ScoreOptions;
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
    /// The models to route between, WEAK,STRONG: whose outcomes are compared and, where rows are scored now, whose
    /// abilities gain comes from. Two names, or two abilities in logits, which leave the outcomes to the default
    /// [default: the pair of the published tables, or the best known one].
    #[arg(long, value_name = "WEAK,STRONG", allow_hyphen_values = true)]
    pair: Option<PairSpec>,
    /// Simulate cascades from a weak to a strong model, WEAK,STRONG,RATIO, where one answer of the strong model costs as
    /// much as RATIO of the weak one's; may be given several times. Needs abilities, so not with --scored.
    #[arg(long, value_name = "WEAK,STRONG,RATIO", conflicts_with = "scored")]
    cascade: Vec<CascadeSpec>,
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
    tier_control: TierControl,
    abilities: BTreeMap<String, ModelAbility>,
    /// What gain is measured between, where the model scored the rows just now.
    gain: Option<String>,
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
    let mut rows = read_rows(&args.input)?;
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
    let register = args.sources.as_deref().map(read_register).transpose()?;
    let score = |model: &ModelArgs| Scored::now(&rows, model, args.pair.as_ref(), register.as_ref());
    let mut evaluated = match &args.scored {
        Some(path) => Scored::read(path)?,
        None => score(&args.model)?,
    };
    let mut compared = match (&args.compare, &args.against) {
        (Some(path), _) => Some(Scored::read(path)?),
        (None, Some(name)) => Some(score(&ModelArgs { model: name.clone(), ..args.model.clone() })?),
        (None, None) => None,
    };
    let options = |scored: &Scored| EvalOptions {
        pair: args.pair.as_ref().and_then(PairSpec::models),
        tier_control: scored.tier_control.clone(),
        cascades: args.cascade.clone(),
        abilities: scored.abilities.clone(),
        bootstrap: Bootstrap { n_draws: args.resamples, ..Bootstrap::default() },
        ..EvalOptions::default()
    };
    let mut evaluation = evaluate::run(&rows, &evaluated.rows, &options(&evaluated));
    if let Some(other) = &mut compared {
        tell_apart(&mut evaluated, other);
        let both = options(&evaluated);
        evaluation.comparison = Some(evaluate::compare::run(&rows, evaluated.named(), other.named(), &both));
    }
    super::print_line(&report::text(&evaluation));

    if args.json.is_some() || args.html.is_some() {
        let files = args.input.iter().chain(&args.scored).chain(&args.compare).filter(|path| path.is_file());
        let provenance = Provenance {
            inputs: files.map(|path| FileRef::of(path)).collect::<Result<_, _>>()?,
            model: evaluated.model.clone(),
            compared: compared.as_ref().and_then(|other| other.model.clone()),
            gain: evaluated.gain.clone(),
            command: super::command_line(),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        };
        if let Some(path) = &args.json {
            write(path, &report::json(&evaluation, &provenance)?)?;
        }
        if let Some(path) = &args.html {
            let others = compared.as_ref().map(|other| evaluate::run(&rows, &other.rows, &options(other)));
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
        Ok(Self {
            name,
            rows: read_scored(path)?,
            model: None,
            card: None,
            tier_control: TierControl::default(),
            abilities: BTreeMap::new(),
            gain: None,
        })
    }

    fn now(
        rows: &[Row],
        model: &ModelArgs,
        pair: Option<&PairSpec>,
        register: Option<&Register>,
    ) -> anyhow::Result<Self> {
        let classifier = model.load()?;
        let (pair, gain) = gain_pair(rows, pair, &classifier);
        eprintln!("gain is that of {gain}");
        let texts = rows.iter().map(|row| (row.id.as_str(), row.text.as_str()));
        let options = ScoreOptions { min_confidence: Probability::new(DEFAULT_MIN_CONFIDENCE)?, pair };
        let rows = super::score_texts(&classifier, texts, &options)?;
        let model = ModelRef::of(&classifier);
        Ok(Self {
            name: format!("{} {}", model.name, model.version),
            rows,
            model: Some(model),
            card: Some(DataCard::of(&classifier, register)),
            tier_control: classifier.tier_control().clone(),
            abilities: classifier.abilities().clone(),
            gain: Some(gain),
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
