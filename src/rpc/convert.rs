//! Wire messages to domain types and back.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tonic::Status;

use super::proto;
use super::status::{from_invalid, invalid_field};
use crate::domain::{
    Attempt, Candidate, Cascade, CascadeState, Classification, ClassifierRef, Combine, Confidence, Content, Decision,
    Distribution, Escalation, ExperimentArm, FailureKind, Fallback, FanOut, InputReport, Message, MessageRole,
    NextStep, Observed, OutcomeReport, PolicyRef, Priority, Probability, Query, Reason, Requirements, Source,
    StopReason, Tier, Timings,
};
use crate::policy::{Finding, Severity};
use crate::router::{EscalateQuery, Signalled, stop_retry_after_ms};
use crate::sources::{HistoryEntry, Origin};

/// A request as a query; `request_id` is made when the caller sent none.
pub(super) fn route_request(request: proto::RouteRequest) -> Result<Query, Box<Status>> {
    let request_id = request.request_id;
    let mut query = query(proto::Query {
        query: request.query,
        messages: request.messages,
        tenant: request.tenant,
        role: request.role,
        session_id: request.session_id,
        requirements: request.requirements,
        expected_output_tokens: request.expected_output_tokens,
        priority: request.priority,
        metadata: request.metadata,
    })?;
    if !request_id.is_empty() {
        query.request_id = request_id;
    }
    Ok(query)
}

/// A wire query as a domain query with a request id of its own.
pub(super) fn query(query: proto::Query) -> Result<Query, Box<Status>> {
    if !query.query.is_empty() && !query.messages.is_empty() {
        return Err(Box::new(invalid_field("query", "is set beside messages; send one of them")));
    }
    let content = if query.messages.is_empty() {
        Content::Text(query.query)
    } else {
        Content::Messages(query.messages.into_iter().map(message).collect::<Result<_, _>>()?)
    };
    let priority = match proto::Priority::try_from(query.priority) {
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Priority::Normal,
        Ok(proto::Priority::Low) => Priority::Low,
        Ok(proto::Priority::High) => Priority::High,
        Err(_) => return Err(Box::new(unknown_enum("priority", query.priority))),
    };
    Ok(Query {
        content,
        tenant: query.tenant,
        role: query.role,
        session_id: query.session_id,
        requirements: query.requirements.map(requirements).unwrap_or_default(),
        expected_output_tokens: (query.expected_output_tokens > 0).then_some(query.expected_output_tokens),
        priority,
        metadata: query.metadata.into_iter().collect(),
        request_id: uuid::Uuid::now_v7().to_string(),
    })
}

fn message(message: proto::Message) -> Result<Message, Box<Status>> {
    let role = match proto::MessageRole::try_from(message.role) {
        Ok(proto::MessageRole::System) => MessageRole::System,
        Ok(proto::MessageRole::User) => MessageRole::User,
        Ok(proto::MessageRole::Assistant) => MessageRole::Assistant,
        Ok(proto::MessageRole::Tool) => MessageRole::Tool,
        Ok(proto::MessageRole::Unspecified) => {
            return Err(Box::new(invalid_field("messages.role", "is not set; say who wrote the message")));
        }
        Err(_) => return Err(Box::new(unknown_enum("messages.role", message.role))),
    };
    Ok(Message { role, content: message.content })
}

fn failure(failure: i32) -> Result<Option<FailureKind>, Box<Status>> {
    Ok(match proto::FailureKind::try_from(failure) {
        Ok(proto::FailureKind::Unspecified) => None,
        Ok(proto::FailureKind::Timeout) => Some(FailureKind::Timeout),
        Ok(proto::FailureKind::RateLimited) => Some(FailureKind::RateLimited),
        Ok(proto::FailureKind::ProviderError) => Some(FailureKind::ProviderError),
        Ok(proto::FailureKind::Refused) => Some(FailureKind::Refused),
        Ok(proto::FailureKind::Truncated) => Some(FailureKind::Truncated),
        Ok(proto::FailureKind::BadFormat) => Some(FailureKind::BadFormat),
        Err(_) => return Err(Box::new(unknown_enum("observed.failure", failure))),
    })
}

