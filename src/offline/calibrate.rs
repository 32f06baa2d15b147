//! What outcomes say of a policy: abilities, calibration, thresholds, drift, and what the candidate would have earned.
//!
//! A decision log says what was predicted and chosen, an outcome log what came of it. An answer's score counts as how
//! good it was; one that was refused, cut off or did not parse counts as 0; one that never came says nothing of the
//! model's ability and is left out. Abilities and calibration are taken from first attempts alone where there are enough:
//! an answer that was asked for after another had failed is to a harder query than the classifier thought.

mod threshold;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use super::ability::{AbilityFit, GradedAnswer, fit};
use super::gain::latent;
use super::metrics::{Bootstrap, Estimate, ReliabilityBin, expected_calibration_error, mean, reliability};
use super::off_policy::{LoggedReward, PolicyValue, value};
use super::recalibrate::{Answer, is_of};
use crate::decisions::{DecisionRecord, Lines, Outcome, SignalCounts, StepRecord, replay, replay_arms};
use crate::domain::{Attempt, OutcomeReport, Probability};
use crate::policy::{Document, Policy};
pub use threshold::ThresholdFinding;

/// Everything that the logs say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// What could be used.
    pub counts: LogCounts,
    /// By model, those of the policy that have graded answers.
    pub models: Vec<ModelFinding>,
    /// How honest P(success) was; `None`: too few answers.
    pub success: Option<SuccessFinding>,
    /// The level that would have kept what the policy asks; `None`: too few answers, or no level would.
    pub min_confidence: Option<ThresholdFinding>,
    /// The later half of the log against the earlier one, by signal.
    pub drift: Vec<DriftFinding>,
}

/// What could be used of the logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LogCounts {
    /// Decisions in the log.
    pub decisions: usize,
    /// Outcomes in the log.
    pub outcomes: usize,
    /// Outcomes that were told before.
    pub repeated: usize,
    /// Outcomes of decisions that the log does not have.
    pub unknown: usize,
    /// Outcomes that say nothing of an answer: the model was unavailable, or nobody scored it.
    pub not_graded: usize,
    /// Outcomes of queries that the classifier was not consulted on.
    pub not_classified: usize,
    /// Graded answers of first attempts.
    pub first_attempts: usize,
    /// Graded answers of fallbacks and escalations.
    pub later_attempts: usize,
}

/// The ability of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFinding {
    /// The policy's name for it.
    pub model: String,
    /// What the policy says.
    pub before: Option<f64>,
    /// What the answers say.
    pub fit: AbilityFit,
    /// The 95 % interval of the ability.
    pub interval: [f64; 2],
    /// Whether later attempts had to be counted, which makes the model look weaker than it is.
    pub biased: bool,
}

/// How honest the predicted P(success) was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SuccessFinding {
    /// First attempts with a prediction.
    pub n: usize,
    /// Mean prediction.
    pub predicted: f64,
    /// Mean score.
    pub observed: Estimate,
    /// Expected calibration error over ten bins.
    pub calibration_error: f64,
    /// Score over prediction.
    pub bins: Vec<ReliabilityBin>,
    /// Logistic recalibration: logit(observed) = intercept + slope * logit(predicted); 0 and 1 would be perfect.
    pub intercept: Estimate,
    /// See `intercept`.
    pub slope: Estimate,
    /// How much more the observed exceeds the predicted in the later half of the log than in the earlier one.
    pub shift: Option<Estimate>,
}

/// How far a signal has moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DriftFinding {
    /// The signal.
    pub signal: &'static str,
    /// Population stability index.
    pub stability: f64,
    /// What chance alone would make of it, about.
    pub by_chance: f64,
}

// === impl ModelFinding ===

impl ModelFinding {
    /// Whether the candidate takes it up.
    fn is_taken_up(&self) -> bool {
        !self.biased && self.fit.answers >= FEW_FIRST
    }
}

/// Answers below this many say too little for a map.
const FEW: usize = 100;
/// First attempts below this many are joined by later ones.
const FEW_FIRST: usize = 30;
/// An answer with at least this score counts as good where one must be one or the other.
const GOOD: f64 = 0.5;
const Z_95: f64 = 1.96;

