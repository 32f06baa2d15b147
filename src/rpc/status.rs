//! Every error as a gRPC status: code, text for the caller, details, retry advice. The only place that maps them.
//!
//! | error | whose fault | code | details |
//! |---|---|---|---|
//! | a field is not valid | caller | INVALID_ARGUMENT | `BadRequest` with the field |
//! | unknown role | caller | INVALID_ARGUMENT | `BadRequest` |
//! | unknown tenant, refused by the policy | caller | NOT_FOUND | `ResourceInfo` |
//! | filters left no candidate | caller's requirements or the policy | FAILED_PRECONDITION | `PreconditionFailure`, one entry a removal |
//! | a continuation that is forged, or another tenant's | caller | PERMISSION_DENIED | |
//! | a continuation that has expired | caller | FAILED_PRECONDITION | `PreconditionFailure` |
//! | policy older than allowed | the control plane | UNAVAILABLE | `RetryInfo` |
//! | a policy change that cannot be made | caller, or the source | INVALID_ARGUMENT, FAILED_PRECONDITION, ABORTED, NOT_FOUND, PERMISSION_DENIED, UNAVAILABLE | `BadRequest` with the findings |
//! | deadline passed | caller or load | DEADLINE_EXCEEDED | |
//! | too many requests in flight, or too much work waits | load | RESOURCE_EXHAUSTED | `RetryInfo` |
//! | a tenant's limit on requests or spending | caller | RESOURCE_EXHAUSTED | `QuotaFailure`, `RetryInfo` |
//! | nobody known calls | caller | UNAUTHENTICATED | |
//! | the caller lacks a right, or calls for another's tenant, or reports of its decisions | caller | PERMISSION_DENIED | |
//! | a message or body over the limit | caller | OUT_OF_RANGE | |
//! | a panic | us | INTERNAL | |
//! | classifier not available for `Classify` | us | UNAVAILABLE or DEADLINE_EXCEEDED | `RetryInfo` |
//! | not warm yet | us | UNAVAILABLE | `RetryInfo` |

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

use super::admission::Overloaded;
use crate::access::Denied;
use crate::batch::BatchError;
use crate::cascade::ContinuationError;
use crate::domain::InvalidQuery;
use crate::policy::{EditError, NoCandidate, ScopeError, Severity};
use crate::router::{DecideError, Limited, NotVouched};
use crate::sources::{ChangeError, PolicyStale, WriteError};

/// How long a caller should wait before it tries an overloaded server again, where nothing better is known.
const RETRY_AFTER_OVERLOAD: Duration = Duration::from_millis(250);
/// Bounds of that: sooner is no relief, later is a lost caller.
const LEAST_RETRY: Duration = Duration::from_millis(100);
const MOST_RETRY: Duration = Duration::from_secs(1);
/// How long a caller should wait for a policy source that is away.
const RETRY_AFTER_OUTAGE: Duration = Duration::from_secs(5);
/// How long a caller should wait for a server that is starting.
const RETRY_AFTER_START: Duration = Duration::from_secs(1);

pub(super) fn from_decide(error: DecideError) -> Status {
    match error {
        DecideError::Invalid(invalid) => from_invalid(&invalid),
        DecideError::Scope(ScopeError::UnknownRole { role, known }) => {
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            invalid_field("role", format!("{role:?} is not in the policy; known roles: {known}"))
        }
        DecideError::Scope(ScopeError::UnknownTenant(tenant)) => {
            let text = format!("tenant {tenant:?} is not in the policy, which refuses unknown tenants");
            let details = ErrorDetails::with_resource_info("tenant", tenant, "", text.clone());
            Status::with_error_details(Code::NotFound, text, details)
        }
        DecideError::Stale(PolicyStale { age, max }) => {
            let text = format!(
                "the policy's source has not confirmed it for {} s, and nothing is decided by one older than {} s",
                age.as_secs(),
                max.as_secs()
            );
            retry(Code::Unavailable, &text, RETRY_AFTER_OUTAGE)
        }
        DecideError::Continuation(error) => from_continuation(error),
        DecideError::Limited(limited) => from_limited(&limited),
        DecideError::NoCandidate(none) => from_no_candidate(&none),
        DecideError::DeadlineExceeded => Status::deadline_exceeded("the deadline had passed on arrival"),
        DecideError::Unclassified(BatchError::DeadlineTooNear) => {
            Status::deadline_exceeded("the deadline is too near for a forward pass")
        }
        DecideError::Unclassified(error @ BatchError::Overloaded { retry_after }) => {
            retry(Code::ResourceExhausted, &error.to_string(), spread(retry_after))
        }
        DecideError::Unclassified(BatchError::Failed | BatchError::Closed) => {
            retry(Code::Unavailable, "the classifier could not be consulted", RETRY_AFTER_START)
        }
    }
}

