//! A [`SimulationReport`] as text for a terminal and as one HTML file.

use super::html::{STYLE, code, escape, facts, table};
use super::tables::{Table, UNDEFINED, percent};
use super::text::grid;
use crate::decisions::{Mix, Outcome, PolicyName, QualityChange, SimulationReport};

/// Changed decisions that the terminal shows.
const SHOWN_CHANGES: usize = 20;

/// The report as tables without colours or escape codes.
pub fn text(report: &SimulationReport) -> String {
    let mut parts = vec![summary(report)];
    for mut shown in tables(report) {
        if shown.rows.is_empty() {
            continue;
        }
        let hidden = shown.rows.len().saturating_sub(SHOWN_CHANGES);
        shown.rows.truncate(SHOWN_CHANGES);
        parts.push(format!("\n{}\n{}", shown.title, grid(&shown)));
        if hidden > 0 {
            parts.push(format!("and {hidden} more"));
        }
    }
    parts.join("\n")
}

/// The report as a page that needs nothing else; `date` and `command` say where it comes from.
pub fn html(report: &SimulationReport, date: &str, command: &str) -> String {
    let policy = |name: &PolicyName| {
        format!("{}<br>sha256 {}", escape(&format!("{} {}", name.id, name.version)), code(&name.sha256))
    };
    let baseline = report.baseline.as_ref().map_or_else(|| "what was decided and logged".to_owned(), policy);
    let rows = [
        ("date", escape(date)),
        ("command", code(command)),
        ("candidate", policy(&report.candidate)),
        ("compared with", baseline),
    ];
    let title = escape(&format!("Simulation of policy {} {}", report.candidate.id, report.candidate.version));
    let notes = summary(report).lines().map(|line| format!("<p>{}</p>\n", escape(line))).collect::<Vec<_>>().concat();
    let shown = tables(report).iter().filter(|shown| !shown.rows.is_empty()).map(table).collect::<Vec<_>>().concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n{}{notes}{shown}</body>\n</html>\n",
        facts(&rows)
    )
}

fn summary(report: &SimulationReport) -> String {
    let lines = &report.lines;
    let share =
        |n: u64| if lines.replayed == 0 { UNDEFINED.to_owned() } else { percent(n as f64 / lines.replayed as f64) };
    let mut out = vec![
        format!(
            "{} of {} logged decisions replayed exactly; all figures are over these",
            lines.replayed, lines.decisions
        ),
        format!("{} change their model ({})", report.changed, share(report.changed)),
        format!("{} change their tier, chain, fallbacks or escalation alone", report.changed_beside),
        format!(
            "cost ${:.4} -> ${:.4}, estimated ({})",
            report.cost_usd.0,
            report.cost_usd.1,
            relative(report.cost_usd)
        ),
        format!("expected quality {}", quality(&report.quality)),
        format!("without a candidate {} -> {}", report.no_candidate.before, report.no_candidate.after),
    ];
    out.extend(lines.not_replayable.iter().map(|(why, n)| format!("{n} not replayed: {why}")));
    if lines.malformed > 0 {
        out.push(format!("{} line(s) of the log could not be read", lines.malformed));
    }
    out.join("\n")
}

fn relative((before, after): (f64, f64)) -> String {
    if before > 0.0 { format!("{:+.1} %", 100.0 * (after / before - 1.0)) } else { UNDEFINED.to_owned() }
}

fn quality(change: &QualityChange) -> String {
    match (change.before, change.after) {
        (Some(before), Some(after)) => format!("{before:.4} -> {after:.4} over {} decisions", change.n),
        _ => "unknown: no ability or difficulty is known before and after".to_owned(),
    }
}