/// A graded answer with what was known of its query.
struct Graded<'a> {
    record: &'a DecisionRecord,
    outcome: &'a OutcomeReport,
    score: f64,
    difficulty: f64,
    first: bool,
}

/// What `outcomes` of the decisions in `log` say of `policy`.
pub fn run(log: &Lines, outcomes: &[OutcomeReport], policy: &Policy, bootstrap: &Bootstrap) -> Calibration {
    let mut counts = LogCounts { decisions: log.records.len(), outcomes: outcomes.len(), ..LogCounts::default() };
    let mut graded = join(log, outcomes, &mut counts);
    graded.sort_by_key(|answer| answer.outcome.time_unix_ms);
    let first: Vec<&Graded<'_>> = graded.iter().filter(|answer| answer.first).collect();
    let models = abilities(&graded, policy);
    Calibration {
        success: success(&first, bootstrap),
        min_confidence: threshold::find(&first, log, policy, &models, bootstrap),
        models,
        drift: drift(log),
        counts,
    }
}

/// The policy with the abilities and the threshold that were found.
pub fn candidate(found: &Calibration, policy: &Policy) -> Document {
    let mut document = policy.spec().clone();
    let round = |value: f64| (value * 100.0).round() / 100.0;
    for finding in found.models.iter().filter(|finding| finding.is_taken_up()) {
        if let Some(model) = document.models.get_mut(&finding.model) {
            model.ability = Some(round(finding.fit.ability));
        }
    }
    if let Some(threshold) = &found.min_confidence {
        document.base.thresholds.min_confidence = Some(Probability::saturating(round(threshold.suggested.value)));
    }
    document.version = format!("{}+calibrated", document.version);
    document
}

/// Answers of first attempts to queries that the classifier of `manifest_sha256` judged, in the order of time.
pub fn answers(log: &Lines, outcomes: &[OutcomeReport], policy: &Policy, manifest_sha256: &str) -> Vec<Answer> {
    let mut graded = join(log, outcomes, &mut LogCounts::default());
    graded.retain(|answer| answer.first && is_of(log, answer.record, manifest_sha256));
    graded.sort_by_key(|answer| answer.outcome.time_unix_ms);
    let models = &policy.spec().models;
    let known = graded.iter().filter_map(|answer| Some((answer, models.get(&answer.outcome.model)?)));
    known
        .map(|(answer, model)| Answer {
            model: answer.outcome.model.clone(),
            ability: model.ability,
            difficulty: answer.difficulty,
            score: answer.score,
        })
        .collect()
}

/// What `candidate` would have earned in mean score, from the logs of `current`. Where a classifier is a candidate too,
/// `seen` is the log as it would be with that one, else the log itself.
///
/// The logging propensities are those of the experiments' arms that come to the same model; without experiments every
/// choice was certain, and the estimate rests on the prediction wherever the candidate chooses otherwise.
pub fn candidate_value(
    (log, seen): (&Lines, &Lines),
    outcomes: &[OutcomeReport],
    (current, candidate): (&Arc<Policy>, &Arc<Policy>),
    bootstrap: &Bootstrap,
) -> PolicyValue {
    let graded = join(log, outcomes, &mut LogCounts::default());
    let seen: HashMap<&str, &DecisionRecord> =
        seen.records.iter().map(|record| (record.decision_id.as_str(), &**record)).collect();
    let rows = graded.iter().filter(|answer| answer.first).filter_map(|answer| {
        let record = answer.record;
        let context = log.contexts.get(&record.context)?;
        let target = replay(seen.get(record.decision_id.as_str())?, context, candidate).ok()?;
        let Outcome::Selected { model, success, .. } = &target else { return None };
        let choices = replay_arms(record, context, current).ok()?;
        let of_logged = |(_, outcome): &&(f64, Outcome)| outcome.model() == Some(&answer.outcome.model);
        let propensity: f64 = choices.iter().filter(of_logged).map(|(share, _)| share).sum();
        (propensity > 0.0).then(|| LoggedReward {
            reward: answer.score,
            propensity,
            same: *model == answer.outcome.model,
            predicted: success.map_or(answer.score, Probability::value),
        })
    });
    let rows: Vec<LoggedReward> = rows.collect();
    value(&rows, bootstrap)
}

