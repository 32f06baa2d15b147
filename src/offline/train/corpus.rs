//! The rows of a training run: read, selected, split, copied with changes, and read as the classifier will read them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ndarray::{Array1, Array2, ArrayView1, Axis};
use rayon::prelude::*;

use super::cache::EmbeddingCache;
use super::recipe::{Recipe, Splits};
use super::{TrainError, TrainOptions};
use crate::classifier::as_read;
use crate::domain::Content;
use crate::encoder::{Encoder, TextTokenizer};
use crate::heads::standardise;
use crate::offline::dataset::{Row, read_rows};
use crate::offline::evaluate::models::canonical_name;
use crate::offline::perturb::{Pool, perturb, seed_of};
use crate::offline::split::Split;
use crate::text::{self, Prepared, features, ngrams};

/// Rows with all that is known of them but their embeddings; one index throughout.
pub(super) struct Corpus {
    pub(super) rows: Vec<Row>,
    pub(super) splits: Vec<Split>,
    pub(super) prepared: Vec<Prepared>,
    pub(super) features: Array2<f32>,
    pub(super) ngrams: Vec<Vec<u32>>,
    /// The row that each row is a changed copy of; itself where it is none.
    pub(super) originals: Vec<usize>,
}

/// The intent side of the data: labels in order, and each row's target.
pub(super) struct Targets {
    pub(super) labels: Vec<String>,
    /// `[rows, labels]`; a row of zeros has no intent.
    pub(super) matrix: Array2<f32>,
    pub(super) out_of_scope: Vec<bool>,
}

/// How features are brought to one scale: mean and reciprocal standard deviation of each.
pub(super) type FeatureScale = (Array1<f32>, Array1<f32>);

// === impl Corpus ===

impl Corpus {
    /// Reads the rows that `options` name as `tokenizer`'s classifier will read them.
    pub(super) fn read(options: &TrainOptions, tokenizer: &TextTokenizer) -> Result<Self, TrainError> {
        let rows = read_rows(&options.data)?;
        let (mut rows, mut splits) = split_without_leaks(options.recipe.select(rows), &options.recipe);
        forget_models(&mut rows, &splits, &options.recipe);
        let copies = changed_copies(&rows, &splits, &options.recipe);
        let mut originals: Vec<usize> = (0..rows.len()).collect();
        for (original, copy) in copies {
            originals.push(original);
            splits.push(Split::Train);
            rows.push(copy);
        }
        let prepared: Vec<Prepared> = rows
            .par_iter()
            .map(|row| {
                let mut prepared = text::prepare(&Content::Text(row.text.clone()));
                prepared.task.text = as_read(tokenizer, &prepared).into_owned();
                prepared
            })
            .collect();
        let mut matrix = Array2::zeros((rows.len(), features::N_FEATURES));
        for (mut row, prepared) in matrix.outer_iter_mut().zip(&prepared) {
            row.assign(&ArrayView1::from(&features::extract(&prepared.task.text, &prepared.task.signals)));
        }
        let ngrams = prepared.par_iter().map(|prepared| ngrams::buckets(&prepared.task.text)).collect();
        Ok(Self { rows, splits, prepared, features: matrix, ngrams, originals })
    }

    /// Embeddings of all rows, `[rows, hidden]`.
    pub(super) fn embed(
        &self,
        encoder: &Encoder,
        options: &TrainOptions,
        progress: &dyn Fn(&str, usize, usize),
    ) -> Result<Array2<f32>, TrainError> {
        let mut cache = EmbeddingCache::open(options.cache_dir.as_deref(), encoder)?;
        cache.embed(encoder, &self.prepared, &|done| progress("embedding", done, self.rows.len()))
    }

    /// N-gram buckets of the given rows.
    pub(super) fn ngrams(&self, rows: impl IntoIterator<Item = usize>) -> Vec<&[u32]> {
        rows.into_iter().map(|row| self.ngrams[row].as_slice()).collect()
    }

    /// Bytes of the prepared text, the length baseline.
    pub(super) fn bytes(&self, row: usize) -> f64 {
        self.prepared[row].text.len() as f64
    }

    /// Whether a row says how hard it is.
    pub(super) fn informs(&self, row: usize) -> bool {
        self.rows[row].tier.is_some() || !self.rows[row].outcomes.is_empty()
    }

    pub(super) fn has_difficulty(&self) -> bool {
        (0..self.rows.len()).any(|row| self.informs(row))
    }

