//! The command line: one file per subcommand.

mod ability;
mod calibrate;
mod eval;
mod import;
mod loadgen;
mod policy;
mod robustness;
mod route;
mod score;
mod seal;
mod serve;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::artifact::default_roots;
use crate::classifier::{Classifier, LoadOptions};
use crate::config::ConfigError;
use crate::encoder::{Isa, Precision, available_threads, open_device};
use crate::offline::score::{self as scoring, ScoreOptions};
use crate::offline::scored::ScoredRow;
use crate::serve::ServeError;

/// Decides which language model should answer a query.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve decisions over gRPC.
    Serve(Box<serve::Args>),
    /// Decide for one query, without a server.
    Route(Box<route::RouteArgs>),
    /// Show the classifier's signals for one query.
    Classify(Box<route::TextArgs>),
    /// Show and check policy documents.
    Policy(policy::Args),
    /// Score a file of prompts in bulk.
    Score(score::Args),
    /// Evaluate scores against what is known of the rows.
    Eval(Box<eval::Args>),
    /// Fit a language model's ability from graded answers.
    Ability(ability::Args),
    /// Refit abilities and thresholds from decision and outcome logs.
    Calibrate(calibrate::Args),
    /// Measure what harmless changes of a prompt change, and hold a new model to an old one.
    Robustness(robustness::Args),
    /// Train heads for a label set on a frozen encoder.
    Train(Box<train::Args>),
    /// Convert an encoder in Hugging Face layout into a model directory.
    Import(import::Args),
    /// Keep what a classifier says of a few texts in its manifest, to be checked at every load.
    Seal(seal::Args),
    /// Put load on a running service and report latencies.
    Loadgen(Box<loadgen::Args>),
}

/// Exit code for a command line or configuration that cannot be used (`EX_USAGE`).
pub const EX_USAGE: u8 = 64;
/// Exit code for a model, policy, certificate or access file that cannot be used (`EX_CONFIG`).
pub const EX_CONFIG: u8 = 78;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Route(args) => route::route(*args),
        Command::Classify(args) => route::classify(*args),
        Command::Policy(args) => policy::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Ability(args) => ability::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Robustness(args) => robustness::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Seal(args) => seal::run(&args),
        Command::Loadgen(args) => loadgen::run(*args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            let usage = error.chain().any(|cause| cause.is::<ConfigError>());
            let unusable = error.downcast_ref().is_some_and(ServeError::is_configuration);
            match (usage, unusable) {
                (true, _) => ExitCode::from(EX_USAGE),
                (_, true) => ExitCode::from(EX_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Which classifier an offline command uses and where it runs.
#[derive(Clone, Debug, clap::Args)]
struct ModelArgs {
    /// Classifier: a name or a directory.
    #[arg(long, env = "POINTSMAN_MODEL", default_value = "default")]
    model: String,
    /// Where models are looked up by name [default: ./models, then beside the executable].
    #[arg(long, env = "POINTSMAN_MODELS_DIR")]
    models_dir: Option<PathBuf>,
    /// cpu or cuda:N.
    #[arg(long, env = "POINTSMAN_DEVICE", default_value = "cpu")]
    device: String,
    /// Threads for matrix products [default: one per core].
    #[arg(long, env = "POINTSMAN_THREADS")]
    threads: Option<usize>,
    /// Sequence limit in word pieces [default: the classifier's own].
    #[arg(long, env = "POINTSMAN_MAX_TOKENS")]
    max_tokens: Option<usize>,
    /// How the encoder's products are computed: auto, f32 or int8.
    #[arg(long, env = "POINTSMAN_PRECISION", default_value = "auto")]
    precision: Precision,
    /// Instruction set of 8-bit products: portable, avx2, avx-vnni or avx512-vnni [default: the best there is].
    #[arg(long, env = "POINTSMAN_ISA")]
    isa: Option<Isa>,
}

impl ModelArgs {
    fn load(&self) -> anyhow::Result<Classifier> {
        let options = LoadOptions {
            name: self.model.clone(),
            roots: default_roots(self.models_dir.as_deref()),
            max_tokens: self.max_tokens,
            device: open_device(&self.device)?,
            precision: self.precision,
            isa: self.isa,
            threads: self.threads.unwrap_or_else(available_threads),
        };
        Ok(Classifier::load(&options)?)
    }
}

/// Scores texts in memory with a progress bar on standard error.
fn score_texts<'a>(
    classifier: &Classifier,
    texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    options: &ScoreOptions,
) -> anyhow::Result<Vec<ScoredRow>> {
    let bar = indicatif::ProgressBar::new(1_000)
        .with_style(indicatif::ProgressStyle::with_template("scoring [{wide_bar}] {percent} % {eta}")?);
    let scored = scoring::score_texts(classifier, texts, options, &|share| bar.set_position((share * 1e3) as u64))?;
    bar.finish_and_clear();
    Ok(scored)
}

/// The asynchronous runtime, and the pool of `threads` that the encoder's matrix products run on.
fn runtime(threads: Option<usize>) -> anyhow::Result<tokio::runtime::Runtime> {
    set_threads(threads)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Sets the size of the pool that matrix products run on.
fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().context("cannot set the number of compute threads")
}

/// The command as it was typed, without the path of the executable.
fn command_line() -> String {
    std::iter::once("pointsman".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
}

/// Prints one line of a command's result; a closed pipe (`| head`) is not an error.
#[expect(clippy::let_underscore_must_use, reason = "nobody is left to tell when standard output is closed")]
fn print_line(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}
