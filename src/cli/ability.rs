//! `pointsman ability`: how capable a language model is, on the scale of the classifier.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::ModelArgs;
use crate::artifact::ModelAbility;
use crate::domain::{ClassifierRef, Probability};
use crate::offline::ability::{AbilityFit, GradedRow, answers_by_model, fit};
use crate::offline::dataset::read_lines;
use crate::offline::gain::AbilityPair;
use crate::offline::score::ScoreOptions;
use crate::router::DEFAULT_MIN_CONFIDENCE;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fit abilities from graded answers and print them as a policy document takes them.
    Fit(FitArgs),
}

#[derive(Debug, clap::Args)]
struct FitArgs {
    /// JSON Lines: {"id", "text", "outcomes": {model: score}} or, for one model, {"id", "text", "score"}; scores 0..1.
    #[arg(long)]
    outcomes: PathBuf,
    /// The model that rows with a "score" are about; of rows with "outcomes", only this model is fitted.
    #[arg(long)]
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    classifier: &'a ClassifierRef,
    n_rows: usize,
    n_not_scored: usize,
    models: Vec<Fitted>,
}

#[derive(Serialize)]
struct Fitted {
    model: String,
    #[serde(flatten)]
    fit: AbilityFit,
    /// What the classifier was trained with, where it knows the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_classifier: Option<ModelAbility>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Fit(args) = &args.command;
    super::set_threads(args.model.threads)?;
    let rows: Vec<GradedRow> = read_lines(&args.outcomes)?;
    let classifier = args.model.load()?;
    let options = ScoreOptions {
        min_confidence: Probability::saturating(DEFAULT_MIN_CONFIDENCE),
        pair: AbilityPair::reference(classifier.reference_pair(), classifier.abilities()),
    };
    let texts = rows.iter().map(|row| (row.id.as_str(), row.text.as_str()));
    let scored = super::score_texts(&classifier, texts, &options)?;
    let models = answers_by_model(&rows, &scored, args.name.as_deref())?
        .into_iter()
        .map(|(model, answers)| Fitted {
            fit: fit(&answers),
            in_classifier: classifier.abilities().get(&model).copied(),
            model,
        })
        .collect();
    let n_not_scored = scored.iter().filter(|row| row.result.is_err()).count();
    let report = Report { classifier: classifier.reference(), n_rows: rows.len(), n_not_scored, models };
    super::print_line(&if args.json { serde_json::to_string_pretty(&report)? } else { render(&report) });
    Ok(ExitCode::SUCCESS)
}

/// Lines of a policy document, and what else is known as comments.
fn render(report: &Report<'_>) -> String {
    let classifier = report.classifier;
    let mut lines = Vec::new();
    if report.n_not_scored > 0 {
        lines
            .push(format!("# {} of {} rows could not be scored and count nowhere", report.n_not_scored, report.n_rows));
    }
    for Fitted { model, fit, in_classifier } in &report.models {
        lines.push(format!("# {model}: {:.0} % right", 100.0 * fit.mean_score));
        if let Some(ModelAbility { ability, standard_error, answers }) = in_classifier {
            let text = format!("{ability:.2} ± {standard_error:.2} from {answers} answers");
            lines.push(format!("# the classifier was trained with {text}"));
        }
        lines.extend(fit.warnings.iter().map(|warning| format!("# warning: {warning}")));
        lines.push(format!(
            "ability: {:.2}  # ± {:.2} (1 s.e.), {} answers, classifier {} {}",
            fit.ability, fit.standard_error, fit.answers, classifier.name, classifier.version
        ));
    }
    lines.join("\n")
}
