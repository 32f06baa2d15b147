//! The tables of a report, as plain strings: what is shown, not how it looks.

use crate::domain::Tier;
use crate::offline::evaluate::{
    CascadeSection, Comparison, Counts, DifficultyFigures, DifficultySection, Evaluation, IntentFigures, IntentSection,
    Mistake, PairChoice, RiskRow, RouterFigures, RouterScore, RoutingGroup, RoutingSection, TierFigures, TierSection,
    TokenBucket,
};
use crate::offline::metrics::{ClassScores, Confusion, Estimate};

/// One part of a report.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) kind: Kind,
    pub(super) title: &'static str,
    /// Sentences: what was measured on what.
    pub(super) notes: Vec<String>,
    pub(super) tables: Vec<Table>,
}

/// Which part, so that HTML can add the plots that belong to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Rows,
    Intent,
    Tier,
    Difficulty,
    Routing,
    /// By its place among the cascades.
    Cascade(usize),
    Comparison,
}

/// A table whose first column names its rows and whose other columns are numbers.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) title: String,
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// What stands where a figure is undefined.
pub(super) const UNDEFINED: &str = "–";

/// Every section that the evaluation has.
pub(super) fn sections(evaluation: &Evaluation) -> Vec<Section> {
    let mut sections = vec![rows(evaluation)];
    sections.extend(evaluation.intent.as_ref().map(intent));
    sections.extend(evaluation.tier.as_ref().map(tier));
    sections.extend(evaluation.difficulty.as_ref().map(difficulty));
    sections.extend(evaluation.routing.as_ref().map(routing));
    sections.extend(evaluation.cascades.iter().enumerate().map(|(index, section)| cascade(index, section)));
    sections.extend(evaluation.comparison.as_ref().map(comparison));
    sections
}

/// A share as a percentage with one decimal.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A figure with three decimals.
pub(super) fn figure(value: f64) -> String {
    format!("{value:.3}")
}

// === impl Table ===

impl Table {
    pub(super) fn new(title: impl Into<String>, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self { title: title.into(), header: header.iter().map(|name| (*name).to_owned()).collect(), rows }
    }
}

fn rows(evaluation: &Evaluation) -> Section {
    let Counts { n_rows, n_scored, n_errors, n_missing, n_unknown, n_repeated, n_truncated, errors } =
        &evaluation.counts;
    let line = |name: &str, n: usize| vec![name.to_owned(), n.to_string()];
    let mut tables = vec![Table::new(
        "Rows",
        &["rows", "n"],
        vec![
            line("in the input", *n_rows),
            line("scored", *n_scored),
            line("failed to score", *n_errors),
            line("absent from the scored file", *n_missing),
            line("scored but not in the input", *n_unknown),
            line("scored more than once", *n_repeated),
            line("scored after their text was cut", *n_truncated),
        ],
    )];
    if !errors.is_empty() {
        let rows = errors.iter().map(|(error, n)| line(error, *n)).collect();
        tables.push(Table::new("Errors", &["error", "rows"], rows));
    }
    let mut notes = vec![format!(
        "Brackets hold 95 % intervals: the bootstrap over rows ({} resamples, seed {}), or Wilson's for a share of \
         under-routed rows.",
        evaluation.bootstrap.n_draws, evaluation.bootstrap.seed
    )];
    notes.extend(evaluation.notes.iter().cloned());
    Section { kind: Kind::Rows, title: "Rows", notes, tables }
}

fn intent(section: &IntentSection) -> Section {
    let group = |g: &IntentFigures| {
        vec![g.group.clone(), g.n.to_string(), percent(g.accuracy), figure(g.macro_f1), figure(g.ece)]
    };
    let header = ["group", "n", "accuracy", "macro-F1", "ECE"];
    Section {
        kind: Kind::Intent,
        title: "Intent",
        notes: vec![
            measured_on(section.n, section.n_not_scored, "an intent"),
            format!(
                "A label to which a row's soft distribution gives at least {} counts as right: {} rows are right only \
                 by that. Macro-F1 is over the labels that occur in the truth.",
                section.soft_credit, section.n_soft_credited
            ),
        ],
        tables: vec![
            Table::new(
                "Intent",
                &["figure", "value"],
                vec![
                    vec!["accuracy".to_owned(), estimate(Some(section.accuracy))],
                    vec!["accuracy, first label only".to_owned(), figure(section.strict_accuracy)],
                    vec!["macro-F1".to_owned(), estimate(Some(section.macro_f1))],
                    vec!["expected calibration error".to_owned(), figure(section.ece)],
                    vec!["Brier score (0..2)".to_owned(), figure(section.brier)],
                ],
            ),
            classes("Intent by label", "label", &section.classes),
            confusion("Intent confusion (rows: truth; columns: prediction)", &section.confusion),
            Table::new("Intent by source", &header, section.by_source.iter().map(group).collect()),
            Table::new("Intent by length", &header, section.by_length.iter().map(group).collect()),
            tokens("Intent by length of input", &section.by_tokens),
        ],
    }
}