/// A reported outcome, as of now.
pub(super) fn outcome(request: proto::ReportOutcomeRequest, time_unix_ms: u64) -> Result<OutcomeReport, Box<Status>> {
    let attempt = match proto::Attempt::try_from(request.attempt) {
        Ok(proto::Attempt::Unspecified) => None,
        Ok(proto::Attempt::First) => Some(Attempt::First),
        Ok(proto::Attempt::Fallback) => Some(Attempt::Fallback),
        Ok(proto::Attempt::Escalation) => Some(Attempt::Escalation),
        Err(_) => return Err(Box::new(unknown_enum("attempt", request.attempt))),
    };
    let observed = request.observed.unwrap_or_default();
    let report = OutcomeReport {
        time_unix_ms,
        decision_id: request.decision_id,
        model: request.model,
        score: observed.score,
        scorer: observed.scorer,
        failure: failure(observed.failure)?,
        tokens: observed.tokens_used,
        cost_usd: observed.cost_usd,
        latency_ms: request.latency_ms,
        attempt,
    };
    report.check().map_err(|invalid| Box::new(from_invalid(&invalid)))?;
    Ok(report)
}

fn requirements(requirements: proto::Requirements) -> Requirements {
    let set = |value: u32| (value > 0).then_some(value);
    Requirements {
        tools: requirements.tools,
        vision: requirements.vision,
        json_mode: requirements.json_mode,
        context_tokens: set(requirements.context_tokens),
        allowed_providers: requirements.allowed_providers,
        data_regions: requirements.data_regions,
        // Zero means "not set" in proto3; NaN and infinity are kept for the check to refuse.
        max_cost_usd: (requirements.max_cost_usd != 0.0).then_some(requirements.max_cost_usd),
        max_latency_ms: set(requirements.max_latency_ms),
        min_quality: (requirements.min_quality != 0.0).then_some(requirements.min_quality),
    }
}

fn unknown_enum(field: &'static str, value: i32) -> Status {
    invalid_field(field, format!("{value} is not a value this server knows"))
}

/// What asks for the next step of a cascade.
pub(super) fn escalate_request(request: proto::EscalateRequest, reports: bool) -> Result<EscalateQuery, Box<Status>> {
    let proto::EscalateRequest { continuation, observed: seen, tenant } = request;
    if continuation.is_empty() {
        return Err(Box::new(invalid_field("continuation", "is empty; send that of the decision that was followed")));
    }
    Ok(EscalateQuery { continuation, tenant, observed: observed(seen.unwrap_or_default())?, reports })
}

/// What a caller saw.
pub(super) fn observed(seen: proto::Observed) -> Result<Observed, Box<Status>> {
    let score = seen.score.map(Probability::new).transpose();
    let score = score.map_err(|error| Box::new(invalid_field("observed.score", error.to_string())))?;
    Ok(Observed {
        score,
        scorer: seen.scorer,
        failure: failure(seen.failure)?,
        tokens_used: seen.tokens_used,
        cost_usd: seen.cost_usd,
        time_left_ms: (seen.time_left_ms > 0).then_some(seen.time_left_ms),
    })
}

/// The next step of a cascade on the wire.
pub(super) fn next_step(next: NextStep) -> proto::EscalateResponse {
    let step = match next {
        NextStep::Decision(next) => proto::escalate_response::Step::Decision(decision(*next)),
        NextStep::Stop(stop) => proto::escalate_response::Step::Stop(proto::Stop {
            retry_after_ms: stop_retry_after_ms(&stop),
            reason: stop_reason(stop.reason).into(),
            text: stop.text,
            reasons: stop.removed.into_iter().map(reason).collect(),
        }),
    };
    proto::EscalateResponse { step: Some(step) }
}

fn stop_reason(reason: StopReason) -> proto::StopReason {
    match reason {
        StopReason::Accepted => proto::StopReason::Accepted,
        StopReason::MaxHops => proto::StopReason::MaxHops,
        StopReason::Budget => proto::StopReason::Budget,
        StopReason::Deadline => proto::StopReason::Deadline,
        StopReason::NothingStronger => proto::StopReason::NothingStronger,
        StopReason::NothingLeft => proto::StopReason::NothingLeft,
    }
}

/// A decision on the wire.
pub(super) fn decision(decision: Decision) -> proto::Decision {
    proto::Decision {
        decision_id: decision.decision_id,
        estimated_cost_usd: decision.selected.estimated_cost_usd,
        selected: Some(candidate(decision.selected)),
        fallbacks: decision.fallbacks.into_iter().map(fallback).collect(),
        escalation: decision.escalation.map(escalation),
        intent: Some(proto::Intent {
            label: decision.intent.label.to_string(),
            probability: decision.intent.probability.value(),
            probabilities: decision.intent.probabilities.as_ref().map(distribution).unwrap_or_default(),
            out_of_scope: decision.intent.out_of_scope.map(|p| p.value()),
        }),
        complexity: Some(proto::Complexity {
            tier: decision.complexity.tier.as_str().to_owned(),
            difficulty: decision.complexity.difficulty.value(),
            tier_probabilities: decision.complexity.tier_probabilities.map(tiers).unwrap_or_default(),
        }),
        confidence: Some(confidence(decision.confidence)),
        source: source(decision.source).into(),
        reasons: decision.reasons.into_iter().map(reason).collect(),
        policy: Some(policy_ref(&decision.policy)),
        classifier: Some(classifier_ref(&decision.classifier)),
        continuation: decision.continuation,
        cascade: decision.cascade.map(cascade),
        fan_out: decision.fan_out.map(fan_out),
        experiment: decision.experiments.first().cloned().map(experiment),
        experiments: decision.experiments.into_iter().map(experiment).collect(),
        input: Some(input_report(decision.input)),
        retry_after_ms: decision.retry_after_ms,
        timings: Some(timings(decision.timings)),
        request_id: decision.request_id,
    }
}

