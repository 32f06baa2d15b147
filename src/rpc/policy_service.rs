//! `pointsman.v1.PolicyService`: the policy in force, checks of others, and changes at the source where it is writable.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status};

use super::proto::{self, policy_service_server::PolicyService};
use super::{Backend, convert, diff, simulate, status};
use crate::policy::{MAX_DOCUMENT_BYTES, Policy, PolicyOptions, Severity};
use crate::sources::PolicyStore;

/// The policy service.
#[derive(Clone, Debug)]
pub struct PolicyApi {
    backend: Backend,
    changes: bool,
}

impl PolicyApi {
    /// Answers from the policies of `backend`, and changes them if `changes` are offered to whoever can connect.
    pub fn new(backend: Backend, changes: bool) -> Self {
        Self { backend, changes }
    }

    fn policies(&self) -> Result<&PolicyStore, Status> {
        Ok(self.backend.router().map_err(|status| *status)?.policies())
    }

    fn changeable(&self) -> Result<&PolicyStore, Status> {
        if self.changes { self.policies() } else { Err(status::changes_off()) }
    }
}

#[tonic::async_trait]
impl PolicyService for PolicyApi {
    async fn get_policy(
        &self,
        _: Request<proto::GetPolicyRequest>,
    ) -> Result<Response<proto::GetPolicyResponse>, Status> {
        let active = self.policies()?.snapshot();
        Ok(Response::new(proto::GetPolicyResponse {
            policy: Some(convert::policy_ref(&active.policy_ref())),
            document: active.policy.document().to_string(),
        }))
    }

    async fn get_policy_status(
        &self,
        _: Request<proto::GetPolicyStatusRequest>,
    ) -> Result<Response<proto::GetPolicyStatusResponse>, Status> {
        let policies = self.policies()?;
        let (active, store, source) = (policies.snapshot(), policies.status(), policies.source());
        let policy = active.policy_ref();
        let by_reason = |counts: BTreeMap<&'static str, u64>| {
            counts.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect()
        };
        Ok(Response::new(proto::GetPolicyStatusResponse {
            loaded_at_unix_ms: policy.loaded_at_unix_ms,
            policy: Some(convert::policy_ref(&policy)),
            loads: store.loads,
            rejections: store.rejections,
            last_error: store.last_error.unwrap_or_default(),
            warnings: active.policy.warnings().iter().map(convert::finding).collect(),
            source_place: source.place(),
            writable: self.changes && source.is_writable(),
            origin: convert::origin(active.origin).into(),
            stale: policies.is_stale(&active),
            max_staleness_ms: policies.staleness().max.map_or(0, |max| max.as_millis() as u64),
            rejections_by_reason: by_reason(store.rejections_by_reason),
            fetch_failures: store.fetch_failures,
            fetch_failures_by_reason: by_reason(store.fetch_failures_by_reason),
            signed_by: active.signed_by.as_deref().unwrap_or_default().to_owned(),
            copy_error: store.copy_error.unwrap_or_default(),
            history: store.history.iter().map(convert::policy_version).collect(),
        }))
    }

    async fn validate_policy(
        &self,
        request: Request<proto::ValidatePolicyRequest>,
    ) -> Result<Response<proto::ValidatePolicyResponse>, Status> {
        let document = request.into_inner().document;
        check_size(&document)?;
        let intents = self.backend.ready().map(|ready| ready.router.classifier().intent_labels().clone());
        let options = PolicyOptions { intents, ..PolicyOptions::default() };
        let check = move || Policy::check(document.as_bytes(), &options);
        let findings = tokio::task::spawn_blocking(check)
            .await
            .map_err(|_| Status::internal("the document could not be checked"))?;
        Ok(Response::new(proto::ValidatePolicyResponse {
            valid: findings.iter().all(|finding| finding.severity != Severity::Error),
            findings: findings.iter().map(convert::finding).collect(),
        }))
    }

    async fn simulate_policy(
        &self,
        request: Request<proto::SimulatePolicyRequest>,
    ) -> Result<Response<proto::SimulatePolicyResponse>, Status> {
        simulate::simulate(&self.backend, request.into_inner()).await.map(Response::new)
    }

    async fn diff_policy(
        &self,
        request: Request<proto::DiffPolicyRequest>,
    ) -> Result<Response<proto::DiffPolicyResponse>, Status> {
        diff::diff(&self.backend, request.into_inner()).await.map(Response::new)
    }

    async fn publish_policy(
        &self,
        request: Request<proto::PublishPolicyRequest>,
    ) -> Result<Response<proto::PublishPolicyResponse>, Status> {
        let proto::PublishPolicyRequest { document, expected_sha256, signature } = request.into_inner();
        check_size(&document)?;
        let policies = self.changeable()?;
        let signature = Some(signature).filter(|signature| !signature.is_empty());
        let expected = Some(expected_sha256.as_str()).filter(|expected| !expected.is_empty());
        let policy = policies.publish(document.into_bytes(), signature, expected).await;
        let policy = policy.map_err(|error| status::from_change(&error))?;
        Ok(Response::new(proto::PublishPolicyResponse { policy: Some(convert::policy_ref(&policy)) }))
    }

    async fn rollback_policy(
        &self,
        request: Request<proto::RollbackPolicyRequest>,
    ) -> Result<Response<proto::RollbackPolicyResponse>, Status> {
        let version = request.into_inner().version;
        let version = Some(version.as_str()).filter(|version| !version.is_empty());
        let policy = self.changeable()?.roll_back(version).await.map_err(|error| status::from_change(&error))?;
        Ok(Response::new(proto::RollbackPolicyResponse { policy: Some(convert::policy_ref(&policy)) }))
    }

    async fn set_provider_enabled(
        &self,
        request: Request<proto::SetProviderEnabledRequest>,
    ) -> Result<Response<proto::SetProviderEnabledResponse>, Status> {
        let proto::SetProviderEnabledRequest { provider, enabled } = request.into_inner();
        if provider.is_empty() {
            return Err(status::invalid_field("provider", "is empty"));
        }
        let policy = self.changeable()?.set_provider_enabled(&provider, enabled).await;
        let policy = policy.map_err(|error| status::from_change(&error))?;
        Ok(Response::new(proto::SetProviderEnabledResponse { policy: Some(convert::policy_ref(&policy)) }))
    }
}

fn check_size(document: &str) -> Result<(), Status> {
    if document.len() > MAX_DOCUMENT_BYTES {
        let problem = format!("{} bytes, at most {MAX_DOCUMENT_BYTES} are allowed", document.len());
        return Err(status::invalid_field("document", problem));
    }
    Ok(())
}
