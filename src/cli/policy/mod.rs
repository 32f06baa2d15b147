//! `pointsman policy`: one file per subcommand.

mod show;
mod validate;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a policy document.
    Show(show::Args),
    /// Check a policy document; exit 0 when it can be used, 1 when not.
    Validate(validate::Args),
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Show(args) => show::run(args),
        Command::Validate(args) => validate::run(args),
    }
}