fn tier(section: &TierSection) -> Section {
    let served = &section.served;
    let group = |g: &TierFigures| {
        vec![g.group.clone(), g.n.to_string(), percent(g.accuracy), figure(g.ece), percent(g.under_routed_at_80)]
    };
    let header = ["group", "n", "accuracy", "ECE", "under-routed at 0.80"];
    Section {
        kind: Kind::Tier,
        title: "Complexity tier",
        notes: vec![
            measured_on(section.n, section.n_not_scored, "a tier"),
            "Accuracy, calibration and confusion are of the most probable tier. A row is under-routed when the chosen \
             tier is below the true one."
                .to_owned(),
            "The promise of min_confidence is a share over queries. It is within its allowance when even the one-sided \
             95 % upper bound is (Clopper and Pearson's; Hoeffding's stands beside it), violated when even the lower \
             bound is not, and otherwise not shown by so few rows."
                .to_owned(),
        ],
        tables: vec![
            Table::new(
                "Tier",
                &["figure", "value"],
                vec![
                    vec!["accuracy".to_owned(), estimate(Some(section.accuracy))],
                    vec!["macro-F1".to_owned(), figure(section.macro_f1)],
                    vec!["expected calibration error".to_owned(), figure(section.ece)],
                    vec!["Brier score (0..2)".to_owned(), figure(section.brier)],
                    vec!["tier as scored: exact".to_owned(), figure(served.exact)],
                    vec!["tier as scored: under-routed".to_owned(), estimate(Some(served.under_routed))],
                    vec!["tier as scored: over-routed".to_owned(), figure(served.over_routed)],
                    vec!["ECE of confidence (the tier suffices)".to_owned(), figure(served.suffices_ece)],
                ],
            ),
            risk("Risk-controlled tier", &section.risk),
            risk("Risk-controlled tier, with the classifier's control", &section.risk_with_control),
            classes("Tier by label", "tier", &section.classes),
            confusion("Tier confusion (rows: truth; columns: prediction)", &section.confusion),
            Table::new("Tier by source", &header, section.by_source.iter().map(group).collect()),
            Table::new("Tier by length", &header, section.by_length.iter().map(group).collect()),
            tokens("Tier by length of input", &section.by_tokens),
        ],
    }
}

fn risk(title: &str, rows: &[RiskRow]) -> Table {
    let [simple, medium, complex] = Tier::ALL.map(Tier::as_str);
    let header = [
        "min_confidence",
        "threshold",
        "under-routed",
        "allowed",
        "at most (exact)",
        "at most (Hoeffding)",
        "verdict",
        "over-routed",
        simple,
        medium,
        complex,
    ];
    let line = |row: &RiskRow| {
        let [simple, medium, complex] = row.tier_shares.map(percent);
        vec![
            format!("{:.2}", row.min_confidence),
            figure(row.threshold),
            estimate(Some(row.under_routed)),
            figure(row.allowed),
            figure(row.upper_bound),
            figure(row.hoeffding_bound),
            row.verdict.as_str().to_owned(),
            percent(row.over_routed),
            simple,
            medium,
            complex,
        ]
    };
    Table::new(title, &header, rows.iter().map(line).collect())
}

fn difficulty(section: &DifficultySection) -> Section {
    let n = section.overall.n;
    let weak = section.weak.as_deref().unwrap_or(UNDEFINED);
    let group = |g: &DifficultyFigures| {
        vec![
            g.group.clone(),
            g.n_weak.to_string(),
            g.weak_failure_rate.map_or_else(|| UNDEFINED.to_owned(), percent),
            estimate(g.auroc),
            estimate(g.auroc_bytes),
            estimate(g.auroc_words),
            estimate(g.auroc_over_bytes),
        ]
    };
    let rank = |g: &DifficultyFigures| {
        vec![g.group.clone(), g.n.to_string(), estimate(g.spearman), estimate(g.spearman_bytes)]
    };
    let header = ["group", "n", "weak fails", "AUROC", "AUROC bytes", "AUROC words", "over bytes"];
    let rank_header = ["group", "n", "Spearman", "Spearman bytes"];
    let sources = || std::iter::once(&section.overall).chain(&section.by_source);
    Section {
        kind: Kind::Difficulty,
        title: "Difficulty",
        notes: vec![
            measured_on(n, section.n_not_scored, "outcomes"),
            format!(
                "AUROC is of difficulty against failures of {weak} (an outcome below {}), beside prompt length; \
                 Spearman is with the mean failure of all models of a row. Over all sources, differences between \
                 sources count too: read the sources.",
                section.failure_below
            ),
        ],
        tables: vec![
            Table::new("Weak-model failure by source", &header, sources().map(group).collect()),
            Table::new("Weak-model failure by task", &header, section.by_task.iter().map(group).collect()),
            Table::new("Weak-model failure by length", &header, section.by_length.iter().map(group).collect()),
            Table::new("Mean failure by source", &rank_header, sources().map(rank).collect()),
            Table::new("Mean failure by task", &rank_header, section.by_task.iter().map(rank).collect()),
            Table::new("Mean failure by length", &rank_header, section.by_length.iter().map(rank).collect()),
        ],
    }
}

