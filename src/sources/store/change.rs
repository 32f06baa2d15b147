//! Changing the policy at its source: publish, go back, turn a provider on or off.
//!
//! Every change first looks at the source, so that it starts from what is there, and then replaces exactly that. What
//! is written was admitted before by the rules that every replica admits by, so no change can take routing down. The
//! other replicas follow as after any change at the source.

use std::sync::Arc;

use super::{Admitted, Content, Origin, PolicyEvent, PolicyStore, Progress, RefreshError};
use crate::domain::PolicyRef;
use crate::policy::{EditError, InvalidPolicy, Severity, set_provider_enabled, sha256_hex};
use crate::sources::{SignatureError, SourceError, WriteError};

/// Why the policy was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The document has errors; the caller's fault.
    #[error("the document is refused")]
    Invalid(#[source] InvalidPolicy),
    /// The document's signature is missing or wrong; the caller's fault.
    #[error("the document is not trusted")]
    Untrusted(#[source] SignatureError),
    /// Another document is in force than the caller believes.
    #[error("the policy in force has SHA-256 {found}, not {expected}")]
    Unexpected {
        /// What the caller believes.
        expected: String,
        /// What is.
        found: String,
    },
    /// Another document has the same version, and decisions would name both by it.
    #[error("version {version:?} was in force with other contents (SHA-256 {sha256}); give the document a new version")]
    VersionTaken {
        /// The version.
        version: String,
        /// The document that has it.
        sha256: String,
    },
    /// No document of this version was in force, as far back as the history goes.
    #[error("version {version:?} is not in the history, which has {}", known.join(", "))]
    UnknownVersion {
        /// What was asked for.
        version: String,
        /// What there is.
        known: Vec<String>,
    },
    /// What is in force is the oldest document of the history.
    #[error("the history has nothing before the policy in force")]
    NothingBefore,
    /// The document cannot be edited as asked.
    #[error("the policy in force cannot be edited")]
    Edit(#[from] EditError),
    /// Policies must be signed, and the key to sign with is not here.
    #[error(
        "policies must be signed here, and the private key is not on this server: change the document where the key \
         is, with `pointsman policy provider` or by hand, and publish it signed"
    )]
    NeedsSignature,
    /// What is in force is not what the source has: that document is refused, or the source was never reached.
    #[error("the document at the source is not in force; publish a good one first")]
    NotInForce,
    /// The source was not changed.
    #[error("the policy's source was not changed")]
    Write(#[from] WriteError),
    /// The source could not be read.
    #[error("the policy's source cannot be read")]
    Source(#[from] SourceError),
    /// A defect of this program.
    #[error("the policy could not be compiled")]
    Compile(#[source] tokio::task::JoinError),
}

/// How often an edit starts again when somebody else was faster.
const ATTEMPTS: usize = 5;

// === impl PolicyStore ===

impl PolicyStore {
    /// Makes `document` the current one at the source, if that has `expected_sha256` or nothing is expected.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn publish(
        &self,
        document: Vec<u8>,
        signature: Option<String>,
        expected_sha256: Option<&str>,
    ) -> Result<PolicyRef, ChangeError> {
        let mut progress = self.progress.lock().await;
        self.check_writable()?;
        let admitted = self.admit_change(document, signature).await?;
        // One tenant's error leaves the others theirs where it turns up; whoever publishes it is there to mend it.
        let findings = admitted.policy.warnings();
        if findings.iter().any(|finding| finding.severity == Severity::Error) {
            return Err(ChangeError::Invalid(InvalidPolicy { findings: findings.to_vec() }));
        }
        self.catch_up(&mut progress).await?;
        let found = Arc::clone(self.snapshot().policy.sha256());
        if let Some(expected) = expected_sha256
            && *expected != *found
        {
            return Err(ChangeError::Unexpected { expected: expected.to_owned(), found: found.to_string() });
        }
        let version = admitted.policy.version();
        let entries = progress.history.entries();
        let taken = entries.iter().find(|known| known.version == *version && known.sha256 != *admitted.policy.sha256());
        if let Some(taken) = taken {
            return Err(ChangeError::VersionTaken { version: version.to_string(), sha256: taken.sha256.to_string() });
        }
        self.replace(admitted, &mut progress).await
    }

    /// Makes a document that was in force before the current one at the source: the newest of `version`, or the one
    /// before the one in force.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn roll_back(&self, version: Option<&str>) -> Result<PolicyRef, ChangeError> {
        let mut progress = self.progress.lock().await;
        self.check_writable()?;
        self.catch_up(&mut progress).await?;
        let history = &progress.history;
        let entry = match version {
            None => history.before().ok_or(ChangeError::NothingBefore)?,
            Some(version) => history.version(version).ok_or_else(|| ChangeError::UnknownVersion {
                version: version.to_owned(),
                known: history.entries().iter().map(|entry| entry.version.to_string()).collect(),
            })?,
        };
        let (document, signature) = (entry.document.to_vec(), entry.signature.as_deref().map(str::to_owned));
        // Checked again: a key may have been withdrawn, or the classifier may have other intents now.
        let admitted = self.admit_change(document, signature).await?;
        self.replace(admitted, &mut progress).await
    }

    /// Turns a provider on or off in the document at the source.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn set_provider_enabled(&self, provider: &str, enabled: bool) -> Result<PolicyRef, ChangeError> {
        let mut progress = self.progress.lock().await;
        self.check_writable()?;
        if self.keys.is_some() {
            return Err(ChangeError::NeedsSignature);
        }
        let mut attempt = 1;
        loop {
            self.catch_up(&mut progress).await?;
            let active = self.snapshot();
            if progress.refused.is_some() || active.origin != Origin::Source {
                return Err(ChangeError::NotInForce);
            }
            let taken: Vec<&str> = progress.history.entries().iter().map(|entry| &*entry.version).collect();
            let Some(document) = set_provider_enabled(&active.policy, provider, enabled, &taken)? else {
                return Ok(active.policy_ref());
            };
            let admitted = self.admit_change(document.into_bytes(), None).await?;
            match self.replace(admitted, &mut progress).await {
                // What is asked for does not depend on what was there.
                Err(ChangeError::Write(WriteError::Conflict)) if attempt < ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    fn check_writable(&self) -> Result<(), ChangeError> {
        let kind = self.source.kind();
        if self.source.is_writable() { Ok(()) } else { Err(WriteError::ReadOnly { kind }.into()) }
    }

    async fn admit_change(&self, document: Vec<u8>, signature: Option<String>) -> Result<Admitted, ChangeError> {
        // The source gives the revision when it has the document.
        self.admit(document, signature, String::new()).await.map_err(|error| match error {
            RefreshError::Invalid { source, .. } => ChangeError::Invalid(source),
            RefreshError::Untrusted { source, .. } => ChangeError::Untrusted(source),
            RefreshError::Source(error) => ChangeError::Source(error),
            RefreshError::Compile(error) => ChangeError::Compile(error),
        })
    }

    /// Sees what the source has now. A document that is refused, or none at all, may be replaced like any other.
    async fn catch_up(&self, progress: &mut Progress) -> Result<(), ChangeError> {
        match self.look(progress).await {
            Err(RefreshError::Source(error)) if error.is_absent() => {
                progress.revision = None;
                progress.content = None;
                Ok(())
            }
            Err(RefreshError::Source(error)) => Err(error.into()),
            Err(RefreshError::Compile(error)) => Err(ChangeError::Compile(error)),
            Ok(_) | Err(RefreshError::Invalid { .. } | RefreshError::Untrusted { .. }) => Ok(()),
        }
    }

    async fn replace(&self, mut admitted: Admitted, progress: &mut Progress) -> Result<PolicyRef, ChangeError> {
        let document = Arc::clone(admitted.policy.document());
        let signature = admitted.signature.clone();
        let content = Content { sha256: sha256_hex(document.as_bytes()), signature: signature.clone() };
        if progress.content.as_ref() == Some(&content) && progress.refused.is_none() {
            return Ok(self.snapshot().policy_ref());
        }
        let expected = progress.revision.clone();
        let written = self.source.write(document.as_bytes(), signature.as_deref(), expected.as_deref());
        let revision = written.await?;
        progress.revision = Some(revision.clone());
        progress.content = Some(content);
        progress.refused = None;
        admitted.revision = revision;
        let event = self.put_in_force(admitted, progress);
        self.record(&Ok::<PolicyEvent, RefreshError>(event), progress);
        self.keep(progress).await;
        Ok(self.snapshot().policy_ref())
    }
}
