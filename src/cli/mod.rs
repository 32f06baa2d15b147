//! The command line: one file per subcommand.

mod import;
mod policy;
mod route;
mod serve;
mod train;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

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
    /// Train heads for a label set on a frozen encoder.
    Train(train::Args),
    /// Convert an encoder in Hugging Face layout into a model directory.
    Import(import::Args),
}

/// Exit code for a command line or configuration that cannot be used (`EX_USAGE`).
pub const EX_USAGE: u8 = 64;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Route(args) => route::route(*args),
        Command::Classify(args) => route::classify(*args),
        Command::Policy(args) => policy::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Import(args) => import::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The asynchronous runtime, and the pool of `threads` that the encoder's matrix products run on.
fn runtime(threads: Option<usize>) -> anyhow::Result<tokio::runtime::Runtime> {
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .context("cannot set the number of compute threads")?;
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Prints one line of a command's result; a closed pipe (`| head`) is not an error.
#[expect(clippy::let_underscore_must_use, reason = "nobody is left to tell when standard output is closed")]
fn print_line(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}
