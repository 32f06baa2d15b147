//! `pointsman calibrate`: what outcomes say of a policy, and a candidate that takes it up.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::policy::{load, read_log};
use crate::domain::OutcomeReport;
use crate::offline::calibrate::{Calibration, candidate, candidate_value, run as calibrate};
use crate::offline::metrics::{Bootstrap, Estimate};
use crate::offline::off_policy::PolicyValue;
use crate::policy::{Policy, PolicyOptions, to_yaml};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Outcome logs: files, or folders whose *.jsonl are read. One object a line: decision_id, model, score or failure,
    /// and more.
    #[arg(long, required = true, num_args = 1..)]
    outcomes: Vec<PathBuf>,
    /// Decision logs: files, or folders whose *.jsonl are read.
    #[arg(long, required = true, num_args = 1..)]
    decisions: Vec<PathBuf>,
    /// The policy that decided.
    #[arg(long)]
    policy: PathBuf,
    /// Write the candidate policy here: abilities and min_confidence as found, the rest as it was.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Resamples behind each 95 % interval.
    #[arg(long, default_value_t = 1_000)]
    resamples: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    found: &'a Calibration,
    /// What the candidate would have earned in mean score.
    candidate_value: &'a PolicyValue,
    malformed_lines: u64,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = read_log(&args.decisions)?;
    let (outcomes, malformed) = read_outcomes(&args.outcomes)?;
    if outcomes.is_empty() || log.records.is_empty() {
        bail!("{} decisions and {} outcomes; nothing can be learnt from that", log.records.len(), outcomes.len());
    }
    let policy = load(&args.policy, None)?;
    let bootstrap = Bootstrap { n_draws: args.resamples, ..Bootstrap::default() };
    let found = calibrate(&log, &outcomes, &policy, &bootstrap);
    let document = to_yaml(&serde_json::to_value(candidate(&found, &policy))?);
    let tried = Policy::load(document.as_bytes(), &PolicyOptions::default());
    let tried =
        Arc::new(tried.context("the candidate is no valid policy; abilities may have changed places on the ladder")?);
    let value = candidate_value(&log, &outcomes, (&policy, &tried), &bootstrap);
    let report = Report { found: &found, candidate_value: &value, malformed_lines: malformed + log.malformed };
    super::print_line(&if args.json { serde_json::to_string_pretty(&report)? } else { render(&report)? });
    if let Some(path) = &args.output {
        std::fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}; try it: pointsman policy simulate --log ... --candidate {0}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn read_outcomes(paths: &[PathBuf]) -> anyhow::Result<(Vec<OutcomeReport>, u64)> {
    let (mut outcomes, mut malformed) = (Vec::new(), 0);
    for path in paths {
        for file in super::policy::log_files(path)? {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            for line in String::from_utf8_lossy(&bytes).lines().filter(|line| !line.trim().is_empty()) {
                match serde_json::from_str(line) {
                    Ok(outcome) => outcomes.push(outcome),
                    Err(_) => malformed += 1,
                }
            }
        }
    }
    Ok((outcomes, malformed))
}

fn render(report: &Report<'_>) -> Result<String, std::fmt::Error> {
    let (found, value) = (report.found, report.candidate_value);
    let counts = &found.counts;
    let mut out = String::new();
    writeln!(
        out,
        "{} outcomes of {} decisions: {} graded first attempts, {} later ones; left out {} not graded, {} not classified, \
         {} of unknown decisions, {} malformed lines",
        counts.outcomes,
        counts.decisions,
        counts.first_attempts,
        counts.later_attempts,
        counts.not_graded,
        counts.not_classified,
        counts.unknown,
        report.malformed_lines
    )?;
    writeln!(out, "\nability, 95 % interval")?;
    for model in &found.models {
        let before = model.before.map_or_else(|| "none".to_owned(), |before| format!("{before:.2}"));
        let [low, high] = model.interval;
        let biased = if model.biased { ", of later attempts too: looks weaker than it is, not taken up" } else { "" };
        let (name, fit) = (&model.model, &model.fit);
        writeln!(
            out,
            "  {name}: {:.2} [{low:.2}, {high:.2}], {} answers, {before} in the policy{biased}",
            fit.ability, fit.answers
        )?;
    }
    if let Some(success) = &found.success {
        writeln!(
            out,
            "\nP(success) over {} first attempts: predicted {:.3}, observed {}, calibration error {:.3}",
            success.n,
            success.predicted,
            shown(success.observed),
            success.calibration_error
        )?;
        writeln!(
            out,
            "  recalibration: intercept {} and slope {}; 0 and 1 are perfect",
            shown(success.intercept),
            shown(success.slope)
        )?;
        if let Some(shift) = success.shift {
            writeln!(out, "  drift of calibration, later half less earlier half: {}", shown(shift))?;
        }
    }
    if let Some(threshold) = &found.min_confidence {
        writeln!(
            out,
            "\nmin_confidence {:.2}: {:.3} of answers were good where the tier had it; {} would have kept it",
            threshold.asked,
            threshold.observed,
            shown(threshold.suggested)
        )?;
    }
    writeln!(out, "\npopulation stability, later half against earlier half")?;
    for drift in &found.drift {
        let (signal, psi, chance) = (drift.signal, drift.stability, drift.by_chance);
        writeln!(out, "  {signal}: {psi:.3} (about {chance:.3} by chance; 0.25 is another population)")?;
    }
    let estimate = |estimate: Option<Estimate>| estimate.map_or_else(|| "not known".to_owned(), shown);
    writeln!(out, "\nmean score of first attempts, and what the candidate's would be ({} decisions)", value.n)?;
    writeln!(out, "  logged              {}", estimate(value.logged))?;
    writeln!(out, "  doubly robust       {}", estimate(value.doubly_robust))?;
    writeln!(out, "  inverse propensity  {}", estimate(value.inverse_propensity))?;
    write!(
        out,
        "  the same, weights summing to one {}; the candidate chooses the same in {:.1} %",
        estimate(value.self_normalised),
        100.0 * value.overlap
    )?;
    Ok(out)
}

fn shown(estimate: Estimate) -> String {
    format!("{:.3} [{:.3}, {:.3}]", estimate.value, estimate.low, estimate.high)
}