fn tables(report: &SimulationReport) -> Vec<Table> {
    let n = report.lines.replayed.max(1) as f64;
    let mix = |title: &str, first: &str, mixes: &[Mix]| {
        let rows = mixes.iter().map(|mix| {
            let share = |count: u64| percent(count as f64 / n);
            let moved = mix.after as i64 - mix.before as i64;
            vec![
                mix.name.clone(),
                mix.before.to_string(),
                share(mix.before),
                mix.after.to_string(),
                share(mix.after),
                format!("{moved:+}"),
            ]
        });
        Table::new(title, &[first, "before", "share", "after", "share", "change"], rows.collect())
    };
    let named = |name: &str| if name.is_empty() { "(none)".to_owned() } else { name.to_owned() };
    let tenants = report.tenants.iter().map(|tenant| {
        let means = match (tenant.quality.before, tenant.quality.after) {
            (Some(before), Some(after)) => format!("{before:.3} -> {after:.3}"),
            _ => UNDEFINED.to_owned(),
        };
        vec![
            named(&tenant.tenant),
            tenant.decisions.to_string(),
            tenant.changed.to_string(),
            format!("{:.4}", tenant.cost_usd.0),
            format!("{:.4}", tenant.cost_usd.1),
            relative(tenant.cost_usd),
            means,
        ]
    });
    let transitions = report
        .transitions
        .iter()
        .map(|transition| vec![transition.from.clone(), transition.to.clone(), transition.decisions.to_string()]);
    let changes = report.changes.iter().map(|change| {
        vec![
            if change.decision_id.is_empty() { change.request_id.clone() } else { change.decision_id.clone() },
            named(&change.tenant),
            named(&change.role),
            outcome(&change.before),
            outcome(&change.after),
        ]
    });
    let header = ["tenant", "decisions", "changed", "cost before", "after", "change", "expected quality"];
    vec![
        mix("Selected model", "model", &report.models),
        mix("Tier", "tier", &report.tiers),
        Table::new("Most affected tenants", &header, tenants.collect()),
        Table::new("From model to model", &["from", "to", "decisions"], transitions.collect()),
        Table::new("Changed decisions", &["decision", "tenant", "role", "before", "after"], changes.collect()),
    ]
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Selected { model, chain, intent, tier, .. } => format!("{model} ({chain}; {intent}, {tier})"),
        Outcome::NoCandidate { chain, .. } => format!("no candidate ({chain})"),
        Outcome::Refused => "refused".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decisions::{ChangedDecision, LineCounts, TenantEffect, Transition};

    fn report() -> SimulationReport {
        let name = |version: &str| PolicyName { id: "p<1>".into(), version: version.into(), sha256: "ab".repeat(32) };
        let none = Outcome::NoCandidate { chain: "c".into(), removed: vec![] };
        SimulationReport {
            candidate: name("2"),
            baseline: None,
            lines: LineCounts {
                decisions: 4,
                replayed: 3,
                not_replayable: [("rule <r> asks".to_owned(), 1)].into(),
                malformed: 1,
            },
            changed: 1,
            changed_beside: 1,
            no_candidate: Mix { name: "no candidate".into(), before: 1, after: 0 },
            models: vec![Mix { name: "small".into(), before: 3, after: 2 }],
            tiers: vec![Mix { name: "simple".into(), before: 3, after: 3 }],
            cost_usd: (0.5, 0.25),
            quality: QualityChange { n: 2, before: Some(0.75), after: Some(0.5) },
            tenants: vec![TenantEffect { tenant: "a&b".into(), decisions: 3, changed: 1, ..TenantEffect::default() }],
            transitions: vec![Transition { from: "small".into(), to: "large".into(), decisions: 1 }],
            changes: vec![ChangedDecision {
                decision_id: "d1".into(),
                request_id: "r1".into(),
                time_unix_ms: 0,
                tenant: "a&b".into(),
                role: String::new(),
                before: none,
                after: Outcome::Refused,
            }],
        }
    }

    #[test]
    fn text_and_page_show_the_same_figures() {
        let (text, page) = (text(&report()), html(&report(), "2030-01-02", "pointsman policy simulate"));
        for part in ["3 of 4 logged decisions", "33.3", "-50.0 %", "0.7500", "Most affected tenants", "d1"] {
            assert!(text.contains(part), "{part} in\n{text}");
            assert!(page.contains(part), "{part} in\n{page}");
        }
        assert!(text.contains("1 not replayed: rule <r> asks") && text.contains("1 line(s)"));
        assert!(page.contains("rule &lt;r&gt; asks") && page.contains("a&amp;b") && !page.contains("p<1>"));
        for forbidden in ["<script", "<link", "<img", "http"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }
}
