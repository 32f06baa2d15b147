//! Rows of JSON Lines and CSV files: prompts with what is known of them.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::artifact::sha256_hex;
use crate::domain::Tier;

/// One prompt. Fields that a file has beyond these are ignored: public sources carry many.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// Unique within everything that is ever trained on; decides the split. Where a file gives none, its name and a
    /// hash of the text, so that a row keeps its split when others come before it.
    #[serde(default)]
    pub id: String,
    /// The prompt.
    pub text: String,
    /// The intent label, where known; `label` in the files of people who have but one kind.
    #[serde(default, alias = "label")]
    pub intent: Option<String>,
    /// A distribution over intents where more than one is fair; sums to 1.
    #[serde(default)]
    pub soft: BTreeMap<String, f32>,
    /// The tier by judgement, where known.
    #[serde(default)]
    pub tier: Option<Tier>,
    /// The source's own label.
    #[serde(default)]
    pub task: Option<String>,
    /// Score of each model's answer, 0..1.
    #[serde(default)]
    pub outcomes: BTreeMap<String, Option<f32>>,
    /// The source's own split.
    #[serde(default)]
    pub split: Option<String>,
    /// Whether intent and tier are a judgement of ours instead of the source's; see [`read_rows`].
    #[serde(skip)]
    pub judged: bool,
}

/// A line of a file: a row, or without a text a judgement of a row that stands elsewhere.
#[derive(Deserialize)]
#[serde(try_from = "serde_json::Value")]
enum Line {
    Row(Row),
    Judgement(Judgement),
}

/// Intent and tier that replace those of the row with this id.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Judgement {
    id: String,
    intent: String,
    #[serde(default)]
    soft: BTreeMap<String, f32>,
    tier: Tier,
}

/// Why a file could not be read as rows.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file cannot be opened or read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A line is not a row.
    #[error("{}:{line}: not a row", .path.display())]
    BadRow {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A line of a CSV file does not have the columns of the others.
    #[error("{}: not CSV", .path.display())]
    BadCsv {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        #[source]
        source: csv::Error,
    },
    /// A CSV file does not say which column is the text.
    #[error("{}: the first line names the columns, and one of them must be \"text\"; found {found}", .path.display())]
    NoTextColumn {
        /// The file.
        path: PathBuf,
        /// The columns there are.
        found: String,
    },
    /// A folder holds no file of rows.
    #[error("{} holds no .jsonl or .csv file", .0.display())]
    Empty(PathBuf),
}

impl TryFrom<serde_json::Value> for Line {
    type Error = serde_json::Error;

    fn try_from(value: serde_json::Value) -> Result<Self, Self::Error> {
        let has = |field| value.get(field).is_some();
        if has("intent") && !has("text") {
            serde_json::from_value(value).map(Self::Judgement)
        } else {
            serde_json::from_value(value).map(Self::Row)
        }
    }
}

impl Row {
    fn named_after(mut self, file: &str) -> Self {
        if self.id.is_empty() {
            let hash = sha256_hex(self.text.as_bytes());
            self.id = format!("{file}/{}", hash.get(..16).unwrap_or(&hash));
        }
        self
    }

    /// Where the row comes from: its id up to the first slash.
    pub fn source(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }
}

/// Every row of the files, and of every `.jsonl` and `.csv` file below the folders, in order of path.
///
/// The first line of a CSV file names its columns, which are the fields of a [`Row`]; an empty cell is no value.
///
/// A line `{"id", "intent", "tier"}` (and `soft`) without a text is a judgement: it replaces what the row with that id
/// says of itself, whatever file that row is in, so that wrong labels of public data can be mended without a copy of it.
/// A judgement of a row that is not there is ignored.
///
/// # Errors
/// Names the file and line at fault; training data is either wholly readable or refused.
pub fn read_rows<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Row>, DatasetError> {
    let (mut rows, mut judgements) = (Vec::new(), BTreeMap::new());
    for path in paths {
        let mut files = Vec::new();
        collect_files(path.as_ref(), &mut files)?;
        if files.is_empty() {
            return Err(DatasetError::Empty(path.as_ref().to_owned()));
        }
        files.sort();
        for file in files {
            let lines = if is_csv(&file) { read_csv(&file)? } else { read_lines::<Line>(&file)? };
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            for line in lines {
                match line {
                    Line::Row(row) => rows.push(row.named_after(&name)),
                    Line::Judgement(judgement) => drop(judgements.insert(judgement.id.clone(), judgement)),
                }
            }
        }
    }
    for row in &mut rows {
        if let Some(judgement) = judgements.get(&row.id) {
            row.intent = Some(judgement.intent.clone());
            row.soft.clone_from(&judgement.soft);
            row.tier = Some(judgement.tier);
            row.judged = true;
        }
    }
    Ok(rows)
}

fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
}