/// Signals on the wire.
pub(super) fn signals(signals: Signalled, reference: &ClassifierRef, calibrator: &str) -> proto::ClassifyResponse {
    let Signalled { classification, tier, input, timings: times, .. } = signals;
    let Classification { intent, difficulty, tiers: tier_probabilities, out_of_scope, .. } = classification;
    let (label, probability) = intent.top();
    proto::ClassifyResponse {
        intent: Some(proto::Intent {
            label: label.to_string(),
            probability: f64::from(probability),
            probabilities: distribution(&intent),
            out_of_scope: Some(out_of_scope.value()),
        }),
        complexity: Some(proto::Complexity {
            tier: tier.tier.as_str().to_owned(),
            difficulty: difficulty.value(),
            tier_probabilities: tiers(tier_probabilities),
        }),
        confidence: Some(proto::Confidence {
            value: tier.suffices.value(),
            of: crate::domain::ConfidenceOf::TierSuffices.as_str().to_owned(),
            calibrator: calibrator.to_owned(),
        }),
        input: Some(input_report(input)),
        classifier: Some(classifier_ref(reference)),
        timings: Some(timings(times)),
    }
}

/// A policy reference on the wire.
pub(super) fn policy_ref(policy: &PolicyRef) -> proto::PolicyRef {
    proto::PolicyRef {
        id: policy.id.to_string(),
        version: policy.version.to_string(),
        sha256: policy.sha256.to_string(),
        age_ms: policy.age_ms,
        source: policy.source.to_string(),
        source_revision: policy.revision.to_string(),
        loaded_at_unix_ms: policy.loaded_at_unix_ms,
    }
}

/// Who had a policy in force, on the wire.
pub(super) fn origin(origin: Origin) -> proto::PolicyOrigin {
    match origin {
        Origin::Source => proto::PolicyOrigin::Source,
        Origin::Copy => proto::PolicyOrigin::Copy,
        Origin::Embedded => proto::PolicyOrigin::Embedded,
    }
}

/// A document that was in force, on the wire.
pub(super) fn policy_version(entry: &HistoryEntry) -> proto::PolicyVersion {
    let loaded_at = entry.loaded_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    proto::PolicyVersion {
        version: entry.version.to_string(),
        sha256: entry.sha256.to_string(),
        source_revision: entry.revision.to_string(),
        loaded_at_unix_ms: u64::try_from(loaded_at.as_millis()).unwrap_or(u64::MAX),
    }
}

/// A classifier reference on the wire.
pub(super) fn classifier_ref(classifier: &ClassifierRef) -> proto::ClassifierRef {
    proto::ClassifierRef {
        name: classifier.name.to_string(),
        version: classifier.version.to_string(),
        sha256: classifier.sha256.to_string(),
    }
}

/// A finding on the wire.
pub(super) fn finding(finding: &Finding) -> proto::Finding {
    let severity = match finding.severity {
        Severity::Error => proto::Severity::Error,
        Severity::Warning => proto::Severity::Warning,
    };
    proto::Finding {
        severity: severity.into(),
        code: finding.code.as_str().to_owned(),
        path: finding.path.clone(),
        line: finding.line,
        message: finding.message.clone(),
        tenant: finding.tenant.clone().unwrap_or_default(),
    }
}

fn candidate(candidate: Candidate) -> proto::Candidate {
    proto::Candidate {
        model: candidate.model.to_string(),
        provider: candidate.provider.to_string(),
        provider_model: candidate.provider_model.to_string(),
        access_path: candidate.access_path.to_owned(),
        parameters: Arc::unwrap_or_clone(candidate.parameters).into_iter().collect(),
        estimated_cost_usd: candidate.estimated_cost_usd,
        success_probability: candidate.success_probability.map(|p| p.value()),
        endpoint: candidate.endpoint,
    }
}

