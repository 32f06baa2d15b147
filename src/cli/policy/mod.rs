//! `pointsman policy`: one file per subcommand.

mod remote;
mod show;
mod sign;
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
    /// Show the policy of a running service, the state of its source, and what can be gone back to.
    Status(remote::StatusArgs),
    /// Make a document the current one at a running service's source.
    Publish(remote::PublishArgs),
    /// Make an earlier version the current one.
    Rollback(remote::RollbackArgs),
    /// Turn a provider on or off everywhere.
    Provider(remote::ProviderArgs),
    /// Make a key to sign policies with.
    Keygen(sign::KeygenArgs),
    /// Sign a document.
    Sign(sign::SignArgs),
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Show(args) => Ok(show::run(args)),
        Command::Validate(args) => validate::run(args),
        Command::Status(args) => remote::status(args),
        Command::Publish(args) => remote::publish(args),
        Command::Rollback(args) => remote::rollback(args),
        Command::Provider(args) => remote::provider(args),
        Command::Keygen(args) => sign::keygen(args),
        Command::Sign(args) => sign::sign(args),
    }
}
