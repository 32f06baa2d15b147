//! Model names as sources spell them, brought to one form; and the pair of models that routing is measured on.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Case;

/// The models to route between, in canonical spelling.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ModelPair {
    /// The cheaper model.
    pub weak: String,
    /// The better model.
    pub strong: String,
}

/// How the pair was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PairChoice {
    /// The caller named it.
    Requested,
    /// The pair of the published tables.
    Reference,
    /// The reference pair is absent: the pair known to most rows, the widest gap among equals.
    MostRows,
}

/// A row with the outcomes of its models under canonical names.
#[derive(Clone, Debug)]
pub(super) struct OutcomeCase<'a> {
    pub(super) case: Case<'a>,
    pub(super) outcomes: BTreeMap<String, f64>,
}

/// The cheaper model of the pair that the published routing tables are about.
pub const REFERENCE_WEAK: &str = "mixtral-8x7b-instruct";
/// The better model of that pair.
pub const REFERENCE_STRONG: &str = "gpt-4-1106";

/// What marks a release or a re-run rather than another model.
const DROPPED_SUFFIXES: [&str; 3] = ["-preview", "-hf", "-v0-1"];

/// Spellings that no rule below would bring together.
const ALIASES: [(&str, &str); 2] = [("mixtral-8x7b-chat", REFERENCE_WEAK), ("mixtral-8x7b", "mixtral-8x7b-base")];

/// The canonical spelling of a model's name.
///
/// Lower case; what follows `@` or stands in parentheses is dropped (who served or measured it), and so is an
/// organisation before `/`; `_`, `.` and blanks become `-`; a leading `meta-` and trailing `-preview`, `-hf`, `-v0.1`
/// are dropped; `-inst` becomes `-instruct`. The instruction-tuned Mixtral that the `RouterBench` tables call
/// `mixtral-8x7b-chat` gets its usual name.
pub fn canonical_name(name: &str) -> String {
    let name = name.split('@').next().unwrap_or_default();
    let name = name.split('(').next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().trim().to_lowercase();
    let name: String = name.chars().map(|c| if matches!(c, '_' | '.' | ' ') { '-' } else { c }).collect();
    let mut name = name.strip_prefix("meta-").unwrap_or(&name);
    while let Some(shorter) = DROPPED_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)) {
        name = shorter;
    }
    let name = if name.ends_with("-inst") { format!("{name}ruct") } else { name.to_owned() };
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, canonical)| (*canonical).to_owned())
}

/// Every row that has outcomes; columns that are one model under two names are averaged.
pub(super) fn canonical_outcomes<'a>(cases: &[Case<'a>]) -> Vec<OutcomeCase<'a>> {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut rows = Vec::new();
    for case in cases {
        let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        for (model, outcome) in &case.row.outcomes {
            if let Some(outcome) = outcome {
                let name = names.entry(model).or_insert_with(|| canonical_name(model));
                let sum = sums.entry(name.clone()).or_default();
                *sum = (sum.0 + f64::from(*outcome), sum.1 + 1);
            }
        }
        if !sums.is_empty() {
            let outcomes = sums.into_iter().map(|(name, (sum, n))| (name, sum / n as f64)).collect();
            rows.push(OutcomeCase { case: *case, outcomes });
        }
    }
    rows
}

