//! `pointsman calibrate`: what outcomes say of a policy and of a classifier, and candidates that take it up.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::ModelArgs;
use super::policy::{load, read_log};
use crate::artifact::{Artifact, ClassifierManifest, default_roots};
use crate::decisions::{self, Lines, OUTCOMES};
use crate::domain::OutcomeReport;
use crate::offline::calibrate::{Calibration, answers, candidate, candidate_value, run as calibrate};
use crate::offline::metrics::{Bootstrap, Estimate};
use crate::offline::off_policy::PolicyValue;
use crate::offline::recalibrate::Recalibration;
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
    /// Hold the difficulty of the classifier (--model) against the outcomes too, and where held-out ones say that it is
    /// better moved, write a classifier with it here; the candidate policy goes with that one then.
    #[arg(long, value_name = "DIR")]
    model_output: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
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
    /// What outcomes say of the classifier's difficulty; absent: it was not asked for, or too few say anything.
    difficulty: Option<&'a Recalibration>,
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
    let moved = match &args.model_output {
        Some(out) => recalibrate(args, out, (&log, &outcomes), &policy, &bootstrap)?,
        None => None,
    };
    let (difficulty, seen) = moved.as_ref().map_or((None, None), |moved| (Some(&moved.found), moved.log.as_ref()));
    let seen = seen.unwrap_or(&log);
    let found = calibrate(seen, &outcomes, &policy, &bootstrap);
    let document = to_yaml(&serde_json::to_value(candidate(&found, &policy))?);
    let tried = Policy::load(document.as_bytes(), &PolicyOptions::default());
    let tried =
        Arc::new(tried.context("the candidate is no valid policy; abilities may have changed places on the ladder")?);
    let value = candidate_value((&log, seen), &outcomes, (&policy, &tried), &bootstrap);
    let malformed_lines = malformed + log.malformed;
    let report = Report { found: &found, difficulty, candidate_value: &value, malformed_lines };
    super::print_line(&if args.json { serde_json::to_string_pretty(&report)? } else { render(&report)? });
    if let Some(out) = &args.model_output {
        match &moved {
            Some(Moved { log: Some(_), .. }) => {
                eprintln!("wrote {0}; try it: pointsman serve --model {0}, with the candidate policy", out.display());
            }
            Some(_) => {
                eprintln!("held-out outcomes do not say that another difficulty is better; no classifier is written");
            }
            None => eprintln!("too few graded first attempts of this classifier to judge it; none is written"),
        }
    }
    if let Some(path) = &args.output {
        std::fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}; try it: pointsman policy simulate --log ... --candidate {0}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// What became of a classifier.
struct Moved {
    found: Recalibration,
    /// The log as it would be with the candidate; `None`: there is no better one.
    log: Option<Lines>,
}

/// Holds a classifier against outcomes and writes a better one, where there is one; `None`: too few say anything.
fn recalibrate(
    args: &Args,
    out: &Path,
    (log, outcomes): (&Lines, &[OutcomeReport]),
    policy: &Policy,
    bootstrap: &Bootstrap,
) -> anyhow::Result<Option<Moved>> {
    if out.exists() {
        bail!("{} exists; a candidate gets a folder of its own", out.display());
    }
    let roots = default_roots(args.model.models_dir.as_deref());
    let classifier = Artifact::<ClassifierManifest>::load(&args.model.model, &roots)?;
    let sha256 = &classifier.manifest_sha256;
    let answers = answers(log, outcomes, policy, sha256);
    if answers.is_empty() {
        bail!(
            "no graded answer is to a decision of classifier {:?}, whose manifest has sha256 {sha256}",
            args.model.model
        );
    }
    let Some(found) = Recalibration::of(&answers, bootstrap) else { return Ok(None) };
    if !found.better {
        return Ok(Some(Moved { found, log: None }));
    }
    let seen = found.applied(log, sha256);
    found.write(&classifier, out, "pointsman calibrate, from outcomes")?;
    // Loaded as a server would, before anybody relies on it.
    let candidate = ModelArgs { model: out.display().to_string(), ..args.model.clone() };
    super::seal::seal(&candidate.load().context("the candidate cannot be loaded")?)?;
    Ok(Some(Moved { found, log: Some(seen) }))
}

fn read_outcomes(paths: &[PathBuf]) -> anyhow::Result<(Vec<OutcomeReport>, u64)> {
    let (mut outcomes, mut malformed) = (Vec::new(), 0);
    for path in paths {
        for file in super::policy::log_files(path, OUTCOMES)? {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let read = decisions::read_outcomes(String::from_utf8_lossy(&bytes).lines());
            outcomes.extend(read.outcomes);
            malformed += read.malformed;
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
        "{} outcomes of {} decisions: {} graded first attempts, {} later ones; left out {} told twice, {} not graded, \
         {} not classified, {} of unknown decisions, {} malformed lines",
        counts.outcomes,
        counts.decisions,
        counts.first_attempts,
        counts.later_attempts,
        counts.repeated,
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
            "\nmin_confidence {:.2}: {} of {} queries were under-routed, at most {:.2} are to be; {} would have kept that",
            threshold.asked,
            shown(threshold.under_routed),
            threshold.n,
            1.0 - threshold.asked,
            shown(threshold.suggested)
        )?;
    }
    if let Some(difficulty) = report.difficulty {
        render_difficulty(&mut out, difficulty)?;
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

fn render_difficulty(out: &mut String, found: &Recalibration) -> std::fmt::Result {
    let Recalibration { fitted, held_out, scale, shift, before, after, .. } = found;
    writeln!(out, "\nthe classifier's difficulty, fitted to {fitted} answers and held against {held_out} later ones")?;
    writeln!(out, "  to be stretched by {} and raised by {} logits", shown(*scale), shown(*shift))?;
    if !found.agreed {
        writeln!(out, "  models do not agree on how much harder queries are; that is laid to their abilities")?;
    }
    for (name, of, gain) in [
        ("Brier score", [before.brier, after.brier], found.brier_gain),
        ("calibration error", [before.calibration_error, after.calibration_error], found.calibration_gain),
    ] {
        let [before, after] = of;
        writeln!(out, "  {name} of P(success) {before:.4}, with it {after:.4}: better by {}", shown(gain))?;
    }
    let verdict = if found.better { "a classifier with it is written" } else { "it stays as it is" };
    writeln!(out, "  {verdict}")
}

fn shown(estimate: Estimate) -> String {
    format!("{:.3} [{:.3}, {:.3}]", estimate.value, estimate.low, estimate.high)
}
