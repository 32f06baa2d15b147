//! The training run as a whole: rows to a model directory.

use std::collections::{BTreeMap, HashMap};

use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;

use super::cache::EmbeddingCache;
use super::fit::{DifficultyData, IntentData};
use super::recipe::Recipe;
use super::{TrainError, TrainOptions, TrainReport, calibrate, fit, irt};
use crate::artifact::{
    self, Artifact, CalibrationFigures, ClassifierManifest, FileEntry,
    manifest::{EncoderNeeded, TrainingRecord},
};
use crate::classifier::{HEADS, load_encoder};
use crate::domain::{Content, Tier};
use crate::heads::{HeadWeights, IntentHead, Mlp, OutOfScope, TierScale, familiarity, softmax, standardise};
use crate::offline::dataset::{Row, read_rows};
use crate::offline::evaluate::models::{REFERENCE_STRONG, REFERENCE_WEAK, canonical_name};
use crate::offline::metrics::{
    calibration::{N_BINS, brier, expected_calibration_error, reliability},
    classification::Confusion,
    ranking::auroc,
};
use crate::offline::split::Split;
use crate::text::{self, Prepared, features, ngrams};

/// Rows with all that is known of them, one index throughout.
struct Corpus {
    rows: Vec<Row>,
    splits: Vec<Split>,
    /// Bytes of the prepared text, the length baseline.
    bytes: Vec<f64>,
    embeddings: Array2<f32>,
    features: Array2<f32>,
    ngrams: Vec<Vec<u32>>,
}

/// The intent side of the data: labels in order, and each row's target.
struct Targets {
    labels: Vec<String>,
    /// `[rows, labels]`; a row of zeros has no intent.
    matrix: Array2<f32>,
    out_of_scope: Vec<bool>,
}

/// A fitted difficulty head, or one taken over from the base classifier.
struct DifficultyHead {
    network: Mlp,
    scale: TierScale,
    figures: Option<CalibrationFigures>,
}

/// Trains heads as `options` say, writes the model directory and reports on the test split.
///
/// `progress` is told what is being done and how far it is.
///
/// # Errors
/// Says which file, row or tensor was at fault; nothing is written then.
pub fn train(options: &TrainOptions, progress: &dyn Fn(&str, usize, usize)) -> Result<TrainReport, TrainError> {
    let encoder = load_encoder(&options.encoder, &options.roots, options.max_tokens, &options.device)?;
    let corpus = Corpus::build(options, &encoder, progress)?;
    let targets = Targets::build(options, &corpus)?;
    let mut report = TrainReport::default();
    for split in [Split::Train, Split::Calibration, Split::Test] {
        report.rows.insert(split.as_str(), corpus.splits.iter().filter(|s| **s == split).count());
    }

    let base = if corpus.has_difficulty() { None } else { Some(base_weights(options, &mut report)?) };
    let (mean, scale) = match &base {
        Some(base) => (base.feature_mean.clone(), base.feature_scale.clone()),
        None => corpus.feature_statistics(),
    };
    let inputs = ndarray::concatenate(
        Axis(1),
        &[corpus.embeddings.view(), standardise(corpus.features.view(), &mean, &scale).view()],
    )
    .map_err(|error| TrainError::Unusable(error.to_string()))?;

    progress("fitting intent", 0, 0);
    let (intent, temperature, intent_figures) = fit_intent(options, &corpus, &targets, &inputs, &mut report)?;
    progress("fitting difficulty", 0, 0);
    let difficulty = match base {
        Some(base) => DifficultyHead { network: base.difficulty, scale: base.tier_scale, figures: None },
        None => fit_difficulty(options, &corpus, &inputs, &mut report)?,
    };
    let logits = intent.logits(inputs.view(), &corpus.ngrams(0..corpus.rows.len()));
    let centroids = targets.centroids(&corpus);
    let out_of_scope = fit_out_of_scope(&corpus, &targets, &logits, temperature, &centroids);
    let weights = HeadWeights {
        feature_mean: mean,
        feature_scale: scale,
        intent,
        intent_temperature: temperature,
        difficulty: difficulty.network,
        tier_scale: difficulty.scale,
        centroids,
        out_of_scope,
    };
    let calibration: BTreeMap<String, CalibrationFigures> = [("intent", intent_figures), ("tier", difficulty.figures)]
        .into_iter()
        .filter_map(|(head, figures)| Some((head.to_owned(), figures?)))
        .collect();
    report.calibration_error =
        calibration.iter().map(|(head, figures)| (head.clone(), figures.expected_calibration_error)).collect();
    let needed = EncoderNeeded {
        name: options.encoder.clone(),
        weights_sha256: encoder.weights_sha256().to_owned(),
        max_tokens: options.max_tokens,
    };
    write(options, &corpus, targets.labels, &weights, calibration, needed, &report)?;
    Ok(report)
}

