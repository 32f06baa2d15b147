//! `pointsman policy simulate`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::{Format, load};
use crate::cli::{command_line, print_line};
use crate::decisions::{Baseline, Lines, read_lines, simulate};
use crate::offline::report::{simulation_html, simulation_text};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Decision logs: files, or folders whose *.jsonl are read in the order of their names.
    #[arg(long, required = true, num_args = 1..)]
    log: Vec<PathBuf>,
    /// The policy to try.
    #[arg(long)]
    candidate: PathBuf,
    /// Compare with what this policy would have decided [default: with what was decided and logged].
    #[arg(long)]
    current: Option<PathBuf>,
    /// Which environment applies [default: the one the decisions were made in].
    #[arg(long, env = "POINTSMAN_ENVIRONMENT")]
    environment: Option<String>,
    /// Write the report as one HTML file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Tables for people, or one JSON object.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = read_log(&args.log)?;
    let environment = match &args.environment {
        Some(environment) => Some(environment.clone()),
        None => logged_environment(&log)?,
    };
    let candidate = load(&args.candidate, environment.as_deref())?;
    let current = args.current.as_deref().map(|path| load(path, environment.as_deref())).transpose()?;
    let report = simulate(&log, &candidate, current.as_ref().map_or(Baseline::Logged, Baseline::Policy));
    if let Some(path) = &args.html {
        let date = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let page = simulation_html(&report, &date, &command_line());
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print_line(&match args.format {
        Format::Text => simulation_text(&report),
        Format::Json => serde_json::to_string_pretty(&report)?,
    });
    Ok(ExitCode::SUCCESS)
}

/// The lines of decision logs, of files and folders.
pub(in crate::cli) fn read_log(paths: &[PathBuf]) -> anyhow::Result<Lines> {
    let mut log = Lines::default();
    for path in paths.iter().map(|path| log_files(path)).collect::<anyhow::Result<Vec<_>>>()?.concat() {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // A line that was cut off in the middle of a character is malformed and no reason to stop.
        let text = String::from_utf8_lossy(&bytes);
        let Lines { records, escalations, contexts, malformed } = read_lines(text.lines());
        log.records.extend(records);
        log.escalations.extend(escalations);
        log.contexts.extend(contexts);
        log.malformed += malformed;
    }
    Ok(log)
}

/// The files of a log in the order they were written: itself, or those of a folder.
pub(in crate::cli) fn log_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(path);
        }
    }
    // The file that still grows has the shortest name and is the latest.
    files.sort_by_key(|file| (file.file_stem().is_some_and(|stem| stem == "decisions"), file.clone()));
    Ok(files)
}

/// The one environment of all decisions.
fn logged_environment(log: &Lines) -> anyhow::Result<Option<String>> {
    let environments: BTreeSet<Option<String>> =
        log.contexts.values().map(|context| context.environment.clone()).collect();
    if environments.len() > 1 {
        bail!("the log has decisions of several environments; say with --environment which one to simulate");
    }
    Ok(environments.into_iter().next().flatten())
}
