//! `pointsman policy show`.

use std::process::ExitCode;

use super::{Format, PolicyArgs};
use crate::cli::print_line;
use crate::policy::{DEFAULT_DOCUMENT, to_yaml};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    policy: PolicyArgs,
    /// The embedded default document, as it is written.
    #[arg(long, conflicts_with_all = ["path", "tenant", "role", "environment", "format"])]
    default: bool,
    /// What applies to this tenant's requests, its overrides merged in.
    #[arg(long, default_value = "")]
    tenant: String,
    /// What applies to this role's requests.
    #[arg(long, default_value = "")]
    role: String,
    /// YAML, or JSON.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.default {
        print_line(DEFAULT_DOCUMENT.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let policy = args.policy.load()?;
    let document = serde_json::to_value(policy.effective(&args.tenant, &args.role)?)?;
    print_line(&match args.format {
        Format::Text => to_yaml(&document).trim_end().to_owned(),
        Format::Json => format!("{document:#}"),
    });
    Ok(ExitCode::SUCCESS)
}