    pub(super) fn indices(&self, split: Split, keep: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.rows.len()).filter(|index| self.splits[*index] == split && keep(*index)).collect()
    }

    pub(super) fn train_rows_by_source(&self) -> BTreeMap<String, u64> {
        let mut rows_by_source = BTreeMap::new();
        for row in self.indices(Split::Train, |_| true) {
            *rows_by_source.entry(self.rows[row].source().to_owned()).or_default() += 1;
        }
        rows_by_source
    }

    /// Over the training rows.
    pub(super) fn feature_scale(&self) -> FeatureScale {
        let train = self.features.select(Axis(0), &self.indices(Split::Train, |_| true));
        let mean = train.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(features::N_FEATURES));
        let scale = train.std_axis(Axis(0), 0.0).mapv(|sd| if sd > 1e-6 { 1.0 / sd } else { 0.0 });
        (mean, scale)
    }

    pub(super) fn standardised(&self, (mean, scale): &FeatureScale) -> Array2<f32> {
        standardise(self.features.view(), mean, scale)
    }
}

// === impl Targets ===

impl Targets {
    pub(super) fn build(options: &TrainOptions, corpus: &Corpus) -> Result<Self, TrainError> {
        let recipe = &options.recipe;
        let oos = recipe.out_of_scope_label.as_deref();
        let is_intent = |label: &str| recipe.out_of_scope_is_intent || Some(label) != oos;
        let mut labels: Vec<String> = corpus
            .rows
            .iter()
            .filter_map(|row| recipe.label(row))
            .filter(|label| is_intent(label))
            .map(str::to_owned)
            .collect();
        labels.sort_unstable();
        labels.dedup();
        if labels.len() < 2 {
            return Err(TrainError::Unusable(format!(
                "the data has {} different labels in the field {:?}; at least 2 are needed",
                labels.len(),
                recipe.label_field
            )));
        }
        let index: BTreeMap<&str, usize> = labels.iter().enumerate().map(|(i, label)| (label.as_str(), i)).collect();
        let mut matrix = Array2::zeros((corpus.rows.len(), labels.len()));
        for (mut target, row) in matrix.outer_iter_mut().zip(&corpus.rows) {
            let known = row.soft.iter().filter_map(|(label, weight)| Some((*index.get(label.as_str())?, *weight)));
            let soft: Vec<(usize, f32)> = known.collect();
            let sum: f32 = soft.iter().map(|(_, weight)| weight).sum();
            if sum > 0.0 {
                soft.iter().for_each(|(label, weight)| target[*label] = weight / sum);
            } else if let Some(label) = recipe.label(row).and_then(|label| index.get(label)) {
                target[*label] = 1.0;
            }
        }
        let out_of_scope = corpus.rows.iter().map(|row| oos.is_some() && recipe.label(row) == oos).collect();
        Ok(Self { labels, matrix, out_of_scope })
    }

    pub(super) fn has_intent(&self, row: usize) -> bool {
        self.matrix.row(row).sum() > 0.0
    }

    pub(super) fn label(&self, row: usize) -> usize {
        argmax(self.matrix.row(row).iter().copied())
    }

    /// L2-normalised mean embedding of each label's training rows: `[labels, hidden]`.
    pub(super) fn centroids(&self, corpus: &Corpus, embeddings: &Array2<f32>) -> Array2<f32> {
        let mut centroids = Array2::zeros((self.labels.len(), embeddings.ncols()));
        for row in corpus.indices(Split::Train, |row| self.has_intent(row)) {
            let mut centroid = centroids.row_mut(self.label(row));
            centroid += &embeddings.row(row);
        }
        for mut centroid in centroids.outer_iter_mut() {
            let norm = centroid.dot(&centroid).sqrt().max(1e-12);
            centroid /= norm;
        }
        centroids
    }
}

/// Each row's split, less the rows that would leak.
///
/// Public sources share prompts under different ids. A text that is tested must not be trained or calibrated on, so
/// the copy in the more precious split stays.
fn split_without_leaks(rows: Vec<Row>, recipe: &Recipe) -> (Vec<Row>, Vec<Split>) {
    // A source with a validation split of its own needs no part of its training rows for calibration.
    let validated: BTreeSet<String> = rows
        .iter()
        .filter(|row| official(row) == Some(Split::Calibration))
        .map(|row| row.source().to_owned())
        .collect();
    let split = |row: &Row| {
        if recipe.leave_out.iter().any(|source| source == row.source()) {
            return Split::Test;
        }
        match (recipe.splits, official(row)) {
            (Splits::Official, Some(Split::Train)) if !validated.contains(row.source()) => {
                if Split::of(&row.id) == Split::Calibration { Split::Calibration } else { Split::Train }
            }
            (Splits::Official, Some(split)) => split,
            _ => Split::of(&row.id),
        }
    };
    let key = |row: &Row| row.text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let mut kept_as: HashMap<String, Split> = HashMap::new();
    for wanted in [Split::Test, Split::Calibration, Split::Train] {
        for row in rows.iter().filter(|row| split(row) == wanted) {
            kept_as.entry(key(row)).or_insert(wanted);
        }
    }
    rows.into_iter()
        .filter_map(|row| {
            let split = split(&row);
            (kept_as.get(&key(&row)) == Some(&split)).then_some((row, split))
        })
        .unzip()
}