// === impl Corpus ===

impl Corpus {
    fn build(
        options: &TrainOptions,
        encoder: &crate::encoder::Encoder,
        progress: &dyn Fn(&str, usize, usize),
    ) -> Result<Self, TrainError> {
        let mut rows = Vec::new();
        for path in &options.data {
            rows.extend(read_rows(path)?);
        }
        let (rows, splits) = split_without_leaks(options.recipe.select(rows), &options.recipe);
        let prepared: Vec<Prepared> =
            rows.par_iter().map(|row| text::prepare(&Content::Text(row.text.clone()))).collect();
        let mut cache = EmbeddingCache::open(options.cache_dir.as_deref(), encoder)?;
        let n = rows.len();
        let embeddings = cache.embed(encoder, &prepared, &|done| progress("embedding", done, n))?;
        let mut matrix = Array2::zeros((n, features::N_FEATURES));
        for (mut row, prepared) in matrix.outer_iter_mut().zip(&prepared) {
            row.assign(&ndarray::ArrayView1::from(&features::extract(&prepared.text, &prepared.signals)));
        }
        let bytes = prepared.iter().map(|prepared| prepared.text.len() as f64).collect();
        let ngrams = prepared.par_iter().map(|prepared| ngrams::buckets(&prepared.text)).collect();
        Ok(Self { rows, splits, bytes, embeddings, features: matrix, ngrams })
    }

    /// N-gram buckets of the given rows.
    fn ngrams(&self, rows: impl IntoIterator<Item = usize>) -> Vec<&[u32]> {
        rows.into_iter().map(|row| self.ngrams[row].as_slice()).collect()
    }

    fn has_difficulty(&self) -> bool {
        self.rows.iter().any(|row| row.tier.is_some() || !row.outcomes.is_empty())
    }

    fn indices(&self, split: Split, keep: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.rows.len()).filter(|index| self.splits[*index] == split && keep(*index)).collect()
    }

    /// Mean and reciprocal standard deviation of each feature over the training rows.
    fn feature_statistics(&self) -> (Array1<f32>, Array1<f32>) {
        let train = self.features.select(Axis(0), &self.indices(Split::Train, |_| true));
        let mean = train.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(features::N_FEATURES));
        let scale = train.std_axis(Axis(0), 0.0).mapv(|sd| if sd > 1e-6 { 1.0 / sd } else { 0.0 });
        (mean, scale)
    }
}

// === impl Targets ===

