//! The register of public sources, `training-data/sources.toml`: which files are known, and what they may be used for.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Every source that data may come from.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Version of the register's form.
    pub schema: String,
    /// The files.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// One file of one public source.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Short name.
    pub name: String,
    /// Path below the data folder.
    pub file: String,
    /// SPDX identifier, with a remark where one is needed.
    pub licence: String,
    /// Where it comes from.
    pub upstream: String,
    /// Where it is described.
    #[serde(default)]
    pub paper: Option<String>,
    /// What it may be used for; empty: text only.
    pub uses: Vec<Use>,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Rows of the file.
    pub rows: u64,
    /// Rows whose id occurred before.
    #[serde(default)]
    pub repeated_ids: u64,
    /// Fields that occur.
    pub fields: Vec<String>,
    /// Rows by the source's own split.
    pub splits: BTreeMap<String, u64>,
    /// The source's labels and what they mean here.
    #[serde(default)]
    pub labels: Vec<LabelMapping>,
    /// The number of labels, where they are too many to list.
    #[serde(default)]
    pub tasks: Option<u64>,
    /// Rows with an outcome, by model.
    #[serde(default)]
    pub models: BTreeMap<String, u64>,
    /// What is wrong with it.
    pub notes: String,
}

/// What a source may be used for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Labels of intents.
    Intent,
    /// Outcomes of models, or levels.
    Difficulty,
    /// Comparison with published tables on official splits; never in the default model.
    Benchmark,
}

/// A label of a source.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct LabelMapping {
    /// The source's label.
    pub task: String,
    /// Our intent, if it is one.
    #[serde(default)]
    pub intent: Option<String>,
    /// Rows with it.
    pub rows: u64,
}

// === impl Register ===

impl Register {
    /// Parses the register's text.
    ///
    /// # Errors
    /// Says where the text is no register.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The source whose file has these bytes: says what a file of any name really is.
    pub fn by_sha256(&self, sha256: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.sha256 == sha256)
    }

    /// The source whose rows have ids that begin like this: its name begins so too, underscores and case aside.
    pub fn by_row_source(&self, row_source: &str) -> Option<&Source> {
        let plain = |name: &str| name.replace('_', "").to_lowercase();
        let wanted = plain(row_source);
        self.sources.iter().find(|source| plain(&source.name).starts_with(&wanted))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::domain::Tier;
    use crate::offline::dataset::{Row, read_rows};

    const INTENTS: [&str; 14] = [
        "brainstorming",
        "chat",
        "classification",
        "closed_qa",
        "code",
        "creative_writing",
        "extraction",
        "math",
        "open_qa",
        "other",
        "reasoning",
        "rewrite",
        "summarization",
        "translation",
    ];

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("training-data")
    }

    fn prompts() -> Vec<Row> {
        read_rows(&[folder().join("prompts")]).unwrap()
    }

    #[test]
    fn the_register_parses_and_adds_up() {
        let register = Register::parse(&std::fs::read_to_string(folder().join("sources.toml")).unwrap()).unwrap();
        assert_eq!(register.schema, "pointsman.sources/v1");
        assert!(register.sources.len() >= 20);
        for source in &register.sources {
            let name = &source.name;
            assert_eq!(source.sha256.len(), 64, "{name}");
            assert_eq!(source.splits.values().sum::<u64>(), source.rows, "{name}");
            assert!(source.labels.iter().map(|label| label.rows).sum::<u64>() <= source.rows, "{name}");
            let intents: BTreeSet<&str> = source.labels.iter().filter_map(|label| label.intent.as_deref()).collect();
            assert!(intents.iter().all(|intent| INTENTS.contains(intent)), "{name}: {intents:?}");
            assert_eq!(source.uses.contains(&Use::Intent), !intents.is_empty(), "{name}");
            assert!(source.models.values().all(|rows| *rows <= source.rows), "{name}");
            assert_eq!(register.by_sha256(&source.sha256), Some(source), "no file is registered twice");
        }
    }

    #[test]
    fn own_prompts_cover_every_intent_and_tier() {
        let rows = prompts();
        assert!(rows.len() >= 1_400, "{}", rows.len());
        let mut counts: BTreeMap<(&str, Tier), usize> = BTreeMap::new();
        for row in &rows {
            *counts.entry((row.intent.as_deref().unwrap(), row.tier.unwrap())).or_default() += 1;
        }
        let intents: BTreeSet<&str> = counts.keys().map(|(intent, _)| *intent).collect();
        assert_eq!(intents, BTreeSet::from(INTENTS));
        for intent in INTENTS {
            let of = |tier| counts.get(&(intent, tier)).copied().unwrap_or_default();
            assert!(Tier::ALL.into_iter().map(of).sum::<usize>() >= 100, "{intent}");
            // Small talk and commands to devices are hardly ever complex.
            let fewest = if matches!(intent, "chat" | "other") { 10 } else { 50 };
            assert!(Tier::ALL.into_iter().all(|tier| of(tier) >= fewest), "{intent}");
        }
    }

    #[test]
    fn own_prompts_are_well_formed() {
        let mut ids = BTreeSet::new();
        let mut texts = BTreeSet::new();
        for row in prompts() {
            let id = &row.id;
            let intent = row.intent.as_deref().unwrap();
            assert!(id.starts_with(&format!("own/{intent}/")), "{id}");
            assert!(ids.insert(id.clone()), "{id} is used twice");
            let normal: Vec<String> = row.text.split_whitespace().map(str::to_lowercase).collect();
            assert!(texts.insert(normal.join(" ")), "the text of {id} occurs twice");
            if !row.soft.is_empty() {
                assert!((row.soft.values().sum::<f32>() - 1.0).abs() < 1e-3, "{id}");
                let top = row.soft.values().copied().fold(0.0, f32::max);
                assert_eq!(row.soft.get(intent), Some(&top), "the intent of {id} is its largest soft label");
                assert!(row.soft.keys().all(|label| INTENTS.contains(&label.as_str())), "{id}");
            }
        }
    }
}
