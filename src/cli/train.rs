//! `pointsman train`: heads for any label set, and where asked the encoder under them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use indicatif::{ProgressBar, ProgressStyle};

use crate::artifact::default_roots;
use crate::classifier::{Classifier, LoadOptions};
use crate::encoder::{Precision, Tuning, available_threads, open_device};
use crate::offline::train::{Recipe, TrainOptions, TrainReport, train};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files or folders of JSON Lines rows: {"id", "text", "intent" | "task", "tier", "outcomes"}.
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Model directory to write; its last part becomes the classifier's name.
    #[arg(long)]
    out: PathBuf,
    /// Weights, caps and label mapping (TOML); see training-data/README.md.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Which parts of the encoder are trained: frozen, lora:RANK, top:LAYERS or all; replaces the recipe's.
    #[arg(long)]
    tune: Option<Tuning>,
    /// Classifier (a name or a directory) whose tuned encoder is taken as it is; only heads are fitted then.
    #[arg(long, conflicts_with_all = ["tune", "checkpoint", "log"])]
    tuned_as: Option<String>,
    /// Folder that keeps the state of the encoder's training after each pass; a run that was cut off goes on there.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// File that gets a JSON line for each pass of the encoder's training.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Base encoder: a name or a directory.
    #[arg(long, default_value = "all-MiniLM-L6-v2")]
    encoder: String,
    /// Where models are looked up by name [default: ./models, then beside the executable].
    #[arg(long, env = "POINTSMAN_MODELS_DIR")]
    models_dir: Option<PathBuf>,
    /// Sequence limit in word pieces.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Folder that keeps embeddings between runs.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Classifier whose difficulty head is kept when no row has a tier or outcomes.
    #[arg(long, default_value = "default")]
    base: String,
    /// Sources to keep out of training and to report on, for leave-one-source-out tables.
    #[arg(long, value_delimiter = ',')]
    leave_out: Vec<String>,
    /// Language models whose answers nothing is learnt from, to measure pairs that were never seen.
    #[arg(long, value_delimiter = ',')]
    leave_out_models: Vec<String>,
    /// Seed of every random choice; replaces the recipe's.
    #[arg(long)]
    seed: Option<u64>,
    /// Version to write into the manifest.
    #[arg(long = "model-version", default_value = "1")]
    version: String,
    /// cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads that train [default: one per core].
    #[arg(long)]
    threads: Option<usize>,
    /// What candle reads the number of its threads from; where it is not set, the process starts itself anew with it.
    #[arg(long, env = CANDLE_THREADS, hide = true)]
    candle_threads: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.candle_threads.is_none() {
        return start_anew();
    }
    let cores = available_threads();
    super::set_threads(Some(args.threads.unwrap_or(cores)))?;
    let mut recipe = match &args.recipe {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            toml::from_str(&text).with_context(|| format!("{} is not a recipe", path.display()))?
        }
        None => Recipe::default(),
    };
    recipe.leave_out.extend(args.leave_out.iter().cloned());
    recipe.leave_out_models.extend(args.leave_out_models.iter().cloned());
    recipe.seed = args.seed.unwrap_or(recipe.seed);
    recipe.encoder.tune = args.tune.unwrap_or(recipe.encoder.tune);
    let options = TrainOptions {
        data: args.data.clone(),
        recipe,
        encoder: args.encoder.clone(),
        roots: default_roots(args.models_dir.as_deref()),
        max_tokens: args.max_tokens,
        tuned_as: args.tuned_as.clone(),
        checkpoint_dir: args.checkpoint.clone(),
        log: args.log.clone(),
        cache_dir: args.cache.clone(),
        base: args.base.clone(),
        out: args.out.clone(),
        version: args.version.clone(),
        command: super::command_line(),
        device: open_device(&args.device)?,
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} {eta}")?);
    let report = train(&options, &|stage, done, total| {
        bar.set_message(stage.to_owned());
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    // What it says now is what every later load compares with.
    super::seal::seal(&Classifier::load(&LoadOptions {
        name: args.out.display().to_string(),
        roots: options.roots.clone(),
        max_tokens: None,
        device: options.device.clone(),
        precision: Precision::Auto,
        isa: None,
        threads: available_threads(),
    })?)?;
    super::print_line(&render(&report));
    super::print_line(&format!("wrote {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// Starts this process anew with candle's own threads off.
///
/// Training gives each core rows of its own, and candle's threads would only stand in their way; it takes their
/// number from the environment alone, where nothing but a new process can safely put it.
fn start_anew() -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    let this = std::env::current_exe().context("cannot find this program to start it anew")?;
    let mut again = std::process::Command::new(this);
    again.args(std::env::args_os().skip(1)).env(CANDLE_THREADS, "1").envs(KEEP_MEMORY);
    // Returns only when it fails.
    Err(again.exec()).context("cannot start this program anew with one thread for candle")
}

/// What candle reads the number of its threads from.
const CANDLE_THREADS: &str = "RAYON_NUM_THREADS";

/// Makes glibc keep the memory of large tensors: every step wants the same sizes again, and giving pages back to take
/// them anew costs a seventh of the time. Means nothing to other C libraries.
const KEEP_MEMORY: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "4294967296"),
    ("MALLOC_TRIM_THRESHOLD_", "8589934592"),
    ("MALLOC_TOP_PAD_", "268435456"),
];

fn render(report: &TrainReport) -> String {
    let mut sections = vec![format!("rows {:?}", report.rows)];
    let mut intent = table(["intent", "F1"]);
    for (label, f1) in &report.intent_f1 {
        intent.add_row([label.clone(), format!("{f1:.3}")]);
    }
    // A hundred labels tell nobody anything on a terminal.
    if report.intent_f1.len() <= 30 {
        sections.push(intent.to_string());
    }
    let mut sources = table(["source (test rows)", "intent accuracy", "rows"]);
    for (source, (accuracy, n)) in &report.intent_by_source {
        sources.add_row([source.clone(), format!("{accuracy:.3}"), n.to_string()]);
    }
    sections.push(sources.to_string());
    sections.push(format!("intent macro-F1 {:.3}", report.intent_macro_f1));
    if !report.intent_calibrators.is_empty() {
        let mut calibrators = table(["calibrator of intent", "log-loss, cross-validated", "ECE"]);
        for candidate in &report.intent_calibrators {
            calibrators.add_row([
                candidate.method.to_owned(),
                format!("{:.4}", candidate.log_loss),
                format!("{:.4}", candidate.calibration_error),
            ]);
        }
        sections.push(calibrators.to_string());
    }
    for (sign, auroc) in &report.out_of_scope_auroc {
        sections.push(format!("out-of-scope AUROC by {sign} {auroc:.4}"));
    }
    if !report.difficulty_auroc.is_empty() {
        let mut auroc = table(["source (test rows)", "AUROC difficulty", "AUROC length", "rows"]);
        for (source, (difficulty, length, n)) in &report.difficulty_auroc {
            auroc.add_row([source.clone(), format!("{difficulty:.3}"), format!("{length:.3}"), n.to_string()]);
        }
        sections.push(auroc.to_string());
    }
    if let Some(accuracy) = report.tier_accuracy {
        sections.push(format!("tier accuracy {accuracy:.3}"));
    }
    for (head, error) in &report.calibration_error {
        sections.push(format!("expected calibration error of {head}: {error:.3}"));
    }
    if let Some((error, n)) = report.tier_cross_fitted {
        sections.push(format!("expected calibration error of tier, cross-fitted over {n} rows: {error:.3}"));
    }
    sections.join("\n")
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    table
}
