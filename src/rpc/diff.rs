//! `PolicyService.DiffPolicy`, and how requests carry documents.

use std::sync::Arc;

use serde_json::Value;
use tonic::Status;

use super::proto;
use super::{Backend, status};
use crate::policy::{self, Answer, Change, Effect, MAX_DOCUMENT_BYTES, Policy, PolicyOptions, render_findings};

pub(super) async fn diff(
    backend: &Backend,
    request: proto::DiffPolicyRequest,
) -> Result<proto::DiffPolicyResponse, Status> {
    let (active, options) = in_force(backend)?;
    let compare = move || -> Result<_, Box<Status>> {
        let from = match request.from_document.as_str() {
            "" => active,
            document => load("from_document", document, &options)?,
        };
        let found = policy::diff(&from, &load("to_document", &request.to_document, &options)?);
        Ok(proto::DiffPolicyResponse {
            changes: found.changes.into_iter().map(change).collect(),
            effects: found.effects.into_iter().map(effect).collect(),
            truncated: found.truncated,
        })
    };
    blocking(compare).await
}

/// The policy in force, and what others are read with.
pub(super) fn in_force(backend: &Backend) -> Result<(Arc<Policy>, PolicyOptions), Status> {
    let router = backend.router().map_err(|status| *status)?;
    let active = Arc::clone(&router.policies().snapshot().policy);
    let intents = Some(Arc::clone(router.classifier().intent_labels()));
    let environment = active.environment().map(str::to_owned);
    Ok((active, PolicyOptions { intents, environment }))
}

/// Reads a document of a request.
pub(super) fn load(field: &'static str, document: &str, options: &PolicyOptions) -> Result<Arc<Policy>, Box<Status>> {
    if document.len() > MAX_DOCUMENT_BYTES {
        let problem = format!("{} bytes, at most {MAX_DOCUMENT_BYTES} are allowed", document.len());
        return Err(Box::new(status::invalid_field(field, problem)));
    }
    let refuse = |invalid: policy::InvalidPolicy| {
        let findings = render_findings(&invalid.findings, field);
        Box::new(status::invalid_field(field, format!("cannot be used\n{}", findings.trim_end())))
    };
    Policy::load(document.as_bytes(), options).map(Arc::new).map_err(refuse)
}

/// Runs what takes longer than a request may hold a thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Box<Status>> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Status::internal("the documents could not be compared"))?.map_err(|status| *status)
}

fn change(change: Change) -> proto::PolicyChange {
    let json = |value: Option<Value>| value.map_or_else(String::new, |value| value.to_string());
    proto::PolicyChange { path: change.path, from_json: json(change.from), to_json: json(change.to) }
}

fn effect(effect: Effect) -> proto::PolicyEffect {
    proto::PolicyEffect {
        tenants: effect.tenants,
        role: effect.role,
        intent: effect.intent,
        tier: effect.tier.as_str().to_owned(),
        from: Some(answer(effect.from)),
        to: Some(answer(effect.to)),
    }
}

fn answer(answer: Answer) -> proto::PolicyAnswer {
    let (chain, model) = match answer {
        Answer::Model { chain, model } => (chain, model),
        Answer::NoCandidate { chain } => (chain, String::new()),
        Answer::Refused => (String::new(), String::new()),
    };
    proto::PolicyAnswer { chain, model }
}
