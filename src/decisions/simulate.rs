//! What another policy would have changed, over many logged decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::line::Lines;
use super::record::{DecisionRecord, Outcome};
use super::replay::{Baseline, NotReplayable, replay};
use crate::domain::Tier;
use crate::policy::Policy;

/// What would change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SimulationReport {
    /// The policy that was tried.
    pub candidate: PolicyName,
    /// What it is compared with; absent: what was decided and logged.
    pub baseline: Option<PolicyName>,
    /// What became of the log's lines; all figures below are over the replayed ones.
    pub lines: LineCounts,
    /// Decisions whose selected model changes, those that lose or gain one included.
    pub changed: u64,
    /// Further decisions whose tier, chain, fallbacks or escalation change.
    pub changed_beside: u64,
    /// Decisions without a candidate.
    pub no_candidate: Mix,
    /// Decisions by selected model.
    pub models: Vec<Mix>,
    /// Decisions by tier.
    pub tiers: Vec<Mix>,
    /// Estimated cost in US dollars, all decisions together, of those that have a candidate before and after.
    pub cost_usd: (f64, f64),
    /// Expected quality.
    pub quality: QualityChange,
    /// The tenants with most changes; the empty name: requests without one.
    pub tenants: Vec<TenantEffect>,
    /// From which model to which, the most frequent first.
    pub transitions: Vec<Transition>,
    /// Changed decisions, the earliest first, at most 200.
    pub changes: Vec<ChangedDecision>,
}

/// A policy, as reports name it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyName {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its document.
    pub sha256: String,
}

/// What became of the lines of a log.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LineCounts {
    /// Decisions in the log.
    pub decisions: u64,
    /// Those that could be decided again exactly.
    pub replayed: u64,
    /// Those that could not, by why.
    pub not_replayable: BTreeMap<String, u64>,
    /// Lines that are no log lines.
    pub malformed: u64,
}

/// How many before and after.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Mix {
    /// Of what.
    pub name: String,
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

/// Mean P(the selected model answers well), over decisions for which it is known before and after.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct QualityChange {
    /// Those decisions.
    pub n: u64,
    /// Before; absent: there are none.
    pub before: Option<f64>,
    /// After.
    pub after: Option<f64>,
}

/// What changes for one tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TenantEffect {
    /// The tenant; empty: none.
    pub tenant: String,
    /// Its decisions.
    pub decisions: u64,
    /// Those whose model changes.
    pub changed: u64,
    /// Their estimated cost in US dollars, before and after.
    pub cost_usd: (f64, f64),
    /// Its expected quality.
    pub quality: QualityChange,
}

/// From one model to another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Transition {
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
    /// How many.
    pub decisions: u64,
}

/// One decision that changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChangedDecision {
    /// Its id; empty: there was no candidate.
    pub decision_id: String,
    /// The request's id.
    pub request_id: String,
    /// When, Unix milliseconds.
    pub time_unix_ms: u64,
    /// The tenant.
    pub tenant: String,
    /// The role.
    pub role: String,
    /// What was decided.
    pub before: Outcome,
    /// What would be.
    pub after: Outcome,
}

/// Most changed decisions in a report.
const MAX_CHANGES: usize = 200;
const MAX_TENANTS: usize = 20;
const MAX_TRANSITIONS: usize = 50;

/// Replays every decision of `log` under `candidate` and compares.
pub fn simulate(log: &Lines, candidate: &Arc<Policy>, baseline: Baseline<'_>) -> SimulationReport {
    let mut tally = Tally::default();
    tally.lines.malformed = log.malformed;
    for record in &log.records {
        tally.lines.decisions += 1;
        match compare(log, record, candidate, baseline) {
            Ok((before, after)) => tally.add(record, before, after),
            Err(why) => *tally.lines.not_replayable.entry(why.to_string()).or_default() += 1,
        }
    }
    tally.report(candidate, baseline)
}

fn compare(
    log: &Lines,
    record: &DecisionRecord,
    candidate: &Arc<Policy>,
    baseline: Baseline<'_>,
) -> Result<(Outcome, Outcome), NotReplayable> {
    let context = log.contexts.get(&record.context).ok_or(NotReplayable::NoContext)?;
    let before = match baseline {
        Baseline::Logged => record.outcome.clone(),
        Baseline::Policy(policy) => replay(record, context, policy)?,
    };
    Ok((before, replay(record, context, candidate)?))
}

#[derive(Default)]
struct Tally {
    lines: LineCounts,
    changed: u64,
    changed_beside: u64,
    no_candidate: (u64, u64),
    models: BTreeMap<String, (u64, u64)>,
    tiers: BTreeMap<Tier, (u64, u64)>,
    all: Sums,
    tenants: BTreeMap<String, Sums>,
    transitions: BTreeMap<(String, String), u64>,
    changes: Vec<ChangedDecision>,
}

