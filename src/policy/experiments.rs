//! What can be wrong with experiments, and what is odd about them.

use crate::rules::Path;

use super::document::{Document, EscalationSpec, LayerSpec, ThresholdsSpec};
use super::experiment::{CONTROL, ExperimentKind, ExperimentSpec};
use super::finding::{FindingCode, did_you_mean};
use super::validate::{Reporter, WEIGHT_TOLERANCE};

/// Errors of one experiment, its arms' overrides apart.
pub(super) fn check_experiment(experiment: &ExperimentSpec, at: &Path, report: &mut Reporter<'_>) {
    let arms = at.then("arms");
    let n = experiment.arms.len();
    let kind = experiment.kind.as_str();
    let fits = match experiment.kind {
        ExperimentKind::Ab => n >= 2,
        ExperimentKind::Canary | ExperimentKind::Shadow => n == 1,
    };
    if !fits {
        let asked = if experiment.kind == ExperimentKind::Ab { "two arms or more" } else { "exactly one arm" };
        report.add(FindingCode::BadExperiment, &arms, format!("an experiment of kind {kind} has {asked}, not {n}"));
    }
    for name in experiment.arms.keys().filter(|name| name.trim().is_empty()) {
        report.add(FindingCode::BadExperiment, &arms.then(name.as_str()), "the name must not be empty");
    }
    if experiment.kind != ExperimentKind::Ab && experiment.arms.contains_key(CONTROL) {
        let message = format!("{CONTROL:?} is what the other requests are called; give the arm another name");
        report.add(FindingCode::BadExperiment, &arms.then(CONTROL), message);
    }
    check_ramp(experiment, at, report);
    check_weights(experiment, at, report);
}

fn check_ramp(experiment: &ExperimentSpec, at: &Path, report: &mut Reporter<'_>) {
    let Some(ramp) = &experiment.ramp else { return };
    if experiment.kind != ExperimentKind::Canary {
        let message = format!("only a canary has a ramp, not an experiment of kind {}", experiment.kind.as_str());
        report.add(FindingCode::BadExperiment, &at.then("ramp"), message);
    }
    if ramp.end <= ramp.start {
        let message = format!("the ramp ends at {}, which is not after its start at {}", ramp.end, ramp.start);
        report.add(FindingCode::OutOfRange, &at.then("ramp").then("end"), message);
    }
}

fn check_weights(experiment: &ExperimentSpec, experiment_at: &Path, report: &mut Reporter<'_>) {
    let kind = experiment.kind.as_str();
    // One that could not be read was reported.
    let has_broken_ramp = report.is_broken(&experiment_at.then("ramp"));
    let arms = &experiment_at.then("arms");
    for (name, arm) in &experiment.arms {
        let at = arms.then(name.as_str()).then("weight");
        match (arm.weight, experiment.kind) {
            (Some(_), ExperimentKind::Canary) if experiment.ramp.is_some() => {
                report.add(FindingCode::BadExperiment, &at, "the ramp says the share; drop one of them");
            }
            (Some(weight), _) if !(0.0..=1.0).contains(&weight) => {
                report.add(FindingCode::BadWeights, &at, format!("weight {weight} is not within 0 to 1"));
            }
            (None, ExperimentKind::Ab) => {
                let message = "an arm needs a weight, its share of requests";
                report.add(FindingCode::BadWeights, &arms.then(name.as_str()), message);
            }
            (None, ExperimentKind::Canary) if experiment.ramp.is_none() && !has_broken_ramp => {
                let message = format!("a {kind} needs a ramp, or a weight for a fixed share");
                report.add(FindingCode::BadExperiment, &arms.then(name.as_str()), message);
            }
            _ => {}
        }
    }
    let n = experiment.arms.len();
    let weights = || experiment.arms.values().filter_map(|arm| arm.weight);
    let sum: f64 = weights().sum();
    let each = weights().count() == n && weights().all(|weight| (0.0..=1.0).contains(&weight));
    if experiment.kind == ExperimentKind::Ab && n > 0 && each && (sum - 1.0).abs() > WEIGHT_TOLERANCE {
        report.add(FindingCode::BadWeights, arms, format!("the weights sum to {sum:.3}; they must sum to 1"));
    }
}

/// Warnings on experiments, one by one and against each other.
pub(super) fn lint_experiments(document: &Document, report: &mut Reporter<'_>) {
    let section = Path::default().then("experiments");
    let enabled = || document.experiments.iter().filter(|(_, experiment)| experiment.enabled);
    for (position, (name, experiment)) in enabled().enumerate() {
        let at = section.then(name.as_str());
        let changes = experiment.arms.values().any(|arm| arm.layer != LayerSpec::default());
        if !changes && !experiment.arms.is_empty() {
            let message = "no arm changes anything, so nothing is compared";
            report.add(FindingCode::ExperimentWithoutEffect, &at.then("arms"), message);
        }
        for role in experiment.roles.iter().flatten() {
            let known =
                || document.roles.keys().chain(document.tenants.values().flat_map(|tenant| tenant.roles.keys()));
            if !role.is_empty() && !known().any(|known| known == role) {
                let near = did_you_mean(role, known().map(String::as_str));
                let message = format!("role {role:?} is not in the policy, so no request has it{near}");
                report.add(FindingCode::UnknownRole, &at.then("roles"), message);
            }
        }
        for (earlier_name, earlier) in enabled().take(position) {
            let serving = [earlier, experiment].iter().all(|one| one.kind != ExperimentKind::Shadow);
            if !serving
                || !meet(earlier.tenants.as_ref(), experiment.tenants.as_ref())
                || !meet(earlier.roles.as_ref(), experiment.roles.as_ref())
            {
                continue;
            }
            let (before, own) = (touched(earlier), touched(experiment));
            if let Some(what) = own.iter().find(|what| before.contains(what)) {
                let message =
                    format!("experiment {earlier_name:?} changes {what} too; where both apply, {earlier_name:?} wins");
                report.add(FindingCode::ExperimentOverlap, &at.then("arms"), message);
            }
        }
    }
}

/// Whether one name is in both lists; an absent list has every name.
fn meet(a: Option<&Vec<String>>, b: Option<&Vec<String>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.iter().any(|name| b.contains(name)),
        _ => true,
    }
}

/// What the arms of an experiment change, as a document calls it.
fn touched(experiment: &ExperimentSpec) -> Vec<String> {
    let mut touched = Vec::new();
    for layer in experiment.arms.values().map(|arm| &arm.layer) {
        touched.extend(layer.chains.keys().map(|name| format!("chain {name}")));
        for (changes, what) in [
            (layer.chain.is_some(), "chain"),
            (!layer.routes.is_empty(), "routes"),
            (layer.thresholds != ThresholdsSpec::default(), "thresholds"),
            (layer.escalation != EscalationSpec::default(), "escalation"),
            (!layer.fan_out.is_empty(), "fan_out"),
        ] {
            if changes {
                touched.push(what.to_owned());
            }
        }
    }
    touched
}