fn fan_out(fan_out: FanOut) -> proto::FanOut {
    let combine = match fan_out.combine {
        Combine::First => proto::Combine::First,
        Combine::BestOf => proto::Combine::BestOf,
        Combine::Vote => proto::Combine::Vote,
    };
    proto::FanOut {
        combine: combine.into(),
        candidates: fan_out.candidates.into_iter().map(candidate).collect(),
        estimated_cost_usd: fan_out.estimated_cost_usd,
    }
}

fn cascade(cascade: Cascade) -> proto::Cascade {
    let CascadeState { attempts, hops, tokens_used, cost_usd } = cascade.state;
    proto::Cascade { first_decision_id: cascade.first_decision_id, attempts, hops, tokens_used, cost_usd }
}

fn fallback(fallback: Fallback) -> proto::Fallback {
    proto::Fallback { candidate: Some(candidate(fallback.candidate)), reason: Some(reason(fallback.reason)) }
}

fn escalation(escalation: Escalation) -> proto::Escalation {
    proto::Escalation {
        next: Some(candidate(escalation.next)),
        score_threshold: escalation.score_threshold.value(),
        hops_left: escalation.hops_left,
        probability: escalation.probability.map(|p| p.value()),
        expected_cost_usd: escalation.expected_cost_usd,
    }
}

fn reason(reason: Reason) -> proto::Reason {
    proto::Reason { code: reason.code.as_str().to_owned(), text: reason.text, subject: reason.subject }
}

fn confidence(confidence: Confidence) -> proto::Confidence {
    proto::Confidence {
        value: confidence.value.value(),
        of: confidence.of.as_str().to_owned(),
        calibrator: confidence.calibrator.to_string(),
    }
}

fn source(source: Source) -> proto::Source {
    match source {
        Source::Rule => proto::Source::Rule,
        Source::Classifier => proto::Source::Classifier,
        Source::Cache => proto::Source::Cache,
        Source::Override => proto::Source::Override,
        Source::Degraded => proto::Source::Degraded,
    }
}

fn distribution(distribution: &Distribution) -> Vec<proto::LabelProbability> {
    distribution.iter().map(|(label, p)| label_probability(label, p)).collect()
}

fn tiers(probabilities: [f32; 3]) -> Vec<proto::LabelProbability> {
    Tier::ALL.into_iter().zip(probabilities).map(|(tier, p)| label_probability(tier.as_str(), p)).collect()
}

fn label_probability(label: &str, probability: f32) -> proto::LabelProbability {
    proto::LabelProbability { label: label.to_owned(), probability: f64::from(probability) }
}

fn experiment(arm: ExperimentArm) -> proto::ExperimentArm {
    proto::ExperimentArm {
        experiment: arm.experiment.to_string(),
        arm: arm.arm.to_string(),
        propensity: arm.propensity.value(),
    }
}

fn input_report(input: InputReport) -> proto::InputReport {
    proto::InputReport {
        received_bytes: input.received_bytes,
        used_bytes: input.used_bytes,
        tokens_used: input.tokens_used,
        tokens_cut: input.tokens_cut,
        bytes_cut: input.bytes_cut,
        turns_received: input.turns_received,
        turns_used: input.turns_used,
        language: input.language.unwrap_or_default().to_owned(),
    }
}

fn timings(timings: Timings) -> proto::Timings {
    proto::Timings {
        text_us: timings.text_us,
        rules_us: timings.rules_us,
        queue_us: timings.queue_us,
        inference_us: timings.inference_us,
        policy_us: timings.policy_us,
        total_us: timings.total_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: proto::RouteRequest) -> String {
        route_request(request).unwrap_err().message().to_owned()
    }

    #[test]
    fn unknown_enum_values_and_double_content_are_refused() {
        let with_role = |role| proto::RouteRequest {
            messages: vec![proto::Message { role, content: "hi".into() }],
            ..proto::RouteRequest::default()
        };
        assert!(refused(with_role(99)).starts_with("messages.role: 99"));
        assert!(refused(with_role(0)).starts_with("messages.role: is not set"));
        assert!(refused(proto::RouteRequest { priority: 9, ..Default::default() }).starts_with("priority: 9"));
        assert!(refused(proto::RouteRequest { query: "x".into(), ..with_role(2) }).starts_with("query: is set beside"));
    }

    #[test]
    fn unset_numbers_require_nothing_and_nonsense_is_kept_for_the_check() {
        let requirements = |requirements| {
            let request = proto::RouteRequest {
                query: "x".into(),
                requirements: Some(requirements),
                ..proto::RouteRequest::default()
            };
            route_request(request).unwrap()
        };
        assert_eq!(requirements(proto::Requirements::default()).requirements, Requirements::default());
        let nan = requirements(proto::Requirements { max_cost_usd: f64::NAN, ..Default::default() });
        assert_eq!(nan.check().unwrap_err().field, "requirements.max_cost_usd");
    }
}
