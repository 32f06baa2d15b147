//! What a decision leaves behind: shadow decisions and a record in the log.

use sha2::{Digest as _, Sha256};

use super::{Router, estimate_tokens};
use crate::classifier::Classifier;
use crate::decisions::{DecisionLog, DecisionRecord, InputRecord, Outcome, ShadowRecord};
use crate::domain::{Classification, Query};
use crate::policy::{Assignment, Circumstances, NoCandidate, Resolution, Scope, Signals};
use crate::rules::{Atom, RuleInput};
use crate::text::Prepared;

/// What of a request goes into its record.
pub(super) struct Logged<'a> {
    pub(super) query: &'a Query,
    pub(super) classifier: &'a Classifier,
    pub(super) prepared: &'a Prepared,
    pub(super) scope: &'a Scope,
    pub(super) assignment: &'a Assignment<'a>,
    pub(super) matches: Vec<Atom>,
    pub(super) shadows: Vec<ShadowRecord>,
    pub(super) circumstances: &'a Circumstances,
}

// === impl Router ===

impl Router {
    /// Decides once more for each shadow. The classifier is not consulted for it: a shadow must not make anyone wait.
    pub(super) fn shadows(
        &self,
        scope: &Scope,
        assignment: &Assignment<'_>,
        input: &RuleInput<'_>,
        (signals, circumstances): (&Signals<'_>, &Circumstances),
        served: &Result<Resolution, NoCandidate>,
    ) -> Vec<ShadowRecord> {
        let decide = |shadow: &Scope| {
            let rules = shadow.rules().evaluate(input);
            let needed = !shadow.decisive(&rules);
            if needed && signals.classification.is_none() && !signals.degraded {
                return None;
            }
            let classification = signals.classification.filter(|_| needed);
            let degraded = needed && classification.is_none();
            let signals = Signals { classification, rules: &rules, degraded, ..*signals };
            Some(Outcome::from(&shadow.resolve_guarded(&signals, circumstances)))
        };
        let shadows = scope.shadows(assignment).into_iter().map(|(arm, shadow)| {
            let outcome = decide(&shadow);
            let model = served.as_ref().ok().map(|resolution| &*resolution.selected.model);
            self.metrics.record_shadow(&arm, outcome.as_ref().map(|outcome| outcome.model() == model));
            ShadowRecord { arm, outcome }
        });
        shadows.collect()
    }
}

/// Puts a decision into the log.
pub(super) fn keep(
    log: &DecisionLog,
    request: Logged<'_>,
    outcome: Outcome,
    classification: Option<&Classification>,
    degraded: bool,
    decision_id: String,
) {
    let Logged { query, classifier, prepared, scope, assignment, matches, shadows, circumstances } = request;
    let context =
        log.context(scope.policy(), classifier.reference(), classifier.intent_labels(), classifier.tier_control());
    let kept = |key: &String| context.metadata_keys.contains(key);
    let (metadata, others) =
        query.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).partition(|(key, _)| kept(key));
    let others: std::collections::BTreeMap<String, String> = others;
    let record = DecisionRecord {
        time_unix_ms: assignment.now_ms,
        decision_id,
        request_id: query.request_id.clone(),
        context: std::sync::Arc::clone(&context.id),
        tenant: query.tenant.clone(),
        role: query.role.clone(),
        session: assignment.session.map(|digest| hex::encode(digest.0)),
        text_sha256: hex::encode(Sha256::digest(prepared.text.as_bytes())),
        text: log.keeps_text().then(|| prepared.text.clone()),
        input: InputRecord::new(&prepared.signals, estimate_tokens(prepared)),
        output_tokens: query.expected_output_tokens,
        requirements: query.requirements.clone(),
        metadata,
        metadata_keys: others.into_keys().collect(),
        layers: scope.origins().map(str::to_owned).collect(),
        matches,
        signals: classification.map(Into::into),
        degraded,
        experiments: scope.arms().to_vec(),
        circumstances: (!circumstances.is_ordinary()).then(|| circumstances.clone()),
        outcome,
        shadows,
    };
    log.record(record, context);
}