/// Takes the answers of left-out models from all rows but the tested ones.
fn forget_models(rows: &mut [Row], splits: &[Split], recipe: &Recipe) {
    let left_out: BTreeSet<String> = recipe.leave_out_models.iter().map(|name| canonical_name(name)).collect();
    for (row, split) in rows.iter_mut().zip(splits) {
        if *split != Split::Test && !left_out.is_empty() {
            row.outcomes.retain(|name, _| !left_out.contains(&canonical_name(name)));
        }
    }
}

/// The split that the source itself gives a row, where it does.
fn official(row: &Row) -> Option<Split> {
    match row.split.as_deref()? {
        "train" => Some(Split::Train),
        "val" | "validation" | "dev" => Some(Split::Calibration),
        "test" => Some(Split::Test),
        _ => None,
    }
}

/// Copies of training rows as somebody else might have typed them, so that such changes do not move the verdict; each
/// with the row that it was made of.
fn changed_copies(rows: &[Row], splits: &[Split], recipe: &Recipe) -> Vec<(usize, Row)> {
    let copies = |original: usize, row: &Row| {
        let n = recipe.sources.get(row.source()).map_or(0, |source| source.copies);
        // Kinds in an order of the row's own, the first few that change anything.
        let mut kinds: Vec<_> =
            recipe.copy_kinds.iter().map(|kind| (seed_of(recipe.seed, *kind, &row.id), *kind)).collect();
        kinds.sort_unstable();
        let changed = kinds.into_iter().filter_map(|(seed, kind)| {
            let text = perturb(kind, Pool::Training, &row.text, seed)?;
            Some((original, Row { id: format!("{}+{}", row.id, kind.as_str()), text, ..row.clone() }))
        });
        changed.take(n).collect::<Vec<_>>()
    };
    let train: Vec<usize> = (0..rows.len()).filter(|row| splits[*row] == Split::Train).collect();
    train.par_iter().flat_map_iter(|row| copies(*row, &rows[*row])).collect()
}

pub(super) fn argmax(values: impl Iterator<Item = f32>) -> usize {
    values.enumerate().fold((0, f32::NEG_INFINITY), |best, (i, v)| if v > best.1 { (i, v) } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::train::recipe::SourceRecipe;

    fn row(id: &str, text: &str, split: Option<&str>) -> Row {
        serde_json::from_value(serde_json::json!({"id": id, "text": text, "intent": "chat", "split": split})).unwrap()
    }

    #[test]
    fn a_tested_text_is_never_trained_on_and_official_splits_hold() {
        let train: Vec<Row> = (0..200).map(|i| row(&format!("a/{i}"), &format!("text {i}"), Some("train"))).collect();
        let test = [row("a/t1", "Text  7", Some("test")), row("a/t2", "new", Some("test"))];
        let recipe = Recipe { splits: Splits::Official, ..Recipe::default() };
        let (rows, splits) = split_without_leaks(train.iter().chain(&test).cloned().collect(), &recipe);
        assert!(rows.iter().all(|row| row.id != "a/7"), "it is tested under another id");
        let n = |wanted| splits.iter().filter(|split| **split == wanted).count();
        assert_eq!(n(Split::Test), 2);
        assert!((10..40).contains(&n(Split::Calibration)), "a tenth of the training rows: {}", n(Split::Calibration));

        let validation = row("a/v", "for choosing", Some("val"));
        let (_, splits) = split_without_leaks(train.into_iter().chain([validation]).collect(), &recipe);
        assert_eq!(splits.iter().filter(|split| **split == Split::Calibration).count(), 1, "the source's own");
    }

    #[test]
    fn only_training_rows_are_copied_and_copies_keep_their_labels() {
        let rows: Vec<Row> =
            (0..30).map(|i| row(&format!("a/{i}"), "Write a poem about the sea, please.", None)).collect();
        let splits: Vec<Split> = rows.iter().map(|row| Split::of(&row.id)).collect();
        let source: SourceRecipe = toml::from_str("copies = 2").unwrap();
        let recipe = Recipe { sources: BTreeMap::from([("a".to_owned(), source)]), ..Recipe::default() };
        let copies = changed_copies(&rows, &splits, &recipe);
        let n_train = splits.iter().filter(|split| **split == Split::Train).count();
        assert_eq!(copies.len(), 2 * n_train);
        for (original, copy) in &copies {
            assert!(copy.id.starts_with(&rows[*original].id));
            let (id, kind) = copy.id.split_once('+').unwrap();
            assert_eq!(Split::of(id), Split::Train, "{id} {kind}");
            assert!(copy.text != rows[0].text && copy.intent.as_deref() == Some("chat"));
        }
    }
}