fn from_continuation(error: ContinuationError) -> Status {
    match error {
        ContinuationError::Missing => invalid_field("continuation", error.to_string()),
        ContinuationError::Forged | ContinuationError::OtherTenant => Status::permission_denied(error.to_string()),
        ContinuationError::Expired | ContinuationError::OtherVersion => {
            let text = format!("{error}; route the query again");
            let violation = PreconditionViolation::new("CONTINUATION", "continuation", text.clone());
            let details = ErrorDetails::with_precondition_failure(vec![violation]);
            Status::with_error_details(Code::FailedPrecondition, text, details)
        }
    }
}

pub(super) fn from_invalid(invalid: &InvalidQuery) -> Status {
    invalid_field(invalid.field, invalid.problem.clone())
}

/// A change of the policy that was not made.
pub(super) fn from_change(error: &ChangeError) -> Status {
    let text = with_sources(error);
    match error {
        ChangeError::Invalid(invalid) => {
            let errors = invalid.findings.iter().filter(|finding| finding.severity == Severity::Error);
            let violations = errors.map(|finding| {
                let place = format!("line {}: {}", finding.line, finding.path);
                FieldViolation::new("document", format!("{place}: {}: {}", finding.code.as_str(), finding.message))
            });
            let details = ErrorDetails::with_bad_request(violations.collect::<Vec<_>>());
            Status::with_error_details(Code::InvalidArgument, text, details)
        }
        ChangeError::Untrusted(_) => Status::permission_denied(text),
        ChangeError::UnknownVersion { .. } | ChangeError::Edit(EditError::UnknownProvider { .. }) => {
            Status::not_found(text)
        }
        ChangeError::Write(WriteError::Conflict) => Status::aborted(text),
        ChangeError::Unexpected { .. }
        | ChangeError::VersionTaken { .. }
        | ChangeError::NothingBefore
        | ChangeError::NeedsSignature
        | ChangeError::NotInForce
        | ChangeError::Edit(EditError::Layout)
        | ChangeError::Write(WriteError::ReadOnly { .. }) => Status::failed_precondition(text),
        ChangeError::Source(_) | ChangeError::Write(WriteError::Source(_) | WriteError::Write { .. }) => {
            retry(Code::Unavailable, &text, RETRY_AFTER_OUTAGE)
        }
        ChangeError::Compile(_) => Status::internal("the policy could not be compiled"),
    }
}

/// Changes over gRPC are not offered on this listener.
pub(super) fn changes_off() -> Status {
    Status::permission_denied(
        "policy changes over gRPC are off on this server (setting `policy_changes`); change the policy at its source",
    )
}

/// The error and all its causes in one line; operators are told what the source said.
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// INVALID_ARGUMENT about one field.
pub(super) fn invalid_field(field: &str, problem: impl Into<String>) -> Status {
    let problem = problem.into();
    let details = ErrorDetails::with_bad_request(vec![FieldViolation::new(field, problem.clone())]);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {problem}"), details)
}

pub(super) fn overloaded(_: Overloaded) -> Status {
    retry(Code::ResourceExhausted, "the server is at its limit of requests in flight", spread(RETRY_AFTER_OVERLOAD))
}

pub(super) fn deadline_passed() -> Status {
    Status::deadline_exceeded("the deadline has passed")
}

/// The cause is in the log; it may quote what the caller sent.
pub(super) fn panicked() -> Status {
    Status::internal("a fault of the server; the call may be tried again")
}

pub(super) fn too_large() -> Status {
    Status::out_of_range("the request is larger than this method takes")
}

pub(super) fn denied(denied: Denied) -> Status {
    match denied {
        Denied::Unknown => Status::unauthenticated(
            "show a token (authorization: Bearer ...) or a client certificate that is known here",
        ),
        Denied::Right(right) => {
            Status::permission_denied(format!("the caller does not have the right {:?}", right.as_str()))
        }
    }
}

pub(super) fn other_tenant(caller: &str) -> Status {
    Status::permission_denied(format!("caller {caller:?} does not call for this tenant, or has to say for which"))
}

