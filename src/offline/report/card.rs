//! What a classifier was made of: its manifest, told to people, with the licences of its data.

use super::html::{code, escape, facts, table};
use super::tables::{Table, UNDEFINED, figure};
use crate::artifact::ClassifierManifest;
use crate::classifier::Classifier;
use crate::offline::register::Register;

/// The manifest of a classifier and what the register of sources says of its data.
#[derive(Clone, Debug)]
pub struct DataCard {
    manifest: ClassifierManifest,
    manifest_sha256: String,
    /// Source, rows trained on, licence where the register knows the source.
    sources: Vec<(String, u64, Option<String>)>,
}

// === impl DataCard ===

impl DataCard {
    /// The card of a loaded classifier; licences only with a register.
    pub fn of(classifier: &Classifier, register: Option<&Register>) -> Self {
        let sha256 = classifier.reference().sha256.to_string();
        Self::new(classifier.manifest().clone(), sha256, register)
    }

    fn new(manifest: ClassifierManifest, manifest_sha256: String, register: Option<&Register>) -> Self {
        let licence = |source: &str| Some(register?.by_row_source(source)?.licence.clone());
        let rows = manifest.training.rows_by_source.iter();
        let sources = rows.map(|(source, n)| (source.clone(), *n, licence(source))).collect();
        Self { manifest, manifest_sha256, sources }
    }

    pub(super) fn html(&self) -> String {
        let manifest = &self.manifest;
        let mut rows = vec![
            ("classifier", escape(&format!("{} {}", manifest.name, manifest.version))),
            ("manifest sha256", code(&self.manifest_sha256)),
        ];
        for (name, file) in &manifest.files {
            rows.push(("file", format!("{}, {} bytes<br>sha256 {}", escape(name), file.bytes, code(&file.sha256))));
        }
        let encoder = &manifest.encoder;
        let name = escape(&encoder.name);
        rows.push((
            "encoder",
            format!("{name}, at most {} tokens<br>sha256 {}", encoder.max_tokens, code(&encoder.weights_sha256)),
        ));
        rows.push(("text features", escape(&manifest.features)));
        rows.push(("intents", escape(&manifest.intent_labels.join(", "))));
        rows.push(("trained by", code(&manifest.training.command)));
        rows.push(("seed", manifest.training.seed.to_string()));

        let n: u64 = self.sources.iter().map(|(_, n, _)| n).sum();
        let known = self.sources.iter().any(|(_, _, licence)| licence.is_some());
        let note = if known {
            "Licences are those of the register of sources; prompts of our own are under the project's licence."
        } else {
            "No register of sources was given (<code>--sources</code>), so licences are not shown."
        };
        format!(
            "<section>\n<h3>Data card</h3>\n{}<p>{n} rows were trained on. {note}</p>\n{}{}</section>\n",
            facts(&rows),
            table(&self.sources_table()).replacen("<table>", "<table class=\"sources\">", 1),
            table(&self.calibration_table()),
        )
    }

    fn sources_table(&self) -> Table {
        let rows = self.sources.iter().map(|(source, n, licence)| {
            vec![source.clone(), n.to_string(), licence.clone().unwrap_or_else(|| UNDEFINED.to_owned())]
        });
        Table::new("Rows trained on, by source", &["source", "rows", "licence"], rows.collect())
    }

    fn calibration_table(&self) -> Table {
        let rows = self.manifest.calibration.iter().map(|(head, figures)| {
            vec![
                head.clone(),
                figures.method.clone(),
                figures.rows.to_string(),
                figure(figures.expected_calibration_error),
                figure(figures.brier_score),
            ]
        });
        Table::new("Calibration, as measured at training", &["head", "method", "rows", "ECE", "Brier"], rows.collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    /// The card of the committed default classifier.
    pub(crate) fn card(with_register: bool) -> DataCard {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let manifest = toml::from_str(&read("models/default/manifest.toml")).unwrap();
        let register = Register::parse(&read("training-data/sources.toml")).unwrap();
        DataCard::new(manifest, "ef".repeat(32), with_register.then_some(&register))
    }

    #[test]
    fn every_public_source_of_the_default_classifier_has_a_licence() {
        let without: Vec<String> = card(true)
            .sources
            .into_iter()
            .filter(|(_, _, licence)| licence.is_none())
            .map(|(name, _, _)| name)
            .collect();
        assert_eq!(without, ["own"]);
        assert!(card(true).html().contains("CC-BY-SA-3.0"));
    }

    #[test]
    fn a_card_says_when_it_knows_no_licences() {
        let page = card(false).html();
        assert!(page.contains("No register of sources") && page.contains(&"ef".repeat(32)));
        assert!(page.contains("pointsman train --data"));
    }
}
