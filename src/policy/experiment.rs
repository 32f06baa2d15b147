//! The `experiments` section of the document, as it is written: A/B tests, canaries and shadows.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::document::{LayerSpec, is_default, yes};
use crate::domain::Probability;

/// A comparison on live traffic.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub struct ExperimentSpec {
    /// Off: as if it were not written.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub enabled: bool,
    /// What is done with the arms.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: ExperimentKind,
    /// Requests with the same value of this get the same arm.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sticky_by: StickyBy,
    /// Only requests of these tenants take part. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<String>>,
    /// Only requests of these roles take part. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
    /// How the share of a canary's arm grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<RampSpec>,
    /// What is compared, by name.
    pub arms: BTreeMap<String, ArmSpec>,
}

/// What is done with the arms of an experiment.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExperimentKind {
    /// Each request is served by one of two or more arms.
    #[default]
    Ab,
    /// A share of requests, which may grow with time, is served by the one arm; the rest is the arm `control`.
    Canary,
    /// Every request is served as if there were no experiment; what the one arm would decide is recorded beside.
    Shadow,
}

/// One arm: an override as of a tenant, and its share.
#[derive(Clone, Debug, Default, JsonSchema, PartialEq, Serialize)]
pub struct ArmSpec {
    /// Share of requests, 0 to 1. Required of A/B arms, whose shares sum to 1, and of a canary without a ramp. For a
    /// shadow the share that is decided twice; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// What the arm changes; nothing: it is a control.
    #[serde(flatten)]
    pub layer: LayerSpec,
}

/// A share that moves evenly from one value to another.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct RampSpec {
    /// Before this time the share is 0.
    pub start: Timestamp,
    /// From this time on the share is `to`.
    pub end: Timestamp,
    /// The share at the start.
    pub from: Probability,
    /// The share at the end.
    pub to: Probability,
}

/// What makes two requests one for an experiment.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum StickyBy {
    /// The session id; a request without one is a session of its own.
    #[default]
    Session,
    /// The tenant; requests without one take no part.
    Tenant,
    /// The request id: no stickiness.
    Request,
    /// The value of a metadata key; requests without it take no part.
    Metadata(String),
}

/// A moment, in milliseconds since 1970, written as `2026-11-21T18:00:00Z`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(pub u64);

/// The arm of the requests that a canary leaves alone.
pub const CONTROL: &str = "control";

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_yes(value: &bool) -> bool {
    *value
}

// === impl ExperimentSpec ===

impl Default for ExperimentSpec {
    fn default() -> Self {
        Self {
            enabled: yes(),
            kind: ExperimentKind::default(),
            sticky_by: StickyBy::default(),
            tenants: None,
            roles: None,
            ramp: None,
            arms: BTreeMap::new(),
        }
    }
}

// === impl ExperimentKind ===

impl ExperimentKind {
    /// The name in documents and decisions.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ab => "ab",
            Self::Canary => "canary",
            Self::Shadow => "shadow",
        }
    }
}

// === impl RampSpec ===

impl RampSpec {
    /// The share at `now_ms`, Unix milliseconds.
    pub fn share(&self, now_ms: u64) -> f64 {
        if now_ms < self.start.0 {
            return 0.0;
        }
        let (passed, whole) = (now_ms - self.start.0, self.end.0.saturating_sub(self.start.0));
        let part = if passed >= whole { 1.0 } else { passed as f64 / whole as f64 };
        self.from.value() + part * (self.to.value() - self.from.value())
    }
}

// === impl StickyBy ===

impl TryFrom<String> for StickyBy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "session_id" => Ok(Self::Session),
            "tenant" => Ok(Self::Tenant),
            "request_id" => Ok(Self::Request),
            other => match other.strip_prefix("metadata.") {
                Some(key) if !key.is_empty() => Ok(Self::Metadata(key.to_owned())),
                _ => Err(format!("{text:?} is none of session_id, tenant, request_id and metadata.KEY")),
            },
        }
    }
}

impl From<StickyBy> for String {
    fn from(by: StickyBy) -> Self {
        match by {
            StickyBy::Session => "session_id".to_owned(),
            StickyBy::Tenant => "tenant".to_owned(),
            StickyBy::Request => "request_id".to_owned(),
            StickyBy::Metadata(key) => format!("metadata.{key}"),
        }
    }
}

impl JsonSchema for StickyBy {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StickyBy".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "session_id, tenant, request_id or metadata.KEY.",
            "type": "string",
            "pattern": "^(session_id|tenant|request_id|metadata\\..+)$",
        })
    }
}

// === impl Timestamp ===

impl TryFrom<String> for Timestamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let unusable = || format!("{text:?} is not a time; write UTC as 2026-11-21T18:00:00Z");
        let time = humantime::parse_rfc3339(&text).map_err(|_| unusable())?;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| unusable())?;
        u64::try_from(since.as_millis()).map(Self).map_err(|_| unusable())
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The end of what the format can say; no ramp gets there.
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.min(253_402_300_799_999));
        write!(f, "{}", humantime::format_rfc3339(time))
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A moment in UTC, for example 2026-11-21T18:00:00Z.",
            "type": "string",
            "pattern": "^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}(\\.\\d+)?Z$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_is_zero_before_and_even_between() {
        let (from, to) = (Probability::saturating(0.1), Probability::saturating(0.5));
        let ramp = RampSpec { start: Timestamp(1_000), end: Timestamp(3_000), from, to };
        let shares: Vec<f64> = [0, 999, 1_000, 2_000, 3_000, 9_000].map(|now| ramp.share(now)).into();
        let expected = [0.0, 0.0, 0.1, 0.3, 0.5, 0.5];
        assert!(shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() < 1e-12), "{shares:?}");
    }

    #[test]
    fn times_and_keys_keep_their_spelling() {
        let time = Timestamp::try_from("2026-11-21T18:00:00Z".to_owned()).unwrap();
        assert_eq!(time.to_string(), "2026-11-21T18:00:00Z");
        for bad in ["2026-11-21", "2026-11-21T18:00:00+01:00", "1960-01-01T00:00:00Z", "soon"] {
            assert!(Timestamp::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for by in ["session_id", "tenant", "request_id", "metadata.user"] {
            assert_eq!(String::from(StickyBy::try_from(by.to_owned()).unwrap()), by);
        }
        assert!(StickyBy::try_from("metadata.".to_owned()).is_err());
    }
}
