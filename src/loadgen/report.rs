//! Samples to histograms, and what a run came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::Code;

use super::schedule::Load;
use crate::rpc::proto::{InputReport, Source, Timings};

/// One request.
#[derive(Debug)]
pub(super) struct Sample {
    /// When it should have been sent.
    pub(super) due: Instant,
    /// When it was.
    pub(super) sent: Instant,
    pub(super) ended: Instant,
    pub(super) outcome: Outcome,
}

/// What came of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered(Answer),
    Failed(Code),
    /// Too many requests were waiting already.
    NotSent,
}

/// What an answer says about the server's work.
#[derive(Debug, Default)]
pub(super) struct Answer {
    source: Option<Source>,
    tokens: u32,
    queue_us: u64,
    inference_us: u64,
    total_us: u64,
}

/// Sums up samples as they come.
#[derive(Debug)]
pub(super) struct Recorder {
    load: Load,
    counted_from: Instant,
    end: Instant,
    last: Instant,
    latency_us: Option<Histogram<u64>>,
    lag_us: Option<Histogram<u64>>,
    answered: u64,
    errors: BTreeMap<String, u64>,
    not_sent: u64,
    sources: BTreeMap<&'static str, u64>,
    tokens: u64,
    queue_us: u64,
    inference_us: u64,
    total_us: u64,
}

/// What a run came to. Latencies are of answered requests, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How requests followed each other.
    pub load: String,
    /// Requests a second that were due; absent in closed loop.
    pub offered_per_s: Option<f64>,
    /// Requests a second that were answered.
    pub answered_per_s: f64,
    /// From the first counted request's time to the last answer.
    pub seconds: f64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed, by status code.
    pub errors: BTreeMap<String, u64>,
    /// Requests that were due and not sent, because too many were waiting already.
    pub not_sent: u64,
    /// Answers by what made the decision; empty for `Classify`.
    pub sources: BTreeMap<&'static str, u64>,
    /// From when a request was due to its answer.
    pub latency_us: Percentiles,
    /// From when a request was due to when it was sent: this program's own lateness, contained in the latency.
    pub lag_us: Percentiles,
    /// Means of what the answers say.
    pub server: ServerMeans,
}

/// Points of a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Mean.
    pub mean: f64,
    /// Half are faster.
    pub p50: u64,
    /// Nine of ten are faster.
    pub p90: u64,
    /// 99 of 100 are faster.
    pub p99: u64,
    /// 999 of 1,000 are faster.
    pub p99_9: u64,
    /// The slowest.
    pub max: u64,
}

/// The server's own account, as means over the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ServerMeans {
    /// Word pieces that the encoder read.
    pub tokens: f64,
    /// Waiting for a forward pass.
    pub queue_us: f64,
    /// The forward pass, shared with the other queries in it.
    pub inference_us: f64,
    /// From the decoded request to the finished decision.
    pub total_us: f64,
}

/// Longest latency told exactly, 10 minutes; three significant digits.
const HIGHEST_US: u64 = 600_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

// === impl Answer ===

impl Answer {
    pub(super) fn new(source: Option<Source>, input: Option<InputReport>, timings: Option<Timings>) -> Self {
        let timings = timings.unwrap_or_default();
        Self {
            source,
            tokens: input.unwrap_or_default().tokens_used,
            queue_us: timings.queue_us,
            inference_us: timings.inference_us,
            total_us: timings.total_us,
        }
    }
}

// === impl Recorder ===

impl Recorder {
    pub(super) fn new(load: Load, counted_from: Instant, end: Instant) -> Self {
        // The bounds are constants that the histogram takes, so there always is one.
        let histogram = || Histogram::new_with_max(HIGHEST_US, SIGNIFICANT_DIGITS).ok();
        Self {
            load,
            counted_from,
            end,
            last: end,
            latency_us: histogram(),
            lag_us: histogram(),
            answered: 0,
            errors: BTreeMap::new(),
            not_sent: 0,
            sources: BTreeMap::new(),
            tokens: 0,
            queue_us: 0,
            inference_us: 0,
            total_us: 0,
        }
    }

