//! Robustness for a terminal.

use super::ModelRef;
use super::tables::{Table, UNDEFINED, figure, percent};
use super::text::{grid, wrap};
use crate::offline::metrics::Estimate;
use crate::offline::robustness::{Flips, GateRow, Robustness, SIGNIFICANT};

/// One table for each model, then the gate where there is one.
pub fn text(models: &[(ModelRef, Robustness)], gate: Option<&[GateRow]>) -> String {
    let mut parts = vec![wrap(
        "A flip is a verdict on a changed prompt that differs from the verdict on the prompt itself. Changes are means \
         of absolute changes. Brackets hold 95 % intervals: Wilson's for shares, the bootstrap over rows for means.",
    )];
    for (model, robustness) in models {
        parts.push(format!(
            "\n{} {}: {} rows; {} rows and copies without scores\n{}",
            model.name,
            model.version,
            robustness.n_rows,
            robustness.n_not_scored,
            grid(&figures(robustness))
        ));
    }
    parts.extend(gate.map(gate_text));
    parts.join("\n")
}

fn figures(robustness: &Robustness) -> Table {
    let rows = robustness.kinds.iter().map(|kind| {
        let [intent, intent_limit] = flips(&kind.intent);
        let [tier, tier_limit] = flips(&kind.tier);
        vec![
            kind.kind.as_str().to_owned(),
            kind.n.to_string(),
            intent,
            intent_limit,
            tier,
            tier_limit,
            percent(kind.tier_up.value),
            percent(kind.tier_down.value),
            mean(&kind.difficulty_change),
            mean(&kind.intent_probability_change),
        ]
    });
    let header = [
        "kind",
        "rows",
        "intent flips",
        "limit",
        "tier flips",
        "limit",
        "tier up",
        "tier down",
        "difficulty change",
        "P(intent) change",
    ];
    Table::new("", &header, rows.collect())
}

fn flips(flips: &Flips) -> [String; 2] {
    let Estimate { value, low, high } = flips.rate;
    let limit = flips
        .limit
        .zip(flips.within_limit)
        .map(|(limit, within)| format!("{:.0} % {}", 100.0 * limit, if within { "pass" } else { "FAIL" }));
    [
        format!("{} [{:.1}, {:.1}]", percent(value), 100.0 * low, 100.0 * high),
        limit.unwrap_or_else(|| UNDEFINED.to_owned()),
    ]
}

fn mean(estimate: &Estimate) -> String {
    format!("{} [{:.3}, {:.3}]", figure(estimate.value), estimate.low, estimate.high)
}

fn gate_text(gate: &[GateRow]) -> String {
    let rows = gate.iter().map(|row| {
        vec![
            row.kind.as_str().to_owned(),
            row.verdict.as_str().to_owned(),
            row.n.to_string(),
            percent(row.new_rate),
            percent(row.old_rate),
            row.only_new.to_string(),
            row.only_old.to_string(),
            format!("{:.3}", row.p),
            if row.passes { "pass" } else { "FAIL" }.to_owned(),
        ]
    });
    let header = ["kind", "verdict", "rows", "new", "old", "only new", "only old", "p", "gate"];
    let note = format!(
        "Release gate, on rows that both models scored. A new model fails where it flips more than the old one and \
         McNemar's exact one-sided p is below {SIGNIFICANT}, or both are beyond the limit."
    );
    let n_failed = gate.iter().filter(|row| !row.passes).count();
    let outcome = match n_failed {
        0 => "The new model passes.".to_owned(),
        n => format!("The new model fails {n} of {} comparisons.", gate.len()),
    };
    format!("\n{}\n{}\n{outcome}", wrap(&note), grid(&Table::new("", &header, rows.collect())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::metrics::Bootstrap;
    use crate::offline::robustness::tests::changes;
    use crate::offline::robustness::{figures, gate};

    #[test]
    fn limits_and_the_gate_stand_beside_the_figures() {
        let model = |name: &str| ModelRef { name: name.into(), version: "1".into(), sha256: String::new() };
        let (new, old) = (changes(0..9), changes(0..0));
        let bootstrap = Bootstrap { n_draws: 20, ..Bootstrap::default() };
        let models = [(model("new"), figures(&new, &bootstrap)), (model("old"), figures(&old, &bootstrap))];
        let shown = text(&models, Some(&gate(&new, &old)));
        for part in ["new 1: 100 rows", "9.1 % [4.9, 16.4]", "3 % FAIL", "3 % pass", "fails 1 of 2 comparisons"] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
    }
}