fn read_csv(path: &Path) -> Result<Vec<Line>, DatasetError> {
    let bad = |source| DatasetError::BadCsv { path: path.to_owned(), source };
    let mut reader = csv::Reader::from_path(path).map_err(bad)?;
    let header = reader.headers().map_err(bad)?.clone();
    if !header.iter().any(|column| column == "text") {
        let found = header.iter().map(|column| format!("{column:?}")).collect::<Vec<_>>().join(", ");
        return Err(DatasetError::NoTextColumn { path: path.to_owned(), found });
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(bad)?;
        let line = record.position().map_or(0, csv::Position::line) as usize;
        let cells = header.iter().zip(&record).filter(|(_, cell)| !cell.trim().is_empty());
        let fields = cells.map(|(column, cell)| (column.to_owned(), serde_json::Value::from(cell))).collect();
        let row = serde_json::from_value(serde_json::Value::Object(fields));
        rows.push(Line::Row(row.map_err(|source| DatasetError::BadRow { path: path.to_owned(), line, source })?));
    }
    Ok(rows)
}

fn collect_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), DatasetError> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let unreadable = |source| DatasetError::Unreadable { path: path.to_owned(), source };
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        if entry.is_dir() || entry.extension().is_some_and(|extension| extension == "jsonl") || is_csv(&entry) {
            collect_files(&entry, files)?;
        }
    }
    Ok(())
}

/// Every line of a JSON Lines file that is not blank.
///
/// # Errors
/// Names the file and line at fault.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, DatasetError> {
    let unreadable = |source| DatasetError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut rows = Vec::new();
    for (index, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&line).map_err(|source| DatasetError::BadRow {
            path: path.to_owned(),
            line: index + 1,
            source,
        })?;
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_folders_in_order_and_names_the_bad_line() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("b.jsonl"), "{\"id\":\"s/2\",\"text\":\"two\",\"tier\":\"complex\"}\n\n")
            .unwrap();
        std::fs::write(dir.path().join("sub/a.jsonl"), "{\"id\":\"s/3\",\"text\":\"three\",\"extra\":1}\n").unwrap();
        std::fs::write(dir.path().join("ignored.txt"), "x").unwrap();
        let rows = read_rows(&[dir.path()]).unwrap();
        assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["s/2", "s/3"]);
        assert_eq!(rows[0].tier, Some(Tier::Complex));
        assert_eq!(rows[0].source(), "s");

        std::fs::write(dir.path().join("b.jsonl"), "{\"id\":\"s/2\",\"text\":\"two\"}\n{\"id\":7}\n").unwrap();
        let error = read_rows(&[dir.path()]).unwrap_err();
        assert!(error.to_string().ends_with("b.jsonl:2: not a row"), "{error}");
    }

    #[test]
    fn csv_rows_are_rows_and_keep_their_split_when_others_come() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("shop.csv");
        let read = |content: &str| {
            std::fs::write(&file, content).unwrap();
            read_rows(&[dir.path()])
        };
        let rows = read("text,label,tier\n\"Refund, please\",refund,simple\nWhere is it?,delivery,\n").unwrap();
        assert_eq!((rows[0].text.as_str(), rows[0].intent.as_deref()), ("Refund, please", Some("refund")));
        assert_eq!((rows[0].tier, rows[1].tier, rows[1].source()), (Some(Tier::Simple), None, "shop"));
        let more = read("label,text\ninvoice,The bill\ndelivery,Where is it?\n").unwrap();
        assert_eq!(more[1].id, rows[1].id);

        let error = read("question,label\nWhere?,delivery\n").unwrap_err().to_string();
        assert!(error.contains("must be \"text\"") && error.contains("\"question\""), "{error}");
        let error = read("text,tier\nWhere?,huge\n").unwrap_err().to_string();
        assert!(error.ends_with("shop.csv:2: not a row"), "{error}");
        assert!(matches!(read("text,label\nWhere?\n").unwrap_err(), DatasetError::BadCsv { .. }));
    }

    #[test]
    fn judgements_replace_what_a_row_says_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (rows, judged) = (dir.path().join("rows.jsonl"), dir.path().join("judged.jsonl"));
        std::fs::write(
            &rows,
            "{\"id\":\"s/1\",\"text\":\"one\",\"intent\":\"chat\"}\n{\"id\":\"s/2\",\"text\":\"two\"}",
        )
        .unwrap();
        std::fs::write(
            &judged,
            "{\"id\":\"s/1\",\"intent\":\"math\",\"tier\":\"simple\"}\n{\"id\":\"s/9\",\"intent\":\"math\",\"tier\":\"simple\"}",
        )
        .unwrap();
        let rows = read_rows(&[judged, rows]).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].intent.as_deref(), rows[0].tier, rows[0].judged), (Some("math"), Some(Tier::Simple), true));
        assert!(rows[1].intent.is_none() && !rows[1].judged);
    }
}
