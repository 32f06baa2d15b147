//! An [`Evaluation`] for people and programs: text for a terminal, JSON, and one HTML file that needs nothing else.
//! Robustness is measured apart and told as text.
//!
//! Text and HTML show the same tables (`tables`); HTML adds plots and where the figures come from.

mod card;
mod html;
mod plot;
mod robustness;
mod simulation;
mod tables;
mod text;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use card::DataCard;
pub use html::{ModelPage, html};
pub use robustness::text as robustness_text;
pub use simulation::{html as simulation_html, text as simulation_text};
pub use text::text;

use super::evaluate::Evaluation;
use crate::classifier::Classifier;
use crate::domain::ClassifierRef;

/// What an evaluation was made of and by.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Provenance {
    /// The rows, and the scored rows where they were read from a file.
    pub inputs: Vec<FileRef>,
    /// The model that scored them, where known.
    pub model: Option<ModelRef>,
    /// The model it was compared with, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<ModelRef>,
    /// What gain was measured between, where the rows were scored for this evaluation.
    pub gain: Option<String>,
    /// The command line.
    pub command: String,
    /// When, as the caller writes dates.
    pub date: String,
}

/// A file, pinned by its bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileRef {
    /// Its name, without folders: reports are passed on.
    pub name: String,
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: String,
}

/// A model directory, pinned by its manifest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelRef {
    /// The directory's name.
    pub name: String,
    /// The manifest's version.
    pub version: String,
    /// SHA-256 of the manifest's bytes.
    pub sha256: String,
}

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file named in the report cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A figure cannot be drawn.
    #[error("cannot draw the {figure}")]
    Plot {
        /// Which one.
        figure: &'static str,
        /// What the plotting library says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The evaluation cannot be written as JSON.
    #[error("cannot write the evaluation as JSON")]
    Json(#[source] serde_json::Error),
}

/// The evaluation and its provenance as one JSON object, for programs.
///
/// # Errors
/// When serialisation fails.
pub fn json(evaluation: &Evaluation, provenance: &Provenance) -> Result<String, ReportError> {
    #[derive(Serialize)]
    struct Report<'a> {
        schema: &'static str,
        provenance: &'a Provenance,
        evaluation: &'a Evaluation,
    }
    let report = Report { schema: "pointsman.evaluation/v1", provenance, evaluation };
    serde_json::to_string_pretty(&report).map_err(ReportError::Json)
}

// === impl ModelRef ===

impl ModelRef {
    /// The reference of a loaded classifier.
    pub fn of(classifier: &Classifier) -> Self {
        let ClassifierRef { name, version, sha256 } = classifier.reference();
        Self { name: name.to_string(), version: version.to_string(), sha256: sha256.to_string() }
    }
}

// === impl FileRef ===

impl FileRef {
    /// Hashes a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path) -> Result<Self, ReportError> {
        let unreadable = |source| ReportError::Unreadable { path: path.to_owned(), source };
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).map_err(unreadable)? {
                0 => break,
                n => hasher.update(buffer.get(..n).unwrap_or_default()),
            }
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, sha256: hex::encode(hasher.finalize()) })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::Tier;
    use crate::offline::dataset::Row;
    use crate::offline::evaluate;
    use crate::offline::evaluate::tests::{quick, row, scores};
    use crate::offline::scored::ScoredRow;

    /// An evaluation in which every section has something to show.
    pub(crate) fn full_evaluation() -> Evaluation {
        let labels = ["code", "math", "chat"];
        let rows: Vec<Row> = (0..120_usize)
            .map(|i| {
                let source = if i % 2 == 0 { "a<b>" } else { "own" };
                let mut row = row(&format!("{source}/{i}"), &"word ".repeat(1 + (i * 37) % 120));
                row.intent = Some(labels[i % 3].to_owned());
                row.tier = Some(Tier::ALL[i % 3]);
                let weak = if i < 60 { 1.0 } else { 0.0 };
                row.outcomes = [("weak".to_owned(), Some(weak)), ("strong".to_owned(), Some(1.0))].into();
                row
            })
            .collect();
        let scored: Vec<ScoredRow> = (0..119_usize)
            .map(|i| ScoredRow {
                id: rows[i].id.clone(),
                result: match i {
                    7 => Err("text is <empty>".to_owned()),
                    _ => Ok(scores(labels[(i * 7 / 5) % 3], [0.5, 0.3, 0.2], ((i * 13) % 120) as f64 / 120.0)),
                },
            })
            .collect();
        evaluate::run(&rows, &scored, &quick())
    }

    pub(crate) fn provenance() -> Provenance {
        Provenance {
            inputs: vec![FileRef { name: "rows & more.jsonl".into(), sha256: "ab".repeat(32) }],
            model: Some(ModelRef { name: "default".into(), version: "1".into(), sha256: "cd".repeat(32) }),
            compared: None,
            gain: Some("b (ability 2.00) over a (ability 0.00)".into()),
            command: "pointsman eval --input \"rows & more.jsonl\"".into(),
            date: "2030-01-02".into(),
        }
    }

    #[test]
    fn json_holds_the_figures_and_where_they_come_from() {
        let report: serde_json::Value =
            serde_json::from_str(&json(&full_evaluation(), &provenance()).unwrap()).unwrap();
        assert_eq!(report["provenance"]["model"]["name"], "default");
        assert_eq!(report["evaluation"]["counts"]["n_errors"], 1);
        assert!(report["evaluation"]["routing"]["router"]["apgr"]["value"].is_f64());
    }

    #[test]
    fn files_are_pinned_by_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, "abc").unwrap();
        let file = FileRef::of(&path).unwrap();
        assert_eq!(file.name, "x.jsonl");
        assert_eq!(file.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(FileRef::of(&dir.path().join("none")).is_err());
    }
}
