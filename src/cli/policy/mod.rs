//! `pointsman policy`: one file per subcommand.

mod diff;
mod explain;
mod remote;
mod schema;
mod show;
mod sign;
mod simulate;
mod validate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};

pub(super) use simulate::{log_files, read_log};

use crate::policy::{DEFAULT_DOCUMENT, Policy, PolicyOptions, render_findings};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a policy document, or what of it applies to a tenant and role.
    Show(show::Args),
    /// Check a policy document; exit 0 when it has no error, 1 when it has.
    Validate(validate::Args),
    /// Say what a policy decides for a kind of request, and what each filter does to each candidate.
    Explain(Box<explain::Args>),
    /// Compare two policy documents, by path and by effect; exit 0 when they are alike, 1 when not.
    Diff(diff::Args),
    /// Decide logged requests again under another policy, and tell what would change.
    Simulate(simulate::Args),
    /// Print the JSON Schema of policy documents.
    Schema,
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

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Which policy a command is about.
#[derive(Debug, clap::Args)]
struct PolicyArgs {
    /// The document, YAML or JSON [default: the embedded one].
    #[arg(value_name = "POLICY")]
    path: Option<PathBuf>,
    /// Which of its environments applies [default: none].
    #[arg(long, env = "POINTSMAN_ENVIRONMENT")]
    environment: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Show(args) => show::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Schema => Ok(schema::run()),
        Command::Status(args) => remote::status(args),
        Command::Publish(args) => remote::publish(args),
        Command::Rollback(args) => remote::rollback(args),
        Command::Provider(args) => remote::provider(args),
        Command::Keygen(args) => sign::keygen(args),
        Command::Sign(args) => sign::sign(args),
    }
}

impl PolicyArgs {
    fn load(&self) -> anyhow::Result<Arc<Policy>> {
        match &self.path {
            Some(path) => load(path, self.environment.as_deref()),
            None => compile(DEFAULT_DOCUMENT.as_bytes(), "the embedded policy", self.environment.as_deref()),
        }
    }
}

pub(super) fn load(path: &Path, environment: Option<&str>) -> anyhow::Result<Arc<Policy>> {
    compile(&read(path)?, &path.display().to_string(), environment)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn compile(bytes: &[u8], name: &str, environment: Option<&str>) -> anyhow::Result<Arc<Policy>> {
    let options = PolicyOptions { environment: environment.map(str::to_owned), ..PolicyOptions::default() };
    match Policy::load(bytes, &options) {
        Ok(policy) => Ok(Arc::new(policy)),
        Err(invalid) => anyhow::bail!("{name} has errors\n{}", render_findings(&invalid.findings, name).trim_end()),
    }
}