impl Targets {
    fn build(options: &TrainOptions, corpus: &Corpus) -> Result<Self, TrainError> {
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

    fn has_intent(&self, row: usize) -> bool {
        self.matrix.row(row).sum() > 0.0
    }

    fn label(&self, row: usize) -> usize {
        argmax(self.matrix.row(row).iter().copied())
    }

    /// L2-normalised mean embedding of each label's training rows: `[labels, hidden]`.
    fn centroids(&self, corpus: &Corpus) -> Array2<f32> {
        let mut centroids = Array2::zeros((self.labels.len(), corpus.embeddings.ncols()));
        for row in corpus.indices(Split::Train, |row| self.has_intent(row)) {
            let mut centroid = centroids.row_mut(self.label(row));
            centroid += &corpus.embeddings.row(row);
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
    let split = |row: &Row| {
        if recipe.leave_out.iter().any(|source| source == row.source()) { Split::Test } else { Split::of(&row.id) }
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

fn fit_intent(
    options: &TrainOptions,
    corpus: &Corpus,
    targets: &Targets,
    inputs: &Array2<f32>,
    report: &mut TrainReport,
) -> Result<(IntentHead, f32, Option<CalibrationFigures>), TrainError> {
    let recipe = &options.recipe;
    let data = |split| {
        let rows =
            corpus.indices(split, |row| targets.has_intent(row) && recipe.intent_weight(&corpus.rows[row]) > 0.0);
        IntentData {
            inputs: inputs.select(Axis(0), &rows),
            ngrams: rows.iter().map(|row| corpus.ngrams[*row].clone()).collect(),
            targets: targets.matrix.select(Axis(0), &rows),
            weights: rows.iter().map(|row| recipe.intent_weight(&corpus.rows[*row])).collect(),
        }
    };
    let (train, calibration) = (data(Split::Train), data(Split::Calibration));
    if train.inputs.is_empty() || calibration.inputs.is_empty() {
        return Err(TrainError::Unusable("too few labelled rows: the training or calibration split is empty".into()));
    }
    let head = fit::fit_intent(&train, &calibration, ngrams::N_BUCKETS, &recipe.intent, recipe.seed, &options.device)?;
    let buckets: Vec<&[u32]> = calibration.ngrams.iter().map(Vec::as_slice).collect();
    let logits = head.logits(calibration.inputs.view(), &buckets);
    let temperature = calibrate::fit_temperature(logits.view(), &calibration.targets);

    let test = corpus.indices(Split::Test, |row| targets.has_intent(row));
    let logits = head.logits(inputs.select(Axis(0), &test).view(), &corpus.ngrams(test.iter().copied()));
    let mut confusion = Confusion::new(targets.labels.clone());
    let mut by_source: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    let (mut confidences, mut brier_sum) = (Vec::new(), 0.0);
    for (row, logits) in test.iter().zip(logits.outer_iter()) {
        let probabilities = softmax(logits, temperature);
        let (predicted, truth) = (argmax(probabilities.iter().copied()), targets.label(*row));
        confusion.add(truth, predicted);
        by_source.entry(corpus.rows[*row].source()).or_default().push(predicted == truth);
        confidences.push((f64::from(probabilities[predicted]), predicted == truth));
        brier_sum += brier(probabilities.iter().copied().map(f64::from), Some(truth));
    }
    report.intent_by_source = by_source.into_iter().map(|(source, right)| (source.to_owned(), share(&right))).collect();
    report.intent_f1 = confusion.per_class().into_iter().map(|class| (class.label, class.f1)).collect();
    report.intent_macro_f1 = confusion.macro_f1().unwrap_or_default();
    let figures = expected_calibration_error(&reliability(&confidences, N_BINS)).map(|error| CalibrationFigures {
        method: "temperature".into(),
        expected_calibration_error: error,
        brier_score: brier_sum / test.len() as f64,
        rows: test.len() as u64,
    });
    Ok((head, temperature, figures))
}

fn fit_difficulty(
    options: &TrainOptions,
    corpus: &Corpus,
    inputs: &Array2<f32>,
    report: &mut TrainReport,
) -> Result<DifficultyHead, TrainError> {
    let recipe = &options.recipe;
    // Abilities come from training rows alone, so that held-out answers stay unseen.
    let train_rows = corpus.indices(Split::Train, |_| true);
    let scale = irt::fit(&train_rows.iter().map(|row| &corpus.rows[*row]).collect::<Vec<_>>());
    let models: BTreeMap<&str, usize> =
        scale.abilities.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let informs = |row: usize| corpus.rows[row].tier.is_some() || !corpus.rows[row].outcomes.is_empty();
    let fit = |keep: &dyn Fn(usize) -> bool| -> Result<(Mlp, TierScale), TrainError> {
        let data = |split| {
            let rows = corpus.indices(split, |row| informs(row) && keep(row));
            difficulty_data(options, corpus, inputs, &models, &scale.abilities, &rows)
        };
        let (train, calibration) = (data(Split::Train), data(Split::Calibration));
        let (network, mut tier_scale, _) =
            fit::fit_difficulty(&train, &calibration, &recipe.difficulty, recipe.seed, &options.device)?;
        let rows = corpus.indices(Split::Calibration, |row| corpus.rows[row].tier.is_some() && keep(row));
        if !rows.is_empty() {
            let z = latent_difficulty(&network, inputs, &rows);
            tier_scale = calibrate::fit_tier_scale(&z, &true_tiers(corpus, &rows), tier_scale);
        }
        Ok((network, tier_scale))
    };
    let (network, tier_scale) = fit(&|_| true)?;
    let judged = corpus.indices(Split::Calibration, |row| corpus.rows[row].tier.is_some());
    let z = latent_difficulty(&network, inputs, &judged);
    report.tier_control = calibrate::fit_tier_control(tier_scale, &z, &true_tiers(corpus, &judged));
    report.tier_cross_fitted = cross_fit_tiers(corpus, inputs, &fit)?;

    let test = corpus.indices(Split::Test, |row| corpus.rows[row].tier.is_some());
    let (confidences, brier_sum) = tier_confidences(corpus, &network, tier_scale, inputs, &test);
    let figures = expected_calibration_error(&reliability(&confidences, N_BINS)).map(|error| CalibrationFigures {
        method: "ordinal logistic".into(),
        expected_calibration_error: error,
        brier_score: brier_sum / test.len() as f64,
        rows: test.len() as u64,
    });
    report.tier_accuracy =
        (!test.is_empty()).then(|| share(&confidences.iter().map(|(_, right)| *right).collect::<Vec<_>>()).0);
    report.difficulty_auroc = difficulty_auroc(corpus, &network, inputs);
    report.abilities = scale.measured;
    Ok(DifficultyHead { network, scale: tier_scale, figures })
}

/// Calibration error of the tier when every judged row is predicted by heads that never saw it, and how many rows.
///
/// The test split alone is small: at 400 rows even a perfect model shows an error near 0.05 by chance.
fn cross_fit_tiers(corpus: &Corpus, inputs: &Array2<f32>, fit: &FitOn<'_>) -> Result<Option<(f64, usize)>, TrainError> {
    let judged: Vec<usize> = (0..corpus.rows.len()).filter(|row| corpus.rows[*row].tier.is_some()).collect();
    let mut confidences = Vec::new();
    if !judged.is_empty() {
        for fold in 0..N_FOLDS {
            let in_fold = |row: usize| row % N_FOLDS == fold;
            let (network, scale) = fit(&|row| !(in_fold(row) && corpus.rows[row].tier.is_some()))?;
            let rows: Vec<usize> = judged.iter().copied().filter(|row| in_fold(*row)).collect();
            confidences.extend(tier_confidences(corpus, &network, scale, inputs, &rows).0);
        }
    }
    Ok(expected_calibration_error(&reliability(&confidences, N_BINS)).map(|error| (error, confidences.len())))
}

/// Fits on the rows that a predicate keeps.
type FitOn<'a> = dyn Fn(&dyn Fn(usize) -> bool) -> Result<(Mlp, TierScale), TrainError> + 'a;

/// Folds of a cross-fit.
const N_FOLDS: usize = 5;

/// Probability of the most probable tier of each row and whether it is right; and the sum of Brier scores.
fn tier_confidences(
    corpus: &Corpus,
    network: &Mlp,
    scale: TierScale,
    inputs: &Array2<f32>,
    rows: &[usize],
) -> (Vec<(f64, bool)>, f64) {
    let mut brier_sum = 0.0;
    let confidences = latent_difficulty(network, inputs, rows)
        .into_iter()
        .zip(true_tiers(corpus, rows))
        .map(|(z, truth)| {
            let p = scale.probabilities(z);
            let predicted = argmax(p.iter().copied());
            brier_sum += brier(p.iter().copied().map(f64::from), Some(truth));
            (f64::from(p[predicted]), predicted == truth)
        })
        .collect();
    (confidences, brier_sum)
}

fn latent_difficulty(network: &Mlp, inputs: &Array2<f32>, rows: &[usize]) -> Vec<f32> {
    network.forward(inputs.select(Axis(0), rows).view()).column(0).to_vec()
}

fn true_tiers(corpus: &Corpus, rows: &[usize]) -> Vec<usize> {
    rows.iter().filter_map(|row| corpus.rows[*row].tier.map(Tier::index)).collect()
}

fn difficulty_data(
    options: &TrainOptions,
    corpus: &Corpus,
    inputs: &Array2<f32>,
    models: &BTreeMap<&str, usize>,
    abilities: &BTreeMap<String, f32>,
    rows: &[usize],
) -> DifficultyData {
    let n = rows.len();
    let mut data = DifficultyData {
        inputs: inputs.select(Axis(0), rows),
        scores: Array2::zeros((n, models.len().max(1))),
        answered: Array2::zeros((n, models.len().max(1))),
        abilities: if models.is_empty() { Array1::zeros(1) } else { abilities.values().copied().collect() },
        above_cut: Array2::zeros((n, 2)),
        tier_weights: Array1::zeros(n),
        answer_weights: Array1::zeros(n),
    };
    for (index, row) in rows.iter().map(|row| &corpus.rows[*row]).enumerate() {
        let weight = options.recipe.difficulty_weight(row);
        let answers: Vec<(usize, f32)> = row
            .outcomes
            .iter()
            .filter_map(|(name, score)| Some((*models.get(canonical_name(name).as_str())?, (*score)?)))
            .collect();
        for (model, score) in &answers {
            data.scores[(index, *model)] = score.clamp(0.0, 1.0);
            data.answered[(index, *model)] = 1.0 / answers.len() as f32;
        }
        if !answers.is_empty() {
            data.answer_weights[index] = weight;
        }
        if let Some(tier) = row.tier {
            data.above_cut[(index, 0)] = f32::from(u8::from(tier > Tier::Simple));
            data.above_cut[(index, 1)] = f32::from(u8::from(tier > Tier::Medium));
            data.tier_weights[index] = weight;
        }
    }
    data
}

/// By source: how well difficulty, and prompt length, order the reference model's failures on test rows.
fn difficulty_auroc(corpus: &Corpus, network: &Mlp, inputs: &Array2<f32>) -> BTreeMap<String, (f64, f64, usize)> {
    let mut by_source: BTreeMap<&str, Vec<(usize, bool)>> = BTreeMap::new();
    for row in corpus.indices(Split::Test, |row| !corpus.rows[row].outcomes.is_empty()) {
        if let Some(failed) = weak_failed(&corpus.rows[row]) {
            by_source.entry(corpus.rows[row].source()).or_default().push((row, failed));
        }
    }
    let all: Vec<(usize, bool)> = by_source.values().flatten().copied().collect();
    by_source
        .into_iter()
        .chain([("all", all)])
        .filter_map(|(source, rows)| {
            let (indices, failed): (Vec<usize>, Vec<bool>) = rows.into_iter().unzip();
            let z = network.forward(inputs.select(Axis(0), &indices).view()).column(0).mapv(f64::from).to_vec();
            let length: Vec<f64> = indices.iter().map(|row| corpus.bytes[*row]).collect();
            Some((source.to_owned(), (auroc(&z, &failed)?, auroc(&length, &failed)?, failed.len())))
        })
        .collect()
}

/// Models whose failure tells hard prompts from easy ones, weakest evidence last.
const WEAK_MODELS: [&str; 5] = [
    irt::REFERENCE_MODEL,
    "llama-3-1-8b-instruct",
    "llama-3-8b-instruct",
    "gpt-3-5-turbo-1106",
    "mistral-7b-instruct-v0-3",
];

/// Whether the first known weak model failed; `None` when none of them answered.
fn weak_failed(row: &Row) -> Option<bool> {
    WEAK_MODELS.iter().find_map(|weak| {
        row.outcomes
            .iter()
            .find_map(|(name, score)| if canonical_name(name) == *weak { score.map(|s| s < 0.5) } else { None })
    })
}

fn fit_out_of_scope(
    corpus: &Corpus,
    targets: &Targets,
    logits: &Array2<f32>,
    temperature: f32,
    centroids: &Array2<f32>,
) -> OutOfScope {
    let rows = corpus.indices(Split::Calibration, |row| targets.has_intent(row) || targets.out_of_scope[row]);
    let signs: Vec<[f32; 3]> = rows
        .iter()
        .map(|row| {
            let probabilities = softmax(logits.row(*row), temperature);
            familiarity(&probabilities, logits.row(*row), centroids.view(), corpus.embeddings.row(*row))
        })
        .collect();
    let out: Vec<bool> = rows.iter().map(|row| targets.out_of_scope[*row]).collect();
    if out.iter().any(|out| *out) {
        calibrate::fit_out_of_scope(&signs, &out)
    } else {
        // Nothing was labelled out of scope: say so with a probability that never alarms.
        OutOfScope { weights: [0.0; 3], bias: -10.0 }
    }
}

fn base_weights(options: &TrainOptions, report: &mut TrainReport) -> Result<HeadWeights, TrainError> {
    let artifact = Artifact::<ClassifierManifest>::load(&options.base, &options.roots)?;
    if artifact.manifest.features != features::LAYOUT {
        return Err(TrainError::Unusable(format!("the base classifier {:?} has other text features", options.base)));
    }
    let weights = HeadWeights::from_bytes(artifact.file(HEADS)?)?;
    // The difficulty head is kept, and so is its scale.
    report.abilities = artifact.manifest.abilities;
    report.tier_control = artifact.manifest.tier_control;
    Ok(weights)
}

fn write(
    options: &TrainOptions,
    corpus: &Corpus,
    labels: Vec<String>,
    weights: &HeadWeights,
    calibration: BTreeMap<String, CalibrationFigures>,
    encoder: EncoderNeeded,
    report: &TrainReport,
) -> Result<(), TrainError> {
    let bytes = weights.to_bytes()?;
    let mut rows_by_source: BTreeMap<String, u64> = BTreeMap::new();
    for row in corpus.indices(Split::Train, |_| true) {
        *rows_by_source.entry(corpus.rows[row].source().to_owned()).or_default() += 1;
    }
    let manifest = ClassifierManifest {
        schema: ClassifierManifest::schema(),
        name: options.out.file_name().map_or_else(|| "classifier".into(), |name| name.to_string_lossy().into_owned()),
        version: options.version.clone(),
        encoder,
        features: features::LAYOUT.into(),
        intent_labels: labels,
        reference_pair: Some([REFERENCE_WEAK, REFERENCE_STRONG].map(str::to_owned))
            .filter(|pair| pair.iter().all(|model| report.abilities.contains_key(model))),
        tier_control: report.tier_control.clone(),
        calibration,
        training: TrainingRecord { command: options.command.clone(), seed: options.recipe.seed, rows_by_source },
        abilities: report.abilities.clone(),
        files: BTreeMap::from([(HEADS.to_owned(), FileEntry::of(&bytes))]),
    };
    let save = |name: &str, bytes: &[u8]| {
        let path = options.out.join(name);
        std::fs::write(&path, bytes).map_err(|source| TrainError::Io { path, source })
    };
    std::fs::create_dir_all(&options.out).map_err(|source| TrainError::Io { path: options.out.clone(), source })?;
    save(HEADS, &bytes)?;
    save(artifact::MANIFEST, toml::to_string(&manifest)?.as_bytes())
}

fn argmax(values: impl Iterator<Item = f32>) -> usize {
    values.enumerate().fold((0, f32::NEG_INFINITY), |best, (i, v)| if v > best.1 { (i, v) } else { best }).0
}

fn share(right: &[bool]) -> (f64, usize) {
    (right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64, right.len())
}