#[derive(Default)]
struct Sums {
    decisions: u64,
    changed: u64,
    cost: (f64, f64),
    n_quality: u64,
    quality: (f64, f64),
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, record: &DecisionRecord, before: Outcome, after: Outcome) {
        self.lines.replayed += 1;
        let moved = before.name() != after.name();
        for (outcome, side) in [(&before, 0), (&after, 1)] {
            let count = |pair: &mut (u64, u64)| if side == 0 { pair.0 += 1 } else { pair.1 += 1 };
            count(self.models.entry(outcome.name().to_owned()).or_default());
            match outcome.tier() {
                Some(tier) => count(self.tiers.entry(tier).or_default()),
                None => count(&mut self.no_candidate),
            }
        }
        self.all.add(moved, &before, &after);
        self.tenants.entry(record.tenant.clone()).or_default().add(moved, &before, &after);
        if !moved {
            self.changed_beside += u64::from(!before.is_alike(&after));
            return;
        }
        self.changed += 1;
        *self.transitions.entry((before.name().to_owned(), after.name().to_owned())).or_default() += 1;
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(ChangedDecision {
                decision_id: record.decision_id.clone(),
                request_id: record.request_id.clone(),
                time_unix_ms: record.time_unix_ms,
                tenant: record.tenant.clone(),
                role: record.role.clone(),
                before,
                after,
            });
        }
    }

    fn report(self, candidate: &Policy, baseline: Baseline<'_>) -> SimulationReport {
        let mix = |name: String, (before, after): (u64, u64)| Mix { name, before, after };
        let mut models: Vec<Mix> = self.models.into_iter().map(|(name, counts)| mix(name, counts)).collect();
        models.sort_by_key(|mix| std::cmp::Reverse(mix.before.max(mix.after)));
        let mut tenants: Vec<TenantEffect> =
            self.tenants.into_iter().map(|(tenant, sums)| sums.effect(tenant)).collect();
        tenants.sort_by_key(|tenant| std::cmp::Reverse((tenant.changed, tenant.decisions)));
        tenants.truncate(MAX_TENANTS);
        let transitions = self.transitions.into_iter();
        let mut transitions: Vec<Transition> =
            transitions.map(|((from, to), decisions)| Transition { from, to, decisions }).collect();
        transitions.sort_by_key(|transition| std::cmp::Reverse(transition.decisions));
        transitions.truncate(MAX_TRANSITIONS);
        let all = self.all.effect(String::new());
        SimulationReport {
            candidate: PolicyName::of(candidate),
            baseline: match baseline {
                Baseline::Logged => None,
                Baseline::Policy(policy) => Some(PolicyName::of(policy)),
            },
            lines: self.lines,
            changed: self.changed,
            changed_beside: self.changed_beside,
            no_candidate: mix("no candidate".to_owned(), self.no_candidate),
            models,
            tiers: self.tiers.into_iter().map(|(tier, counts)| mix(tier.to_string(), counts)).collect(),
            cost_usd: all.cost_usd,
            quality: all.quality,
            tenants,
            transitions,
            changes: self.changes,
        }
    }
}

// === impl Sums ===

impl Sums {
    fn add(&mut self, moved: bool, before: &Outcome, after: &Outcome) {
        self.decisions += 1;
        self.changed += u64::from(moved);
        if let (
            Outcome::Selected { cost_usd: old_cost, success: old, .. },
            Outcome::Selected { cost_usd: new_cost, success: new, .. },
        ) = (before, after)
        {
            self.cost.0 += old_cost;
            self.cost.1 += new_cost;
            if let (Some(old), Some(new)) = (old, new) {
                self.n_quality += 1;
                self.quality.0 += old.value();
                self.quality.1 += new.value();
            }
        }
    }

    fn effect(self, tenant: String) -> TenantEffect {
        let mean = |sum: f64| (self.n_quality > 0).then(|| sum / self.n_quality as f64);
        TenantEffect {
            tenant,
            decisions: self.decisions,
            changed: self.changed,
            cost_usd: self.cost,
            quality: QualityChange { n: self.n_quality, before: mean(self.quality.0), after: mean(self.quality.1) },
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// Whether both are the same but for what a number read back from text may lose in its last digit.
    pub fn is_alike(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
        match (self, other) {
            (
                Self::Selected { cost_usd: cost, success, .. },
                Self::Selected { cost_usd: other_cost, success: other_success, .. },
            ) => {
                let mut same = other.clone();
                if let Self::Selected { cost_usd, success: known, .. } = &mut same {
                    (*cost_usd, *known) = (*cost, *success);
                }
                let successes = match (success, other_success) {
                    (Some(a), Some(b)) => near(a.value(), b.value()),
                    (a, b) => a == b,
                };
                *self == same && near(*cost, *other_cost) && successes
            }
            _ => self == other,
        }
    }
}

// === impl PolicyName ===

impl PolicyName {
    /// The name of a policy.
    pub fn of(policy: &Policy) -> Self {
        Self { id: policy.id().to_string(), version: policy.version().to_string(), sha256: policy.sha256().to_string() }
    }
}