    pub(super) fn record(&mut self, sample: &Sample) {
        let note = |histogram: &mut Option<Histogram<u64>>, from: Instant, to: Instant| {
            if let Some(histogram) = histogram {
                let micros = to.saturating_duration_since(from).as_micros();
                histogram.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
            }
        };
        note(&mut self.lag_us, sample.due, sample.sent);
        match &sample.outcome {
            Outcome::Answered(answer) => {
                self.last = self.last.max(sample.ended);
                note(&mut self.latency_us, sample.due, sample.ended);
                self.answered += 1;
                if let Some(source) = answer.source {
                    *self.sources.entry(source_name(source)).or_default() += 1;
                }
                self.tokens += u64::from(answer.tokens);
                self.queue_us += answer.queue_us;
                self.inference_us += answer.inference_us;
                self.total_us += answer.total_us;
            }
            Outcome::Failed(code) => *self.errors.entry(format!("{code:?}")).or_default() += 1,
            Outcome::NotSent => self.not_sent += 1,
        }
    }

    pub(super) fn finish(self) -> Report {
        let seconds = (self.last - self.counted_from).as_secs_f64();
        let mean = |sum: u64| if self.answered == 0 { 0.0 } else { sum as f64 / self.answered as f64 };
        Report {
            load: self.load.to_string(),
            offered_per_s: match self.load {
                Load::Open { .. } => {
                    let due = self.answered + self.errors.values().sum::<u64>() + self.not_sent;
                    Some(due as f64 / (self.end - self.counted_from).as_secs_f64())
                }
                Load::Closed { .. } => None,
            },
            answered_per_s: self.answered as f64 / seconds.max(f64::MIN_POSITIVE),
            seconds,
            answered: self.answered,
            not_sent: self.not_sent,
            sources: self.sources,
            latency_us: Percentiles::of(self.latency_us.as_ref()),
            lag_us: Percentiles::of(self.lag_us.as_ref()),
            server: ServerMeans {
                tokens: mean(self.tokens),
                queue_us: mean(self.queue_us),
                inference_us: mean(self.inference_us),
                total_us: mean(self.total_us),
            },
            errors: self.errors,
        }
    }
}

// === impl Report ===

impl Report {
    /// One line of a sweep; see [`Self::HEADER`].
    pub fn line(&self) -> String {
        let offered = self.offered_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
        let latency = &self.latency_us;
        let failed = self.errors.values().sum::<u64>() + self.not_sent;
        format!(
            "{offered:>9} {:>9.1} {:>9} {:>9} {:>9} {:>9} {:>9} {failed:>7} {:>9}  {}",
            self.answered_per_s,
            millis(latency.p50),
            millis(latency.p90),
            millis(latency.p99),
            millis(latency.p99_9),
            millis(latency.max),
            millis(self.lag_us.p99),
            counts(&self.sources)
        )
    }

    /// Names the columns of [`Self::line`]; latencies are in milliseconds.
    pub const HEADER: &'static str =
        "offered/s  answer/s    p50 ms    p90 ms    p99 ms  p99.9 ms    max ms  failed  lag p99   sources";
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (latency, lag, server) = (&self.latency_us, &self.lag_us, &self.server);
        writeln!(f, "load        {}", self.load)?;
        writeln!(f, "answered    {} in {:.1} s, {:.1} a second", self.answered, self.seconds, self.answered_per_s)?;
        writeln!(
            f,
            "latency     p50 {}  p90 {}  p99 {}  p99.9 {}  max {}  mean {:.3} ms",
            millis(latency.p50),
            millis(latency.p90),
            millis(latency.p99),
            millis(latency.p99_9),
            millis(latency.max),
            latency.mean / 1_000.0
        )?;
        if self.offered_per_s.is_some() {
            writeln!(f, "own lag     p50 {}  p99 {}  max {} ms", millis(lag.p50), millis(lag.p99), millis(lag.max))?;
        }
        writeln!(
            f,
            "server      {:.1} word pieces, {:.0} us in queue, {:.0} us inference, {:.0} us in all (means)",
            server.tokens, server.queue_us, server.inference_us, server.total_us
        )?;
        if !self.sources.is_empty() {
            writeln!(f, "sources     {}", counts(&self.sources))?;
        }
        write!(f, "errors      {}", if self.errors.is_empty() { "none".to_owned() } else { counts(&self.errors) })?;
        if self.not_sent > 0 {
            write!(f, "\nnot sent    {}", self.not_sent)?;
        }
        Ok(())
    }
}

