//! Which arm of each experiment a request gets.
//!
//! Arms are settled before the query is looked at, from a key, the experiment's name and the time: the same on every
//! replica and after every restart, and independent from one experiment to the next. A key is reduced to a digest
//! first, so that a log which holds no key can still tell the arm.
//!
//! Anyone can compute an arm: with `digest = SHA-256(key)[..16]` the point is the first 8 bytes of
//! `SHA-256(name || 0x00 || digest)` as a big-endian number over 2^64; arms take the unit interval in the order of
//! their names, each as much as its share.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::experiment::{CONTROL, ExperimentKind, ExperimentSpec, RampSpec, StickyBy};
use super::snapshot::Layer;
use crate::domain::{ExperimentArm, Probability};

/// What a key is reduced to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyDigest(pub [u8; 16]);

/// What experiments look at.
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    /// Of the session id; `None`: the request has none.
    pub session: Option<KeyDigest>,
    /// The request's id.
    pub request_id: &'a str,
    /// The caller's pairs.
    pub metadata: &'a BTreeMap<String, String>,
    /// When the request came, Unix milliseconds.
    pub now_ms: u64,
}

/// [`ExperimentSpec`] in the form that assigns; only enabled ones are kept.
#[derive(Debug)]
pub(super) struct Experiment {
    pub(super) name: Arc<str>,
    pub(super) kind: ExperimentKind,
    sticky_by: StickyBy,
    tenants: Option<Vec<String>>,
    roles: Option<Vec<String>>,
    ramp: Option<RampSpec>,
    pub(super) arms: Vec<Arm>,
}

#[derive(Debug)]
pub(super) struct Arm {
    pub(super) name: Arc<str>,
    share: Option<f64>,
    /// `None`: the arm changes nothing.
    pub(super) layer: Option<Arc<Layer>>,
}

// === impl KeyDigest ===

impl KeyDigest {
    /// The digest of a key.
    pub fn of(key: &str) -> Self {
        let mut digest = [0; 16];
        for (to, from) in digest.iter_mut().zip(Sha256::digest(key.as_bytes())) {
            *to = from;
        }
        Self(digest)
    }
}

// === impl Experiment ===

impl Experiment {
    pub(super) fn new(name: &str, spec: &ExperimentSpec, layer: impl Fn(&str) -> Option<Arc<Layer>>) -> Self {
        let mut arms: Vec<Arm> = spec
            .arms
            .iter()
            .map(|(name, arm)| Arm { name: Arc::from(name.as_str()), share: arm.weight, layer: layer(name) })
            .collect();
        if spec.kind == ExperimentKind::Canary {
            // The canary's own arm stays first: as its share grows, no request leaves it.
            arms.push(Arm { name: Arc::from(CONTROL), share: None, layer: None });
        }
        Self {
            name: Arc::from(name),
            kind: spec.kind,
            sticky_by: spec.sticky_by.clone(),
            tenants: spec.tenants.clone(),
            roles: spec.roles.clone(),
            ramp: spec.ramp,
            arms,
        }
    }

    /// The metadata key it looks at.
    pub(super) fn metadata_key(&self) -> Option<&str> {
        match &self.sticky_by {
            StickyBy::Metadata(key) => Some(key),
            StickyBy::Session | StickyBy::Tenant | StickyBy::Request => None,
        }
    }

    /// The arm, and what a decision tells of it; `None`: the request takes no part.
    pub(super) fn assign(&self, tenant: &str, role: &str, request: &Assignment<'_>) -> Option<(&Arm, ExperimentArm)> {
        let among = |list: &Option<Vec<String>>, name: &str| {
            list.as_ref().is_none_or(|list| list.iter().any(|known| known == name))
        };
        if !among(&self.tenants, tenant) || !among(&self.roles, role) {
            return None;
        }
        let point = self.point(self.key(tenant, request)?);
        let mut cumulative = 0.0;
        let mut last = None;
        for arm in &self.arms {
            let share = self.share(arm, request.now_ms, cumulative);
            if share <= 0.0 {
                continue;
            }
            cumulative += share;
            last = Some((arm, share));
            if point < cumulative {
                break;
            }
        }
        // Shares of a shadow need not fill the interval; those of other kinds do but for rounding.
        let outside = self.kind == ExperimentKind::Shadow && point >= cumulative;
        let (arm, share) = last.filter(|_| !outside)?;
        let told = ExperimentArm {
            experiment: Arc::clone(&self.name),
            arm: Arc::clone(&arm.name),
            propensity: Probability::saturating(share),
        };
        Some((arm, told))
    }

    /// Every arm that the request could have got, with its probability; none: it takes no part.
    pub(super) fn shares(&self, tenant: &str, role: &str, request: &Assignment<'_>) -> Vec<ExperimentArm> {
        if self.assign(tenant, role, request).is_none() {
            return Vec::new();
        }
        let mut cumulative = 0.0;
        let mut told = Vec::new();
        for arm in &self.arms {
            let share = self.share(arm, request.now_ms, cumulative);
            if share > 0.0 {
                cumulative += share;
                told.push(ExperimentArm {
                    experiment: Arc::clone(&self.name),
                    arm: Arc::clone(&arm.name),
                    propensity: Probability::saturating(share),
                });
            }
        }
        told
    }

    fn share(&self, arm: &Arm, now_ms: u64, taken: f64) -> f64 {
        match (self.kind, self.ramp) {
            (ExperimentKind::Canary, _) if arm.layer.is_none() && &*arm.name == CONTROL => 1.0 - taken,
            (ExperimentKind::Canary, Some(ramp)) => ramp.share(now_ms),
            (ExperimentKind::Shadow, _) => arm.share.unwrap_or(1.0),
            (ExperimentKind::Canary | ExperimentKind::Ab, _) => arm.share.unwrap_or(0.0),
        }
    }

    fn key(&self, tenant: &str, request: &Assignment<'_>) -> Option<KeyDigest> {
        match &self.sticky_by {
            StickyBy::Session => Some(request.session.unwrap_or_else(|| KeyDigest::of(request.request_id))),
            StickyBy::Request => Some(KeyDigest::of(request.request_id)),
            StickyBy::Tenant => (!tenant.is_empty()).then(|| KeyDigest::of(tenant)),
            StickyBy::Metadata(key) => request.metadata.get(key).map(|value| KeyDigest::of(value)),
        }
    }

    /// Where a key stands in `0..1`.
    fn point(&self, key: KeyDigest) -> f64 {
        let hash = Sha256::new().chain_update(self.name.as_bytes()).chain_update([0]).chain_update(key.0).finalize();
        let head = hash.iter().take(8).fold(0_u64, |head, byte| (head << 8) | u64::from(*byte));
        // The upper 53 bits are what an f64 holds exactly, so that the result is always below 1.
        (head >> 11) as f64 / (1_u64 << 53) as f64
    }
}