fn join<'a>(log: &'a Lines, outcomes: &'a [OutcomeReport], counts: &mut LogCounts) -> Vec<Graded<'a>> {
    let records: HashMap<&str, &DecisionRecord> =
        log.records.iter().map(|record| (record.decision_id.as_str(), &**record)).collect();
    // A later step of a cascade is about the query of the first.
    let steps: HashMap<&str, &str> = log
        .escalations
        .iter()
        .filter_map(|escalation| match &escalation.step {
            StepRecord::Next { decision_id, .. } => Some((decision_id.as_str(), escalation.first_decision_id.as_str())),
            StepRecord::Stop { .. } => None,
        })
        .collect();
    let mut graded = Vec::new();
    let mut told = HashSet::new();
    for outcome in outcomes {
        // A report that was sent again, to another server, is one report.
        let told_of = serde_json::to_string(&OutcomeReport { time_unix_ms: 0, ..outcome.clone() });
        if told_of.is_ok_and(|told_of| !told.insert(told_of)) {
            counts.repeated += 1;
            continue;
        }
        let first = steps.get(outcome.decision_id.as_str());
        let id = first.copied().unwrap_or(&outcome.decision_id);
        let Some(record) = records.get(id).copied() else {
            counts.unknown += 1;
            continue;
        };
        let Some(score) = grade(outcome) else {
            counts.not_graded += 1;
            continue;
        };
        let Some(signals) = &record.signals else {
            counts.not_classified += 1;
            continue;
        };
        let is_first = first.is_none()
            && record.outcome.model() == Some(&outcome.model)
            && outcome.attempt.is_none_or(|attempt| attempt == Attempt::First);
        *(if is_first { &mut counts.first_attempts } else { &mut counts.later_attempts }) += 1;
        graded.push(Graded { record, outcome, score, difficulty: latent(signals.difficulty), first: is_first });
    }
    graded
}

/// How good the answer was; `None`: nothing is known of one.
fn grade(outcome: &OutcomeReport) -> Option<f64> {
    match outcome.failure {
        Some(failure) if failure.is_unavailability() => None,
        Some(_) => Some(0.0),
        None => outcome.score.filter(|score| (0.0..=1.0).contains(score)),
    }
}

