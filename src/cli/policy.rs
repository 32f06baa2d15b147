//! `pointsman policy`: show and check policy documents.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use crate::policy::{DEFAULT_DOCUMENT, Policy, PolicyOptions, Severity, render_findings};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a policy document.
    Show {
        /// The embedded default document.
        #[arg(long, required = true)]
        default: bool,
    },
    /// Check a policy document; exit 0 when it can be used, 1 when not.
    Validate {
        /// The document, YAML or JSON.
        path: PathBuf,
    },
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Show { .. } => {
            super::print_line(DEFAULT_DOCUMENT.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Validate { path } => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let findings = Policy::check(&bytes, &PolicyOptions::default());
            let n_errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
            if !findings.is_empty() {
                super::print_line(&render_findings(&findings, &path.display().to_string()));
            }
            let n_warnings = findings.len() - n_errors;
            super::print_line(&format!("{n_errors} error(s), {n_warnings} warning(s)"));
            Ok(if n_errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
