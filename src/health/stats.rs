//! What a model or provider did in the last while: the scorecard's figures.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::window::{Part, Window};
use crate::domain::{Attempt, FailureKind, OutcomeReport};

/// The last [`STATS_WINDOW`] of one model or provider.
#[derive(Debug)]
pub(super) struct Stats {
    window: Window<Tally>,
}

/// Figures over the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Answers reported, failures included.
    pub outcomes: u64,
    /// Those that came, whatever they were worth.
    pub answered: u64,
    /// Those that were fallbacks.
    pub fallbacks: u64,
    /// Those that were escalations.
    pub escalations: u64,
    /// Share of them that came; absent: there are none.
    pub success: Option<f64>,
    /// Milliseconds to an answer, of those that came and told; absent: none did.
    pub latency_ms: Option<Percentiles>,
    /// US dollars, as far as told.
    pub cost_usd: f64,
    /// Mean score, of those scored.
    pub score: Option<f64>,
    /// Those scored.
    pub scored: u64,
}

/// Percentiles of a latency.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are faster.
    pub p50: u64,
    /// 19 of 20 are faster.
    pub p95: u64,
    /// 99 of 100 are faster.
    pub p99: u64,
}

#[derive(Debug, Default)]
struct Tally {
    outcomes: u64,
    answered: u64,
    fallbacks: u64,
    escalations: u64,
    cost_usd: f64,
    score: f64,
    scored: u64,
    /// Made when first needed: it takes about 10 KB.
    latency: Option<Histogram<u32>>,
}

/// How far figures look back.
pub const STATS_WINDOW: Duration = Duration::from_secs(60);
/// Longer answers count as this long.
const MAX_LATENCY_MS: u64 = 3_600_000;

// === impl Stats ===

impl Stats {
    pub(super) fn new(now: Instant) -> Self {
        Self { window: Window::new(STATS_WINDOW, now) }
    }

    /// Counts an outcome.
    pub(super) fn record(&mut self, report: &OutcomeReport, attempt: Option<Attempt>, now: Instant) {
        let Some(tally) = self.window.at(now) else { return };
        tally.outcomes += 1;
        let answered = !report.failure.is_some_and(FailureKind::is_unavailability);
        tally.answered += u64::from(answered);
        tally.fallbacks += u64::from(attempt == Some(Attempt::Fallback));
        tally.escalations += u64::from(attempt == Some(Attempt::Escalation));
        tally.cost_usd += report.cost_usd;
        if let Some(score) = report.score {
            tally.score += score;
            tally.scored += 1;
        }
        if answered && report.latency_ms > 0 {
            if tally.latency.is_none() {
                tally.latency = Histogram::new_with_bounds(1, MAX_LATENCY_MS, 2).ok();
            }
            if let Some(latency) = &mut tally.latency {
                latency.saturating_record(report.latency_ms);
            }
        }
    }

    /// The figures at `now`.
    pub(super) fn figures(&self, now: Instant) -> Figures {
        let mut figures = Figures::default();
        let mut all: Option<Histogram<u32>> = None;
        let mut scores = 0.0;
        for tally in self.window.parts(now) {
            figures.outcomes += tally.outcomes;
            figures.answered += tally.answered;
            figures.fallbacks += tally.fallbacks;
            figures.escalations += tally.escalations;
            figures.cost_usd += tally.cost_usd;
            figures.scored += tally.scored;
            scores += tally.score;
            match (&mut all, &tally.latency) {
                // Alike in bounds, so that adding cannot fail.
                (Some(all), Some(latency)) => all.add(latency).unwrap_or_default(),
                (None, Some(latency)) => all = Some(latency.clone()),
                (_, None) => {}
            }
        }
        let of = |part: f64, whole: u64| (whole > 0).then(|| part / whole as f64);
        figures.success = of(figures.answered as f64, figures.outcomes);
        figures.score = of(scores, figures.scored);
        figures.latency_ms = all.filter(|all| !all.is_empty()).map(|all| Percentiles {
            p50: all.value_at_quantile(0.50),
            p95: all.value_at_quantile(0.95),
            p99: all.value_at_quantile(0.99),
        });
        figures
    }
}

impl Part for Tally {
    fn clear(&mut self) {
        let mut latency = self.latency.take();
        if let Some(latency) = &mut latency {
            latency.reset();
        }
        *self = Self { latency, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(latency_ms: u64, failure: Option<FailureKind>) -> OutcomeReport {
        OutcomeReport {
            time_unix_ms: 0,
            decision_id: "d".to_owned(),
            model: "m".to_owned(),
            score: failure.is_none().then_some(0.5),
            scorer: String::new(),
            failure,
            tokens: 10,
            cost_usd: 0.25,
            latency_ms,
            attempt: None,
        }
    }

    #[test]
    fn figures_are_of_the_last_minute() {
        let start = Instant::now();
        let mut stats = Stats::new(start);
        for ms in 1..=100 {
            stats.record(&report(ms * 10, None), Some(Attempt::First), start);
        }
        for failure in [FailureKind::Timeout, FailureKind::BadFormat] {
            stats.record(&report(60_000, Some(failure)), Some(Attempt::Fallback), start);
        }
        let figures = stats.figures(start + Duration::from_secs(30));
        assert_eq!((figures.outcomes, figures.answered, figures.fallbacks, figures.scored), (102, 101, 2, 100));
        assert!((figures.cost_usd - 25.5).abs() < 1e-9 && figures.score == Some(0.5));
        let Percentiles { p50, p95, p99 } = figures.latency_ms.unwrap();
        // Two digits are kept; the answer that did not parse took a minute, the one that timed out was none.
        assert!((505..=515).contains(&p50) && (950..=967).contains(&p95) && (990..=1_010).contains(&p99));
        assert_eq!(stats.figures(start + Duration::from_secs(61)), Figures::default());
    }
}
