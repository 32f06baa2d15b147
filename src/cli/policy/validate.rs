//! `pointsman policy validate`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{Format, read};
use crate::cli::print_line;
use crate::policy::{Finding, Policy, PolicyOptions, Severity, render_findings};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The document, YAML or JSON.
    #[arg(value_name = "POLICY")]
    path: PathBuf,
    /// The environment that has to be in it [default: none].
    #[arg(long, env = "POINTSMAN_ENVIRONMENT")]
    environment: Option<String>,
    /// Lines for people, or one JSON object.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = PolicyOptions { environment: args.environment.clone(), ..PolicyOptions::default() };
    let findings = Policy::check(&read(&args.path)?, &options);
    let valid = findings.iter().all(|finding| finding.severity != Severity::Error);
    print_line(&match args.format {
        Format::Text => render_findings(&findings, &args.path.display().to_string()).trim_end().to_owned(),
        Format::Json => {
            // A document that is not valid can still be in force, less what some tenants override.
            let usable = !findings.iter().any(Finding::refuses_document);
            format!("{:#}", json!({"valid": valid, "usable": usable, "findings": findings}))
        }
    });
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