fn routing(section: &RoutingSection) -> Section {
    let figures = |r: &RouterFigures| vec![r.name.clone(), estimate(r.apgr), estimate(r.cpt_50), estimate(r.cpt_80)];
    let group = |g: &RoutingGroup| {
        vec![
            g.group.clone(),
            g.n.to_string(),
            percent(g.weak_quality),
            percent(g.strong_quality),
            estimate(g.apgr),
            estimate(g.apgr_difficulty),
            estimate(g.apgr_bytes),
            g.apgr_oracle.map_or_else(|| UNDEFINED.to_owned(), figure),
            estimate(g.cpt_50),
            estimate(g.cpt_80),
        ]
    };
    let by_score = format!("APGR {}", section.score.as_str());
    let header = [
        "group",
        "n",
        "weak",
        "strong",
        &by_score,
        "APGR difficulty",
        "APGR bytes",
        "APGR oracle",
        "CPT(50)",
        "CPT(80)",
    ];
    let ordered = match section.score {
        RouterScore::Gain => "The router orders queries by gain, the expected gain of the strong model",
        RouterScore::Difficulty => {
            "The router orders queries by difficulty: some scored row has no gain (score again to have it)"
        }
    };
    let choice = match section.choice {
        PairChoice::Requested => "as requested",
        PairChoice::Reference => "the reference pair",
        PairChoice::MostRows => "the pair that most rows know",
    };
    let mut routers = vec![figures(&section.router)];
    routers.extend(section.baselines.iter().map(figures));
    Section {
        kind: Kind::Routing,
        title: "Routing",
        notes: vec![
            measured_on(section.n, section.n_not_scored, "outcomes of both models"),
            format!(
                "Weak: {} (quality {}). Strong: {} (quality {}); {choice}. Names are compared in lower case, without \
                 what served or measured the model. {ordered}.",
                section.pair.weak,
                percent(section.weak_quality),
                section.pair.strong,
                percent(section.strong_quality)
            ),
            "APGR is the share of the quality gap recovered, averaged over thresholds (0 always weak, 1 always \
             strong); CPT(p) is the share of strong calls that recovers p % of it. For drawn random routers, brackets \
             hold the range of 95 % of them."
                .to_owned(),
            format!("APGR of the router less that of prompt length (bytes): {}.", estimate(section.apgr_over_bytes)),
        ],
        tables: vec![
            Table::new("Routers", &["router", "APGR", "CPT(50)", "CPT(80)"], routers),
            Table::new("Routing by source", &header, section.by_source.iter().map(group).collect()),
            Table::new("Routing by task", &header, section.by_task.iter().map(group).collect()),
            Table::new("Routing by length", &header, section.by_length.iter().map(group).collect()),
        ],
    }
}

fn cascade(index: usize, section: &CascadeSection) -> Section {
    let times = |estimate: Option<Estimate>| {
        let Some(Estimate { value, low, high }) = estimate else { return "not reached".to_owned() };
        format!("{value:.2} [{low:.2}, {high:.2}]")
    };
    let auc = |auc: Option<f64>| auc.map_or_else(|| UNDEFINED.to_owned(), |auc| format!("{auc:.2}"));
    let methods = section.methods.iter().map(|method| {
        vec![method.name.clone(), auc(method.auc), times(method.cheaper_at_parity), times(method.cheaper_at_95)]
    });
    let service = section.service.iter().map(|figures| {
        vec![
            format!("{:.2}", figures.auc),
            estimate(figures.quality_gained),
            times(figures.cheaper),
            percent(figures.strong_at_once),
            percent(figures.escalated),
        ]
    });
    let [weak, strong] = section.abilities;
    Section {
        kind: Kind::Cascade(index),
        title: "Cascade",
        notes: vec![
            format!(
                "From {} (ability {weak:.2}, quality {}) to {} (ability {strong:.2}, quality {}) on {} rows. One answer of \
                 the strong model costs as much as {} of the weak one; a score costs as much as {} of them.",
                section.pair.weak,
                figure(section.weak_quality),
                section.pair.strong,
                figure(section.strong_quality),
                section.n,
                section.price_ratio,
                section.scorer_cost,
            ),
            "The scorer is simulated: AUC is how probably it ranks a right answer above a wrong one. Settings of the \
             methods are chosen in hindsight on the same rows; the service's are not."
                .to_owned(),
        ],
        tables: vec![
            Table::new(
                "How many times cheaper than the strong model alone",
                &["method", "scorer's AUC", "at equal quality", "at 95 % of the gap"],
                methods.collect(),
            ),
            Table::new(
                "As the service decides (threshold at parity, strong at once where cheap first is a false economy)",
                &["scorer's AUC", "quality gained over strong", "times cheaper", "strong at once", "escalated"],
                service.collect(),
            ),
        ],
    }
}