/// The pair to route between; says in `notes` why there is none, or why it is not the expected one.
pub(super) fn choose_pair(
    rows: &[OutcomeCase<'_>],
    requested: Option<&ModelPair>,
    notes: &mut Vec<String>,
) -> Option<(ModelPair, PairChoice)> {
    if rows.is_empty() {
        if requested.is_some() {
            notes.push("No row has outcomes, so the requested pair could not be measured.".to_owned());
        }
        return None;
    }
    if let Some(requested) = requested {
        let pair = ModelPair { weak: canonical_name(&requested.weak), strong: canonical_name(&requested.strong) };
        if n_rows(rows, &pair) == 0 {
            let mut known: Vec<&str> = rows.iter().flat_map(|row| row.outcomes.keys().map(String::as_str)).collect();
            known.sort_unstable();
            known.dedup();
            notes.push(format!(
                "No row has outcomes of both {} and {}. Models in the input: {}.",
                pair.weak,
                pair.strong,
                known.join(", ")
            ));
            return None;
        }
        return Some((pair, PairChoice::Requested));
    }
    let reference = ModelPair { weak: REFERENCE_WEAK.to_owned(), strong: REFERENCE_STRONG.to_owned() };
    if n_rows(rows, &reference) > 0 {
        return Some((reference, PairChoice::Reference));
    }
    let pair = widest_common_pair(rows)?;
    notes.push(format!(
        "No row has outcomes of the reference pair {REFERENCE_WEAK} and {REFERENCE_STRONG}; {} and {} are the pair \
         that most rows know, the widest gap among equals.",
        pair.weak, pair.strong
    ));
    Some((pair, PairChoice::MostRows))
}

fn n_rows(rows: &[OutcomeCase<'_>], pair: &ModelPair) -> usize {
    rows.iter().filter(|row| row.outcomes.contains_key(&pair.weak) && row.outcomes.contains_key(&pair.strong)).count()
}

fn widest_common_pair(rows: &[OutcomeCase<'_>]) -> Option<ModelPair> {
    // (rows, summed gain of the second over the first) of each ordered pair of names.
    let mut pairs: BTreeMap<(&str, &str), (usize, f64)> = BTreeMap::new();
    for row in rows {
        for (first, a) in &row.outcomes {
            for (second, b) in
                row.outcomes.range::<String, _>((std::ops::Bound::Excluded(first.clone()), std::ops::Bound::Unbounded))
            {
                let entry = pairs.entry((first, second)).or_default();
                *entry = (entry.0 + 1, entry.1 + b - a);
            }
        }
    }
    let mean_gap = |(n, sum): (usize, f64)| sum / n as f64;
    let ((first, second), figures) = pairs
        .into_iter()
        .max_by(|(_, a), (_, b)| a.0.cmp(&b.0).then_with(|| mean_gap(*a).abs().total_cmp(&mean_gap(*b).abs())))?;
    let (weak, strong) = if figures.1 >= 0.0 { (first, second) } else { (second, first) };
    Some(ModelPair { weak: weak.to_owned(), strong: strong.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::*;

    fn rows(outcomes: &[&[(&str, f32)]]) -> Vec<crate::offline::dataset::Row> {
        outcomes
            .iter()
            .map(|models| {
                let mut row = row("s/1", "text");
                row.outcomes = models.iter().map(|(model, score)| ((*model).to_owned(), Some(*score))).collect();
                row
            })
            .collect()
    }

    fn choose(
        outcomes: &[&[(&str, f32)]],
        requested: Option<(&str, &str)>,
    ) -> (Option<(ModelPair, PairChoice)>, String) {
        let rows = rows(outcomes);
        let cases: Vec<Case<'_>> = rows.iter().map(|row| Case { row, scores: None }).collect();
        let requested = requested.map(|(weak, strong)| ModelPair { weak: weak.into(), strong: strong.into() });
        let mut notes = Vec::new();
        let pair = choose_pair(&canonical_outcomes(&cases), requested.as_ref(), &mut notes);
        (pair, notes.join(" "))
    }

    #[test]
    fn spellings_of_one_model_meet() {
        let same = |spellings: &[&str]| {
            for spelling in spellings {
                assert_eq!(canonical_name(spelling), spellings[0]);
            }
        };
        same(&[
            "mixtral-8x7b-instruct",
            "Mixtral-8x7B-Instruct-v0.1",
            "mistralai/Mixtral-8x7B-Instruct-v0.1",
            "mixtral-8x7b-chat",
        ]);
        same(&["gpt-4-1106", "gpt-4-1106-preview"]);
        same(&["llama-3-1-8b-instruct", "Meta-Llama-3_1-8B-Instruct", "llama-3.1-8b-instruct"]);
        same(&["llama-3-8b-instruct", "Meta-Llama-3-8B-Instruct(hist)@hist"]);
        same(&["llama-3-1-405b-instruct", "Llama-3.1-405B-Inst@hyperbolic"]);
    }

    #[test]
    fn different_models_stay_apart() {
        assert_ne!(canonical_name("claude-v1"), canonical_name("claude-v2"));
        assert_ne!(canonical_name("Mistral-7B-Instruct-v0.1"), canonical_name("Mistral-7B-Instruct-v0.2"));
        assert_ne!(canonical_name("Mixtral-8x7B-v0.1"), canonical_name("Mixtral-8x7B-Instruct-v0.1"));
        assert_ne!(canonical_name("gpt-4-0314"), canonical_name("gpt-4-1106-preview"));
    }

    #[test]
    fn one_model_under_two_names_is_averaged() {
        let rows = rows(&[&[("Llama-3.1-405B-Inst@a", 1.0), ("Llama-3.1-405B-Inst@b", 0.0)]]);
        let outcomes = canonical_outcomes(&[Case { row: &rows[0], scores: None }]);
        assert_eq!(outcomes[0].outcomes, BTreeMap::from([("llama-3-1-405b-instruct".to_owned(), 0.5)]));
    }

    #[test]
    fn the_reference_pair_is_preferred() {
        let (pair, notes) = choose(
            &[
                &[("Mixtral-8x7B-Instruct-v0.1", 0.0), ("gpt-4-1106-preview", 1.0), ("x", 0.0)],
                &[("x", 0.0), ("y", 1.0)],
            ],
            None,
        );
        assert_eq!(pair.unwrap().1, PairChoice::Reference);
        assert!(notes.is_empty());
    }

    #[test]
    fn without_it_the_pair_of_most_rows_is_taken_and_named() {
        let (pair, notes) = choose(&[&[("a", 1.0), ("b", 0.5), ("c", 0.0)], &[("a", 1.0), ("b", 0.5)]], None);
        let (pair, choice) = pair.unwrap();
        assert_eq!((pair.weak.as_str(), pair.strong.as_str(), choice), ("b", "a", PairChoice::MostRows));
        assert!(notes.contains("b and a"), "{notes}");
    }

    #[test]
    fn a_requested_pair_that_is_absent_is_said_to_be() {
        let (pair, notes) = choose(&[&[("a", 1.0), ("b", 0.5)]], Some(("A", "zed")));
        assert!(pair.is_none());
        assert!(notes.contains("both a and zed") && notes.contains("a, b"), "{notes}");
        let (pair, _) = choose(&[&[("a", 1.0), ("B", 0.5)]], Some(("A", "b")));
        assert_eq!(pair.unwrap().1, PairChoice::Requested);
    }
}
