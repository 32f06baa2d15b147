//! A client of `PolicyService`, for operators: what is in force, and changing it at its source.
//!
//! Speaks plain values, so that the command line needs to know nothing of the wire.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::rpc::proto::policy_service_client::PolicyServiceClient;
use crate::rpc::proto::{self, PolicyOrigin};

/// A connection to a running service.
#[derive(Clone, Debug)]
pub struct PolicyClient {
    inner: PolicyServiceClient<Channel>,
}

/// A policy that is in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InForce {
    /// The document's id.
    pub id: String,
    /// The document's version.
    pub version: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// What the source calls it.
    pub revision: String,
    /// The kind of its source, or what stands in for that.
    pub source: String,
    /// Time since the source confirmed it.
    pub age: Duration,
}

/// The state of a service's policy and of its source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyState {
    /// What is in force.
    pub in_force: InForce,
    /// Where it comes from.
    pub place: String,
    /// Who had it in force: the source, the copy on disk, the embedded default.
    pub origin: &'static str,
    /// Whether it can be changed over gRPC.
    pub writable: bool,
    /// Whether it has gone unconfirmed for too long.
    pub stale: bool,
    /// The key that signed it; empty: no signature is asked for.
    pub signed_by: String,
    /// Documents accepted and refused, and looks that failed, since the start.
    pub counts: (u64, u64, u64),
    /// Why the last look failed; empty: it did not.
    pub last_error: String,
    /// Why the copy on disk cannot be used; empty: it can, or there is none.
    pub copy_error: String,
    /// Versions and hashes to go back to, oldest first.
    pub history: Vec<(String, String)>,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no service at the address.
    #[error("cannot reach {server}")]
    Connect {
        /// The address.
        server: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// The service says no.
    #[error("{code:?}: {message}")]
    Refused {
        /// The status code.
        code: tonic::Code,
        /// Why.
        message: String,
    },
}

/// Enough for a source over the network and a look before the change.
const TIMEOUT: Duration = Duration::from_secs(15);
/// A document is at most 1 MiB; there is more around it.
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;

// === impl PolicyClient ===

impl PolicyClient {
    /// Connects to `server`, written `host:port` or as a URL.
    ///
    /// # Errors
    /// When there is no service.
    pub async fn connect(server: &str) -> Result<Self, ClientError> {
        let url = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
        let failed = |source| ClientError::Connect { server: server.to_owned(), source };
        let endpoint = Endpoint::from_shared(url).map_err(failed)?.connect_timeout(TIMEOUT).timeout(TIMEOUT);
        let inner = PolicyServiceClient::new(endpoint.connect().await.map_err(failed)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { inner })
    }

    /// The state of the policy and of its source.
    ///
    /// # Errors
    /// When the service does not answer.
    pub async fn state(&mut self) -> Result<PolicyState, ClientError> {
        let answer = self.inner.get_policy_status(proto::GetPolicyStatusRequest {}).await?.into_inner();
        Ok(PolicyState {
            origin: match answer.origin() {
                PolicyOrigin::Unspecified | PolicyOrigin::Source => "its source",
                PolicyOrigin::Copy => "the copy on disk, since the source has given nothing usable since the start",
                PolicyOrigin::Embedded => "the embedded default, since nothing else is usable",
            },
            in_force: answer.policy.into(),
            place: answer.source_place,
            writable: answer.writable,
            stale: answer.stale,
            signed_by: answer.signed_by,
            counts: (answer.loads, answer.rejections, answer.fetch_failures),
            last_error: answer.last_error,
            copy_error: answer.copy_error,
            history: answer.history.into_iter().map(|entry| (entry.version, entry.sha256)).collect(),
        })
    }

    /// The document in force and its SHA-256.
    ///
    /// # Errors
    /// When the service does not answer.
    pub async fn document(&mut self) -> Result<(String, String), ClientError> {
        let answer = self.inner.get_policy(proto::GetPolicyRequest {}).await?.into_inner();
        Ok((answer.document, answer.policy.unwrap_or_default().sha256))
    }

    /// Makes `document` the current one, if the one in force has `expected_sha256` or that is empty.
    ///
    /// # Errors
    /// When the service refuses it.
    pub async fn publish(
        &mut self,
        document: String,
        signature: String,
        expected_sha256: String,
    ) -> Result<InForce, ClientError> {
        let request = proto::PublishPolicyRequest { document, expected_sha256, signature };
        Ok(self.inner.publish_policy(request).await?.into_inner().policy.into())
    }

    /// Makes an earlier version the current one; empty: the one before.
    ///
    /// # Errors
    /// When the service refuses it.
    pub async fn roll_back(&mut self, version: String) -> Result<InForce, ClientError> {
        let request = proto::RollbackPolicyRequest { version };
        Ok(self.inner.rollback_policy(request).await?.into_inner().policy.into())
    }

    /// Turns a provider on or off.
    ///
    /// # Errors
    /// When the service refuses it.
    pub async fn set_provider_enabled(&mut self, provider: String, enabled: bool) -> Result<InForce, ClientError> {
        let request = proto::SetProviderEnabledRequest { provider, enabled };
        Ok(self.inner.set_provider_enabled(request).await?.into_inner().policy.into())
    }
}

// === impl InForce ===

impl From<Option<proto::PolicyRef>> for InForce {
    fn from(policy: Option<proto::PolicyRef>) -> Self {
        let policy = policy.unwrap_or_default();
        Self {
            id: policy.id,
            version: policy.version,
            sha256: policy.sha256,
            revision: policy.source_revision,
            source: policy.source,
            age: Duration::from_millis(policy.age_ms),
        }
    }
}

// === impl ClientError ===

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused { code: status.code(), message: status.message().to_owned() }
    }
}
