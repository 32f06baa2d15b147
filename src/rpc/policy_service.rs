//! `pointsman.v1.PolicyService`: what can be read and checked; changing comes with writable sources.

use std::time::UNIX_EPOCH;

use tonic::{Request, Response, Status};

use super::proto::{self, policy_service_server::PolicyService};
use super::{Backend, convert, diff, simulate, status};
use crate::policy::{MAX_DOCUMENT_BYTES, Policy, PolicyOptions, Severity};

/// The policy service.
#[derive(Clone, Debug)]
pub struct PolicyApi {
    backend: Backend,
}

impl PolicyApi {
    /// Answers from the policies of `backend`.
    pub fn new(backend: Backend) -> Self {
        Self { backend }
    }
}

#[tonic::async_trait]
impl PolicyService for PolicyApi {
    async fn get_policy(
        &self,
        _: Request<proto::GetPolicyRequest>,
    ) -> Result<Response<proto::GetPolicyResponse>, Status> {
        let active = self.backend.router().map_err(|status| *status)?.policies().snapshot();
        Ok(Response::new(proto::GetPolicyResponse {
            policy: Some(convert::policy_ref(&active.policy_ref())),
            document: active.policy.document().to_string(),
        }))
    }

    async fn get_policy_status(
        &self,
        _: Request<proto::GetPolicyStatusRequest>,
    ) -> Result<Response<proto::GetPolicyStatusResponse>, Status> {
        let policies = self.backend.router().map_err(|status| *status)?.policies();
        let (active, store) = (policies.snapshot(), policies.status());
        let loaded_at = active.loaded_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Response::new(proto::GetPolicyStatusResponse {
            policy: Some(convert::policy_ref(&active.policy_ref())),
            loaded_at_unix_ms: u64::try_from(loaded_at.as_millis()).unwrap_or(u64::MAX),
            loads: store.loads,
            rejections: store.rejections,
            last_error: store.last_error.unwrap_or_default(),
            warnings: active.policy.warnings().iter().map(convert::finding).collect(),
        }))
    }

    async fn validate_policy(
        &self,
        request: Request<proto::ValidatePolicyRequest>,
    ) -> Result<Response<proto::ValidatePolicyResponse>, Status> {
        let document = request.into_inner().document;
        if document.len() > MAX_DOCUMENT_BYTES {
            let problem = format!("{} bytes, at most {MAX_DOCUMENT_BYTES} are allowed", document.len());
            return Err(status::invalid_field("document", problem));
        }
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
        _: Request<proto::PublishPolicyRequest>,
    ) -> Result<Response<proto::PublishPolicyResponse>, Status> {
        Err(status::not_offered("PublishPolicy"))
    }

    async fn rollback_policy(
        &self,
        _: Request<proto::RollbackPolicyRequest>,
    ) -> Result<Response<proto::RollbackPolicyResponse>, Status> {
        Err(status::not_offered("RollbackPolicy"))
    }

    async fn set_provider_enabled(
        &self,
        _: Request<proto::SetProviderEnabledRequest>,
    ) -> Result<Response<proto::SetProviderEnabledResponse>, Status> {
        Err(status::not_offered("SetProviderEnabled"))
    }
}
