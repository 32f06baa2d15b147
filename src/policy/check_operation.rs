//! What can be wrong with the sections on running.

use std::collections::BTreeSet;

use crate::rules::Path;

use super::document::Document;
use super::finding::{FindingCode, did_you_mean};
use super::operation::{BreakerSpec, HealthSpec, LimitsSpec, SessionsSpec, TrafficSpec};
use super::validate::Reporter;

/// Longest window and longest time a session or reservation is kept: a month.
const MAX_SECONDS: u32 = 31 * 24 * 60 * 60;
/// A window is kept in a fixed number of parts; an hour is as coarse as shares may become.
const MAX_WINDOW_MS: u32 = 60 * 60 * 1_000;

/// Errors of `health`.
pub(super) fn check_health(health: &HealthSpec, document: &Document, report: &mut Reporter<'_>) {
    let at = Path::default().then("health");
    for (field, breaker) in [("model", &health.model), ("provider", &health.provider)] {
        check_breaker(breaker, &at.then(field), report);
    }
    let models = document.models.keys().map(String::as_str);
    let providers = document.models.values().map(|model| model.provider.as_str());
    let providers = providers.chain(document.base.providers.keys().map(String::as_str));
    for (field, names, known, code) in [
        ("models", health.models.keys(), models.collect::<BTreeSet<_>>(), FindingCode::UnknownModel),
        ("providers", health.providers.keys(), providers.collect(), FindingCode::UnknownProvider),
    ] {
        for name in names.filter(|name| !known.contains(name.as_str()) && !report.lacks("models")).collect::<Vec<_>>() {
            let near = did_you_mean(name, known.iter().copied());
            let what = field.trim_end_matches('s');
            report.add(code, &at.then(field).then(name.as_str()), format!("the policy has no {what} {name:?}{near}"));
        }
    }
}

/// Errors of `traffic`.
pub(super) fn check_traffic(traffic: &TrafficSpec, document: &Document, report: &mut Reporter<'_>) {
    let at = Path::default().then("traffic");
    within(traffic.fallback_share, 0.0, 1.0, &at.then("fallback_share"), report);
    within(traffic.escalation_share, 0.0, 10.0, &at.then("escalation_share"), report);
    within(traffic.retry_min_per_second, 0.0, 1e6, &at.then("retry_min_per_second"), report);
    for (model, share) in &traffic.caps {
        let at = at.then("caps").then(model.as_str());
        if !(*share > 0.0 && *share <= 1.0) {
            let message =
                format!("{share} is no share above 0 and at most 1; to take a model out, use `health.models`");
            report.add(FindingCode::OutOfRange, &at, message);
        }
        if !document.models.contains_key(model) && !report.lacks("models") {
            let near = did_you_mean(model, document.models.keys().map(String::as_str));
            report.add(FindingCode::UnknownModel, &at, format!("model {model:?} is not in `models`{near}"));
        }
    }
}

/// Errors of a layer's `limits`.
pub(super) fn check_limits(limits: &LimitsSpec, at: &Path, report: &mut Reporter<'_>) {
    if let Some(rate) = limits.requests_per_second
        && !(rate > 0.0 && rate <= 1e6)
    {
        let message = format!("{rate} is not above 0 and at most 1000000");
        report.add(FindingCode::OutOfRange, &at.then("requests_per_second"), message);
    }
    if limits.burst == Some(0) {
        report.add(FindingCode::OutOfRange, &at.then("burst"), "a burst of 0 admits nothing");
    }
    for (field, usd) in [("soft_budget_usd", limits.soft_budget_usd), ("hard_budget_usd", limits.hard_budget_usd)] {
        if let Some(usd) = usd {
            within(usd, 0.0, 1e6, &at.then(field), report);
        }
    }
    if let (Some(soft), Some(hard)) = (limits.soft_budget_usd, limits.hard_budget_usd)
        && soft > hard
    {
        let message = format!("the soft limit of ${soft} is never reached before the hard one of ${hard}");
        report.add(FindingCode::OutOfRange, &at.then("soft_budget_usd"), message);
    }
    let least_window = |seconds: u32| seconds < 60;
    if let Some(seconds) = limits.budget_window_s.filter(|seconds| least_window(*seconds) || *seconds > MAX_SECONDS) {
        let message = format!("{seconds} s is not within 60 s and {MAX_SECONDS} s");
        report.add(FindingCode::OutOfRange, &at.then("budget_window_s"), message);
    }
    seconds(limits.reserve_s, &at.then("reserve_s"), report);
}

/// Errors of a layer's `sessions`.
pub(super) fn check_sessions(sessions: &SessionsSpec, at: &Path, report: &mut Reporter<'_>) {
    seconds(sessions.stick_s, &at.then("stick_s"), report);
    seconds(sessions.retry_s, &at.then("retry_s"), report);
    seconds(sessions.raise_s, &at.then("raise_s"), report);
}

fn check_breaker(breaker: &BreakerSpec, at: &Path, report: &mut Reporter<'_>) {
    within(breaker.failure_ratio, 0.01, 1.0, &at.then("failure_ratio"), report);
    within(breaker.slow_ratio, 0.01, 1.0, &at.then("slow_ratio"), report);
    within(breaker.slow_factor, 1.0, 1e6, &at.then("slow_factor"), report);
    for (field, value) in [
        ("min_outcomes", breaker.min_outcomes),
        ("consecutive_failures", breaker.consecutive_failures),
        ("close_after", breaker.close_after),
    ] {
        if value == 0 {
            report.add(FindingCode::OutOfRange, &at.then(field), "must be at least 1");
        }
    }
    for (field, value) in [
        ("window_ms", breaker.window_ms),
        ("probe_after_ms", breaker.probe_after_ms),
        ("probe_timeout_ms", breaker.probe_timeout_ms),
    ] {
        if !(10..=MAX_WINDOW_MS).contains(&value) {
            let message = format!("{value} ms is not within 10 ms and an hour");
            report.add(FindingCode::OutOfRange, &at.then(field), message);
        }
    }
}

fn seconds(value: Option<u32>, at: &Path, report: &mut Reporter<'_>) {
    if let Some(seconds) = value.filter(|seconds| !(1..=MAX_SECONDS).contains(seconds)) {
        report.add(FindingCode::OutOfRange, at, format!("{seconds} s is not within 1 s and {MAX_SECONDS} s"));
    }
}

fn within(value: f64, least: f64, most: f64, at: &Path, report: &mut Reporter<'_>) {
    if !(least..=most).contains(&value) {
        report.add(FindingCode::OutOfRange, at, format!("{value} is not within {least} and {most}"));
    }
}
