//! `pointsman policy validate`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::print_line;
use crate::policy::{Policy, PolicyOptions, Severity, render_findings};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The document, YAML or JSON.
    path: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = &args.path;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let findings = Policy::check(&bytes, &PolicyOptions::default());
    let n_errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if !findings.is_empty() {
        print_line(&render_findings(&findings, &path.display().to_string()));
    }
    let n_warnings = findings.len() - n_errors;
    print_line(&format!("{n_errors} error(s), {n_warnings} warning(s)"));
    Ok(if n_errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
