//! Reports of what came of decisions, and who may make them.

use std::sync::Arc;

use super::Router;
use crate::domain::OutcomeReport;

/// Who reports, and what it shows for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reporter<'a> {
    /// The only tenants it speaks for; `None`: any.
    pub tenants: Option<&'a [String]>,
    /// The decision's continuation; empty: none was sent.
    pub continuation: &'a str,
}

/// A report is not the reporter's to make.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotVouched {
    /// The decision is another tenant's, or nothing shows that it is not: the two look alike, so that nobody can try
    /// out what others' decisions are called.
    #[error("the decision is not known to be of the caller's tenants; send its continuation with the report")]
    Decision,
    /// The decision is the reporter's and names other models.
    #[error("the decision does not name this model; send the id of the one that does")]
    Model,
}

// === impl Router ===

impl Router {
    /// Takes what a caller saw of a model's answer.
    ///
    /// # Errors
    /// When the reporter does not speak for the decision's tenant.
    pub async fn report(&self, report: OutcomeReport, reporter: Reporter<'_>) -> Result<(), NotVouched> {
        let tenant = match reporter.tenants {
            Some(tenants) => self.vouch(&report, reporter.continuation, tenants).await?,
            None => Arc::default(),
        };
        let policy = Arc::clone(&self.policies.snapshot().policy);
        if !self.governor().report(&policy, report, &tenant).await {
            tracing::debug!("an outcome of a model that the policy does not have, or one that was told before");
        }
        Ok(())
    }

    /// The decision's tenant, if it is one of `tenants`: as this server or the shared state knows it, else as the
    /// continuation shows.
    async fn vouch(
        &self,
        report: &OutcomeReport,
        continuation: &str,
        tenants: &[String],
    ) -> Result<Arc<str>, NotVouched> {
        let theirs = |tenant: &str| tenants.iter().any(|known| known == tenant);
        if let Some(known) = self.governor().state().look_up(&report.decision_id).await {
            return match known.attempt_of(&report.model) {
                _ if !theirs(&known.outline.tenant) => Err(NotVouched::Decision),
                None => Err(NotVouched::Model),
                Some(_) => Ok(Arc::clone(&known.outline.tenant)),
            };
        }
        let shown = self.cascades.as_ref().and_then(|cascades| cascades.provenance(continuation));
        let shown = shown.filter(|shown| shown.decision.to_string() == report.decision_id && theirs(&shown.tenant));
        shown.map(|shown| shown.tenant.into()).ok_or(NotVouched::Decision)
    }
}