// === impl Percentiles ===

impl Percentiles {
    fn of(histogram: Option<&Histogram<u64>>) -> Self {
        histogram.filter(|histogram| !histogram.is_empty()).map_or_else(Self::default, |histogram| Self {
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        })
    }
}

fn source_name(source: Source) -> &'static str {
    match source {
        Source::Unspecified => "unspecified",
        Source::Rule => "rule",
        Source::Classifier => "classifier",
        Source::Cache => "cache",
        Source::Override => "override",
        Source::Degraded => "degraded",
    }
}

fn millis(micros: u64) -> String {
    format!("{:.3}", Duration::from_micros(micros).as_secs_f64() * 1_000.0)
}

fn counts(counts: &BTreeMap<impl fmt::Display, u64>) -> String {
    counts.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(load: Load, outcomes: impl IntoIterator<Item = (u64, u64, Outcome)>) -> Report {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut recorder = Recorder::new(load, start, at(1_000));
        for (due, ended, outcome) in outcomes {
            recorder.record(&Sample { due: at(due), sent: at(due + 1), ended: at(ended), outcome });
        }
        recorder.finish()
    }

    fn answered(source: Source) -> Outcome {
        let timings = Timings { inference_us: 40, total_us: 100, ..Default::default() };
        let input = InputReport { tokens_used: 12, ..Default::default() };
        Outcome::Answered(Answer::new(Some(source), Some(input), Some(timings)))
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        let report = report(
            Load::Open { rate: 100.0 },
            (0..100).map(|n| (n * 10, n * 10 + if n < 90 { 5 } else { 500 }, answered(Source::Classifier))),
        );
        assert_eq!(report.answered, 100);
        assert_eq!(report.offered_per_s, Some(100.0));
        assert!((report.seconds - 1.49).abs() < 1e-9, "until the last answer");
        let near = |value: u64, micros: u64| value.abs_diff(micros) <= micros / 500;
        assert!(near(report.latency_us.p50, 5_000) && near(report.latency_us.p99, 500_000));
        assert!(near(report.latency_us.p90, 5_000) && near(report.latency_us.max, 500_000));
        assert!(near(report.lag_us.p50, 1_000));
        assert_eq!((report.server.tokens, report.server.inference_us, report.server.total_us), (12.0, 40.0, 100.0));
    }

    #[test]
    fn failures_are_counted_by_code_and_stay_out_of_the_latencies() {
        let report = report(
            Load::Open { rate: 5.0 },
            [
                (0, 4, answered(Source::Rule)),
                (200, 204, answered(Source::Cache)),
                (400, 401, Outcome::Failed(Code::ResourceExhausted)),
                (600, 1_600, Outcome::Failed(Code::DeadlineExceeded)),
                (800, 801, Outcome::NotSent),
            ],
        );
        assert_eq!((report.answered, report.not_sent, report.offered_per_s), (2, 1, Some(5.0)));
        assert_eq!(counts(&report.errors), "DeadlineExceeded 1, ResourceExhausted 1");
        assert_eq!(counts(&report.sources), "cache 1, rule 1");
        assert!(report.latency_us.max <= 4_003);
        assert!(report.line().contains(" 3 "), "{}", report.line());
        assert!(report.to_string().contains("not sent    1"), "{report}");
    }

    #[test]
    fn nothing_answered_is_a_report_too() {
        let report = report(Load::Closed { concurrency: 1 }, []);
        assert_eq!((report.answered, report.answered_per_s, report.latency_us.max), (0, 0.0, 0));
        assert!(report.offered_per_s.is_none());
        assert_eq!(report.line().split_whitespace().next(), Some("-"));
    }
}