fn abilities(graded: &[Graded<'_>], policy: &Policy) -> Vec<ModelFinding> {
    let mut by_model: BTreeMap<&str, Vec<&Graded<'_>>> = BTreeMap::new();
    for answer in graded {
        by_model.entry(&answer.outcome.model).or_default().push(answer);
    }
    let models = &policy.spec().models;
    let known = by_model.into_iter().filter_map(|(name, answers)| models.get(name).map(|spec| (name, spec, answers)));
    known
        .map(|(name, spec, answers)| {
            let of_first = answers.iter().filter(|answer| answer.first).count();
            let biased = of_first < FEW_FIRST.min(answers.len());
            let used = answers.iter().filter(|answer| biased || answer.first);
            let used: Vec<GradedAnswer> =
                used.map(|answer| GradedAnswer { difficulty: answer.difficulty, score: answer.score }).collect();
            let fit = fit(&used);
            let half = Z_95 * fit.standard_error;
            ModelFinding {
                model: name.to_owned(),
                before: spec.ability,
                interval: [fit.ability - half, fit.ability + half],
                fit,
                biased,
            }
        })
        .collect()
}

fn success(first: &[&Graded<'_>], bootstrap: &Bootstrap) -> Option<SuccessFinding> {
    let pairs: Vec<(f64, f64)> = first
        .iter()
        .filter_map(|answer| match &answer.record.outcome {
            Outcome::Selected { success: Some(success), .. } => Some((success.value(), answer.score)),
            _ => None,
        })
        .collect();
    if pairs.len() < FEW {
        return None;
    }
    let bins = reliability(&pairs.iter().map(|(p, score)| (*p, *score >= GOOD)).collect::<Vec<_>>(), 10);
    let half = pairs.len() / 2;
    let [observed, intercept, slope, shift] = bootstrap.estimates(pairs.len(), |rows| {
        let chosen = || rows.iter().filter_map(|row| pairs.get(*row).copied());
        let fitted = logistic(chosen());
        let excess = |late: bool| {
            let of_half = rows.iter().filter(|row| (**row >= half) == late).filter_map(|row| pairs.get(*row));
            mean(of_half.map(|(predicted, score)| score - predicted))
        };
        [
            mean(chosen().map(|(_, score)| score)),
            fitted.map(|(intercept, _)| intercept),
            fitted.map(|(_, slope)| slope),
            excess(true).zip(excess(false)).map(|(late, early)| late - early),
        ]
    });
    Some(SuccessFinding {
        n: pairs.len(),
        predicted: mean(pairs.iter().map(|(p, _)| *p))?,
        observed: observed?,
        calibration_error: expected_calibration_error(&bins)?,
        bins,
        intercept: intercept?,
        slope: slope?,
        shift,
    })
}

/// Intercept and slope of the logistic regression of scores on logits of predictions; `None`: it does not settle.
fn logistic(pairs: impl Iterator<Item = (f64, f64)>) -> Option<(f64, f64)> {
    let pairs: Vec<(f64, f64)> = pairs.map(|(p, score)| (logit(p), score)).collect();
    let (mut a, mut b) = (0.0, 1.0);
    for _ in 0..25 {
        // Newton's step, with a ridge that only matters where the data say nothing.
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (-1e-3 * a, -1e-3 * (b - 1.0), 1e-3, 0.0, 1e-3);
        for (x, score) in &pairs {
            let p = sigmoid(a + b * x);
            let (error, weight) = (score - p, p * (1.0 - p));
            ga += error;
            gb += error * x;
            haa += weight;
            hab += weight * x;
            hbb += weight * x * x;
        }
        let determinant = haa * hbb - hab * hab;
        if determinant.abs() < 1e-12 {
            return None;
        }
        let (da, db) = ((ga * hbb - gb * hab) / determinant, (gb * haa - ga * hab) / determinant);
        (a, b) = (a + da, b + db);
        if da.abs() + db.abs() < 1e-8 {
            return Some((a, b));
        }
    }
    None
}

fn drift(log: &Lines) -> Vec<DriftFinding> {
    let mut records: Vec<&DecisionRecord> = log.records.iter().map(|record| &**record).collect();
    records.sort_by_key(|record| record.time_unix_ms);
    let (early, late) = records.split_at(records.len() / 2);
    let count = |records: &[&DecisionRecord]| {
        let mut counts = SignalCounts::default();
        for signals in records.iter().filter_map(|record| record.signals.as_ref()) {
            counts.add(&signals.intents, signals.tiers, signals.difficulty.value());
        }
        counts
    };
    let (early, late) = (count(early), count(late));
    let samples = 1.0 / early.total().max(1) as f64 + 1.0 / late.total().max(1) as f64;
    let bins = [("intent", 14.0), ("tier", 3.0), ("difficulty", 10.0)];
    let stability = late.stability(&early).into_iter().flatten();
    stability
        .zip(bins)
        .map(|((signal, stability), (_, bins))| DriftFinding { signal, stability, by_chance: (bins - 1.0) * samples })
        .collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(1e-6, 1.0 - 1e-6);
    (p / (1.0 - p)).ln()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use serde_json::json;

    use super::*;
    use crate::decisions::{Context, read_lines};
    use crate::domain::{ClassifierRef, Tier, TierControl};
    use crate::policy::{PolicyOptions, to_yaml};

    /// Abilities that the answers are made with; the policy thinks otherwise.
    const TRUE_MINI: f64 = -0.2;
    const TRUE_BIG: f64 = 2.4;

    const POLICY: &str = r#"
schema: pointsman.policy/v1
id: p
version: "1"
models:
  mini: {provider: a, provider_model: m, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 8000, ability: 1.2}
  big: {provider: b, provider_model: b, price_per_million_tokens: {input_usd: 9, output_usd: 9}, context_window_tokens: 8000, ability: 1.9}
chains: {quick: [mini, big], strong: [big, mini]}
routes: [{intent: "*", tier: complex, chain: strong}, {intent: "*", tier: "*", chain: quick}]
escalation: {ladder: [mini, big]}
experiments: {half: {arms: {a: {weight: 0.7}, b: {weight: 0.3, chains: {quick: [big, mini]}}}}}
"#;

    fn policy(document: &str) -> Arc<Policy> {
        Arc::new(Policy::load(document.as_bytes(), &PolicyOptions::default()).unwrap())
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// Logs of `n` requests decided by the policy; queries become harder by `shift` in the later half.
    fn logs(n: usize, shift: f64) -> (Lines, Vec<OutcomeReport>) {
        let policy = policy(POLICY);
        let mut rng = StdRng::seed_from_u64(11);
        let reference = ClassifierRef { name: "c".into(), version: "1".into(), sha256: "00".into() };
        let intents: Arc<[Arc<str>]> = [Arc::from("open_qa")].into();
        let context = Context::new(&policy, &reference, &intents, &crate::domain::TierControl::default());
        let mut log = read_lines([]);
        log.contexts.insert(Arc::clone(&context.id), Arc::new(context.clone()));
        let mut outcomes = Vec::new();
        for i in 0..n {
            let z: f64 = rng.random_range(-2.5..2.5) + if i >= n / 2 { shift } else { 0.0 };
            let difficulty = sigmoid(z);
            let simple = f64::from(u8::from(difficulty < 0.7)) * 0.6 + 0.2;
            let mut record: DecisionRecord = serde_json::from_value(json!({
                "time_unix_ms": i, "decision_id": format!("d{i}"), "request_id": format!("r{i}"),
                "context": context.id, "text_sha256": "00", "layers": ["the policy"],
                "input": {"bytes": 40, "words": 8, "lines": 1, "tokens": 10},
                "signals": {"intents": [1.0], "difficulty": difficulty, "tiers": [simple, 0.1, 0.9 - simple], "out_of_scope": 0.0},
                "outcome": {"kind": "refused"},
            }))
            .unwrap();
            record.outcome = replay(&record, &context, &policy).unwrap();
            let model = record.outcome.model().unwrap().to_owned();
            let right = sigmoid(if model == "mini" { TRUE_MINI } else { TRUE_BIG } - z);
            let outcome = json!({
                "time_unix_ms": i, "decision_id": format!("d{i}"), "model": model, "tokens": 0, "cost_usd": 0.0, "latency_ms": 0,
                "score": f64::from(u8::from(rng.random::<f64>() < right)),
            });
            outcomes.push(serde_json::from_value(outcome).unwrap());
            log.records.push(Arc::new(record));
        }
        (log, outcomes)
    }

    fn quick() -> Bootstrap {
        Bootstrap { n_draws: 60, ..Bootstrap::default() }
    }

    #[test]
    fn abilities_and_the_value_of_the_candidate_are_recovered() {
        let (log, outcomes) = logs(4_000, 0.0);
        let current = policy(POLICY);
        let found = run(&log, &outcomes, &current, &quick());
        assert_eq!((found.counts.first_attempts, found.counts.unknown), (4_000, 0));
        for (model, truth) in [("mini", TRUE_MINI), ("big", TRUE_BIG)] {
            let finding = found.models.iter().find(|finding| finding.model == model).unwrap();
            let [low, high] = finding.interval;
            assert!((low - 0.1..high + 0.1).contains(&truth) && high - low < 0.7, "{finding:?} is not {truth}");
        }
        let success = found.success.as_ref().unwrap();
        assert!(success.predicted - success.observed.value > 0.05, "mini was overrated: {success:?}");
        assert!(success.shift.unwrap().value.abs() < 0.06, "nothing drifts: {success:?}");

        let document = to_yaml(&serde_json::to_value(candidate(&found, &current)).unwrap());
        let tried = policy(&document);
        assert!(tried.version().ends_with("+calibrated"));
        let known = tried.spec().models["mini"].ability.unwrap();
        assert!((known - TRUE_MINI).abs() < 0.3, "{known}");

        // The candidate that always takes the strong model, whose value is known.
        let strong = policy(
            &POLICY
                .replace("quick: [mini, big], strong", "quick: [big, mini], strong")
                .replace("ability: 1.9", "ability: 2.4"),
        );
        let truth =
            log.records.iter().map(|record| sigmoid(TRUE_BIG - latent(record.signals.as_ref().unwrap().difficulty)));
        let truth = mean(truth).unwrap();
        let value = candidate_value((&log, &log), &outcomes, (&current, &strong), &quick());
        for estimate in [value.inverse_propensity, value.doubly_robust].map(Option::unwrap) {
            assert!((estimate.value - truth).abs() < 0.03, "{estimate:?} is not {truth}");
        }
        assert!(value.logged.unwrap().value < truth - 0.05 && value.overlap < 0.8);
    }

    /// The suggested level is held against what the models really do.
    #[test]
    fn the_suggested_min_confidence_keeps_the_promise() {
        let (mut log, outcomes) = logs(4_000, 0.0);
        // As shipped classifiers have it: the threshold that keeps a promise is far below the promise.
        let control =
            TierControl::try_from(vec![[0.5, 0.1], [0.7, 0.2], [0.8, 0.3], [0.9, 0.6], [0.99, 0.95]]).unwrap();
        for context in log.contexts.values_mut() {
            *context = Arc::new(Context { tier_control: control.clone(), ..(**context).clone() });
        }
        let asking = |level: f64| {
            let thresholds = format!("thresholds: {{min_confidence: {level}}}\n");
            policy(&POLICY.replace("escalation:", &format!("{thresholds}escalation:")))
        };
        let mut under_routed = Vec::new();
        for level in [0.6, 0.75, 0.8, 0.9, 0.95] {
            let tried = asking(level);
            let missed = log.records.iter().map(|record| {
                let decided = replay(record, &log.contexts[&record.context], &tried).unwrap();
                let ability = if decided.model() == Some("mini") { TRUE_MINI } else { TRUE_BIG };
                let right = sigmoid(ability - latent(record.signals.as_ref().unwrap().difficulty));
                if decided.tier() == Some(Tier::Complex) { 0.0 } else { 1.0 - right }
            });
            under_routed.push((level, mean(missed).unwrap()));
        }
        let found = run(&log, &outcomes, &asking(0.8), &quick()).min_confidence.unwrap();
        let suggested = found.suggested.value;
        for (level, missed) in under_routed {
            let clear = (missed - 0.2).abs() > 0.01;
            assert!(!clear || (missed <= 0.2) == (level >= suggested - 1e-9), "{missed} at {level}: {found:?}");
        }
        assert_eq!((found.asked, found.n), (0.8, 4_000));
    }

    #[test]
    fn drift_is_seen_and_what_cannot_be_used_is_counted() {
        let (log, mut outcomes) = logs(1_200, 1.5);
        let unavailable =
            OutcomeReport { failure: Some(crate::domain::FailureKind::Timeout), score: None, ..outcomes[0].clone() };
        outcomes.push(OutcomeReport { decision_id: "nobody".into(), ..unavailable.clone() });
        outcomes.push(unavailable);
        let found = run(&log, &outcomes, &policy(POLICY), &quick());
        assert_eq!((found.counts.unknown, found.counts.not_graded), (1, 1));
        let difficulty = found.drift.iter().find(|drift| drift.signal == "difficulty").unwrap();
        assert!(difficulty.stability > 0.25 && difficulty.by_chance < 0.05, "{difficulty:?}");
        let intent = found.drift.iter().find(|drift| drift.signal == "intent").unwrap();
        assert!(intent.stability < 0.01, "{intent:?}");
        outcomes.push(outcomes[7].clone());
        assert_eq!(run(&log, &outcomes, &policy(POLICY), &quick()).counts.repeated, 1);
        let few = run(&log, &outcomes[..50], &policy(POLICY), &quick());
        assert!(few.success.is_none() && few.min_confidence.is_none(), "50 answers say too little");
    }

    #[test]
    fn the_logistic_map_finds_what_the_scores_were_made_with() {
        let mut rng = StdRng::seed_from_u64(5);
        let pairs: Vec<(f64, f64)> = (0..20_000)
            .map(|_| {
                let p: f64 = rng.random_range(0.05..0.95);
                let right = sigmoid(-0.5 + 1.6 * logit(p));
                (p, f64::from(u8::from(rng.random::<f64>() < right)))
            })
            .collect();
        let (intercept, slope) = logistic(pairs.into_iter()).unwrap();
        assert!((intercept + 0.5).abs() < 0.1 && (slope - 1.6).abs() < 0.1, "{intercept} {slope}");
    }
}
