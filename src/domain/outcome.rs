//! What a caller saw of a model's answer.

use serde::{Deserialize, Serialize};

use super::InvalidQuery;

/// Why there is no usable answer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No answer in time.
    Timeout,
    /// The provider limited the rate.
    RateLimited,
    /// The provider failed.
    ProviderError,
    /// The model declined to answer.
    Refused,
    /// The answer was cut off.
    Truncated,
    /// The answer did not parse.
    BadFormat,
}

/// Why a model was called.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attempt {
    /// The decision selected it.
    First,
    /// Another one was unavailable.
    Fallback,
    /// Another one's answer was not good enough.
    Escalation,
}

/// How the answer of one model turned out; one line of the outcome log.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct OutcomeReport {
    /// When it was reported, Unix milliseconds.
    pub time_unix_ms: u64,
    /// The decision it is about.
    pub decision_id: String,
    /// The model that was called, as the policy names it.
    pub model: String,
    /// The caller's score of the answer, 0..=1; `None`: not scored, or there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What made the score; empty: not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scorer: String,
    /// Why there is no usable answer; `None`: there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// Tokens of this answer, prompt included; 0: unknown.
    pub tokens: u64,
    /// US dollars this answer cost; 0: unknown with an answer, nothing without one.
    pub cost_usd: f64,
    /// Time to the answer or the failure; 0: unknown.
    pub latency_ms: u64,
    /// Why it was called; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

/// Longest decision id, in bytes.
pub const MAX_DECISION_ID_BYTES: usize = 128;
/// Longest name of a model or scorer, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// A day: what took longer was not waited for.
const MAX_LATENCY_MS: u64 = 24 * 60 * 60 * 1_000;
/// More than any answer costs; keeps sums finite.
pub(super) const MAX_COST_USD: f64 = 1e6;

// === impl FailureKind ===

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Timeout, Self::RateLimited, Self::ProviderError, Self::Refused, Self::Truncated, Self::BadFormat];

    /// Whether another model of the same strength may do: the model could not be reached, rather than answered badly.
    pub fn is_unavailability(self) -> bool {
        matches!(self, Self::Timeout | Self::RateLimited | Self::ProviderError)
    }

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::RateLimited => "rate_limited",
            Self::ProviderError => "provider_error",
            Self::Refused => "refused",
            Self::Truncated => "truncated",
            Self::BadFormat => "bad_format",
        }
    }
}

// === impl Attempt ===

impl Attempt {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Fallback => "fallback",
            Self::Escalation => "escalation",
        }
    }
}

// === impl OutcomeReport ===

impl OutcomeReport {
    /// Checks every limit of the wire contract.
    ///
    /// # Errors
    /// Names the first field that breaks one.
    pub fn check(&self) -> Result<(), InvalidQuery> {
        let id = &self.decision_id;
        if id.is_empty() || id.len() > MAX_DECISION_ID_BYTES || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse("decision_id", format!("must be 1 to {MAX_DECISION_ID_BYTES} bytes of visible ASCII"));
        }
        if self.model.is_empty() || self.model.len() > MAX_NAME_BYTES {
            return refuse(
                "model",
                format!("must be 1 to {MAX_NAME_BYTES} bytes; send the policy's name of the model"),
            );
        }
        if self.latency_ms > MAX_LATENCY_MS {
            return refuse("latency_ms", format!("{} ms is more than a day", self.latency_ms));
        }
        if let Some(score) = self.score
            && !(0.0..=1.0).contains(&score)
        {
            return refuse("observed.score", format!("{score} is not within 0..=1"));
        }
        if self.scorer.len() > MAX_NAME_BYTES {
            return refuse("observed.scorer", format!("at most {MAX_NAME_BYTES} bytes are allowed"));
        }
        if !(0.0..=MAX_COST_USD).contains(&self.cost_usd) {
            return refuse("observed.cost_usd", format!("{} is not within 0..={MAX_COST_USD}", self.cost_usd));
        }
        Ok(())
    }
}

fn refuse(field: &'static str, problem: String) -> Result<(), InvalidQuery> {
    Err(InvalidQuery { field, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> OutcomeReport {
        OutcomeReport {
            time_unix_ms: 1,
            decision_id: "d".to_owned(),
            model: "mini".to_owned(),
            score: None,
            scorer: String::new(),
            failure: None,
            tokens: 0,
            cost_usd: 0.0,
            latency_ms: 0,
            attempt: None,
        }
    }

    #[test]
    fn limits_name_the_field_they_refuse() {
        let cases = [
            (report(), None),
            (OutcomeReport { decision_id: String::new(), ..report() }, Some("decision_id")),
            (OutcomeReport { decision_id: "a b".to_owned(), ..report() }, Some("decision_id")),
            (OutcomeReport { model: String::new(), ..report() }, Some("model")),
            (OutcomeReport { latency_ms: u64::MAX, ..report() }, Some("latency_ms")),
            (OutcomeReport { score: Some(f64::NAN), ..report() }, Some("observed.score")),
            (OutcomeReport { score: Some(1.01), ..report() }, Some("observed.score")),
            (OutcomeReport { cost_usd: f64::INFINITY, ..report() }, Some("observed.cost_usd")),
            (OutcomeReport { cost_usd: -0.1, ..report() }, Some("observed.cost_usd")),
            (OutcomeReport { scorer: "s".repeat(257), ..report() }, Some("observed.scorer")),
        ];
        for (report, field) in cases {
            assert_eq!(report.check().err().map(|error| error.field), field, "{report:?}");
        }
    }

    #[test]
    fn a_line_of_the_log_is_flat_and_reads_back() {
        let report = OutcomeReport {
            score: Some(0.5),
            scorer: "judge".to_owned(),
            failure: Some(FailureKind::Truncated),
            tokens: 7,
            cost_usd: 0.25,
            attempt: Some(Attempt::Escalation),
            ..report()
        };
        let line = serde_json::to_value(&report).unwrap();
        assert_eq!(
            line,
            serde_json::json!({
                "time_unix_ms": 1, "decision_id": "d", "model": "mini", "score": 0.5, "scorer": "judge",
                "failure": "truncated", "tokens": 7, "cost_usd": 0.25, "latency_ms": 0, "attempt": "escalation",
            })
        );
        assert_eq!(serde_json::from_value::<OutcomeReport>(line).unwrap(), report);
    }
}