fn tokens(title: &str, buckets: &[TokenBucket]) -> Table {
    let rows = buckets.iter().map(|bucket| {
        vec![bucket.group.to_owned(), bucket.n.to_string(), percent(bucket.accuracy), figure(bucket.ece)]
    });
    Table::new(title, &["group", "n", "accuracy", "ECE"], rows.collect())
}

/// Wrong verdicts with the texts: for the page only, a terminal is too narrow.
pub(super) fn mistakes(title: &str, mistakes: &[Mistake]) -> Table {
    let rows = mistakes.iter().map(|mistake| {
        vec![
            percent(mistake.confidence),
            mistake.prediction.clone(),
            mistake.truth.clone(),
            mistake.text.clone(),
            mistake.id.clone(),
        ]
    });
    Table::new(title, &["confidence", "said", "right", "text", "row"], rows.collect())
}

/// The difference of two models.
pub(super) fn comparison(comparison: &Comparison) -> Section {
    let Comparison { first, second, n, n_only_first, n_only_second, figures } = comparison;
    let rows = figures.iter().map(|paired| {
        let better = paired.better().map_or("not told apart", |better| [first.as_str(), second.as_str()][better]);
        let Estimate { value, low, high } = paired.difference;
        vec![
            paired.name.to_owned(),
            paired.n.to_string(),
            figure(paired.first),
            figure(paired.second),
            format!("{value:+.3} [{low:+.3}, {high:+.3}]"),
            better.to_owned(),
        ]
    });
    Section {
        kind: Kind::Comparison,
        title: "Comparison",
        notes: vec![
            format!(
                "{first} against {second} on {n} rows that both scored; {n_only_first} rows were scored by the first \
                 only, {n_only_second} by the second only."
            ),
            "A difference is the first model's figure less the second's; brackets hold its 95 % interval by the paired \
             bootstrap. A model is called better where the interval excludes 0; of ECE, less is better."
                .to_owned(),
        ],
        tables: vec![Table::new(
            "Figures of both models",
            &["figure", "rows", first, second, "difference", "better"],
            rows.collect(),
        )],
    }
}

fn measured_on(n: usize, n_not_scored: usize, what: &str) -> String {
    format!("{n} rows carry {what} and scores; {n_not_scored} more carry {what} but could not be scored.")
}

pub(super) fn estimate(estimate: Option<Estimate>) -> String {
    match estimate {
        None => UNDEFINED.to_owned(),
        Some(Estimate { value, low, high }) if low == high => figure(value),
        Some(Estimate { value, low, high }) => format!("{value:.3} [{low:.3}, {high:.3}]"),
    }
}

fn classes(title: &str, first: &str, classes: &[ClassScores]) -> Table {
    let optional = |value: Option<f64>| value.map_or_else(|| UNDEFINED.to_owned(), figure);
    let rows = classes
        .iter()
        .map(|class| {
            vec![
                class.label.clone(),
                optional(class.precision),
                optional(class.recall),
                figure(class.f1),
                class.support.to_string(),
                class.predicted.to_string(),
            ]
        })
        .collect();
    Table::new(title, &[first, "precision", "recall", "F1", "rows", "predicted"], rows)
}

fn confusion(title: &str, confusion: &Confusion) -> Table {
    let mut header = vec![String::new()];
    header.extend(confusion.labels.iter().cloned());
    let rows = confusion
        .labels
        .iter()
        .zip(&confusion.counts)
        .map(|(label, counts)| {
            let mut row = vec![label.clone()];
            row.extend(counts.iter().map(|n| if *n == 0 { "·".to_owned() } else { n.to_string() }));
            row
        })
        .collect();
    Table { title: title.to_owned(), header, rows }
}
