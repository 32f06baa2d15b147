//! `pointsman robustness`: what harmless changes of a prompt change in the verdict on it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::ModelArgs;
use crate::domain::Probability;
use crate::offline::dataset::{Row, read_rows};
use crate::offline::gain::AbilityPair;
use crate::offline::metrics::Bootstrap;
use crate::offline::report::{ModelRef, robustness_text};
use crate::offline::robustness::{Changes, Trial, figures, gate, texts, trials};
use crate::offline::score::ScoreOptions;
use crate::offline::split::Split;
use crate::router::DEFAULT_MIN_CONFIDENCE;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rows, with {"id", "text"}: files or folders of JSON Lines [default: the test split of training-data/prompts].
    #[arg(long, num_args = 1..)]
    input: Vec<PathBuf>,
    /// An older classifier, a name or a directory: exit with 1 where the model is less steady than it.
    #[arg(long)]
    against: Option<String>,
    /// P(the tier suffices) that the routed tier must reach.
    #[arg(long, default_value_t = DEFAULT_MIN_CONFIDENCE)]
    min_confidence: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Where the project's own prompts are, from its root.
const OWN_PROMPTS: &str = "training-data/prompts";

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    super::set_threads(args.model.threads)?;
    let rows = rows(&args.input)?;
    if rows.is_empty() {
        bail!("no row is left to change: the input holds none");
    }
    let trials = trials(&rows);
    let min_confidence = Probability::new(args.min_confidence).context("--min-confidence")?;
    let bootstrap = Bootstrap::default();

    let (model, changes) = measure(&args.model, &trials, min_confidence)?;
    let mut models = vec![(model, figures(&changes, &bootstrap))];
    let mut gate_rows = None;
    if let Some(against) = &args.against {
        let older = ModelArgs { model: against.clone(), ..args.model.clone() };
        let (model, older) = measure(&older, &trials, min_confidence)?;
        models.push((model, figures(&older, &bootstrap)));
        gate_rows = Some(gate(&changes, &older));
    }

    let passes = gate_rows.as_ref().is_none_or(|rows| rows.iter().all(|row| row.passes));
    super::print_line(&if args.json {
        let models: Vec<_> = models
            .iter()
            .map(|(model, robustness)| serde_json::json!({ "model": model, "robustness": robustness }))
            .collect();
        let gate = gate_rows.map(|rows| serde_json::json!({ "passes": passes, "rows": rows }));
        let report = serde_json::json!({
            "schema": "pointsman.robustness/v1",
            "command": super::command_line(),
            "min_confidence": args.min_confidence,
            "models": models,
            "gate": gate,
        });
        serde_json::to_string_pretty(&report)?
    } else {
        robustness_text(&models, gate_rows.as_deref())
    });
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rows(input: &[PathBuf]) -> anyhow::Result<Vec<Row>> {
    if input.is_empty() {
        let mut rows = read_rows(&[OWN_PROMPTS]).context("give --input, or run from the project's root")?;
        rows.retain(|row| Split::of(&row.id) == Split::Test);
        return Ok(rows);
    }
    Ok(read_rows(input)?)
}

fn measure(model: &ModelArgs, trials: &[Trial], min_confidence: Probability) -> anyhow::Result<(ModelRef, Changes)> {
    let classifier = model.load()?;
    let pair = AbilityPair::reference(classifier.reference_pair(), classifier.abilities());
    let scored = super::score_texts(&classifier, texts(trials), &ScoreOptions { min_confidence, pair })?;
    let changes = Changes::of(trials, &scored);
    Ok((ModelRef::of(&classifier), changes))
}