/// A report that is not its caller's to make.
pub(super) fn not_vouched(refused: NotVouched) -> Status {
    Status::permission_denied(refused.to_string())
}

pub(super) fn not_ready() -> Status {
    retry(Code::Unavailable, "the model is being loaded", RETRY_AFTER_START)
}

/// A tenant that has asked for, or spent, as much as it may.
fn from_limited(limited: &Limited) -> Status {
    let mut details = ErrorDetails::with_quota_failure_violation(limited.subject.clone(), limited.text.clone());
    details.set_retry_info(Some(limited.retry_after));
    pushback(Status::with_error_details(Code::ResourceExhausted, limited.to_string(), details), limited.retry_after)
}

fn from_no_candidate(none: &NoCandidate) -> Status {
    let violations: Vec<PreconditionViolation> = none
        .removed
        .iter()
        .map(|reason| PreconditionViolation::new(reason.code.as_str(), reason.subject.clone(), reason.text.clone()))
        .collect();
    Status::with_error_details(
        Code::FailedPrecondition,
        none.to_string(),
        ErrorDetails::with_precondition_failure(violations),
    )
}

/// Half to one and a half of `after`, within bounds: callers that were refused together should not come back together.
fn spread(after: Duration) -> Duration {
    let share = 0.5 + rand::random::<f64>();
    after.max(LEAST_RETRY).mul_f64(share).clamp(LEAST_RETRY, MOST_RETRY)
}

/// A status that invites another try; `grpc-retry-pushback-ms` tells clients that retry by themselves.
fn retry(code: Code, text: &str, after: Duration) -> Status {
    pushback(Status::with_error_details(code, text, ErrorDetails::with_retry_info(Some(after))), after)
}

fn pushback(mut status: Status, after: Duration) -> Status {
    if let Ok(value) = after.as_millis().to_string().parse() {
        status.metadata_mut().insert("grpc-retry-pushback-ms", value);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_code() {
        let invalid = || InvalidQuery { field: "query", problem: "is empty".into() };
        let limited = || Limited {
            subject: "tenant \"t\"".into(),
            text: "too much".into(),
            retry_after: Duration::from_millis(1_500),
        };
        let none = NoCandidate { chain: "c".into(), removed: vec![], reasons: vec![] };
        let role = ScopeError::UnknownRole { role: "r".into(), known: vec![] };
        let cases = [
            (DecideError::Invalid(invalid()), Code::InvalidArgument),
            (DecideError::Scope(role), Code::InvalidArgument),
            (DecideError::Scope(ScopeError::UnknownTenant("t".into())), Code::NotFound),
            (DecideError::NoCandidate(none), Code::FailedPrecondition),
            (DecideError::DeadlineExceeded, Code::DeadlineExceeded),
            (DecideError::Limited(limited()), Code::ResourceExhausted),
            (DecideError::Unclassified(BatchError::DeadlineTooNear), Code::DeadlineExceeded),
            (
                DecideError::Unclassified(BatchError::Overloaded { retry_after: Duration::ZERO }),
                Code::ResourceExhausted,
            ),
            (DecideError::Unclassified(BatchError::Failed), Code::Unavailable),
        ];
        for (error, code) in cases {
            assert_eq!(from_decide(error).code(), code);
        }
        let status = from_invalid(&invalid());
        assert_eq!(status.message(), "query: is empty");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "query");
        let refused = from_decide(DecideError::Limited(limited()));
        let details = refused.get_error_details();
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, "tenant \"t\"");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1_500)));
        assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "1500");
        let shed = overloaded(Overloaded);
        let pushback = |status: &Status| -> u64 {
            status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap()
        };
        assert!((125..=375).contains(&pushback(&shed)), "{}", pushback(&shed));
        assert!(shed.get_error_details().retry_info().is_some());
        let waits = [0, 300, 5_000].map(|ms| {
            let overloaded = BatchError::Overloaded { retry_after: Duration::from_millis(ms) };
            let waits = (0..50).map(|_| pushback(&from_decide(DecideError::Unclassified(overloaded))));
            let waits: Vec<u64> = waits.collect();
            assert!(waits.iter().all(|wait| (100..=1_000).contains(wait)), "{waits:?}");
            (waits.iter().min().copied(), waits.iter().max().copied())
        });
        assert!(waits[1].0 < waits[1].1, "callers are spread: {waits:?}");
    }
}
