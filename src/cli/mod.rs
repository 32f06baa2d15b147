//! The command line: one file per subcommand.

mod import;
mod train;

use std::process::ExitCode;

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
    /// Convert an encoder in Hugging Face layout into a model directory.
    Import(import::Args),
    /// Train heads for a label set on a frozen encoder.
    Train(train::Args),
}

/// Exit code for a command line or configuration that cannot be used (`EX_USAGE`).
pub const EX_USAGE: u8 = 64;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Import(args) => import::run(&args),
        Command::Train(args) => train::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line of a command's result; a closed pipe (`| head`) is not an error.
#[expect(clippy::let_underscore_must_use, reason = "nobody is left to tell when standard output is closed")]
fn print_line(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}
