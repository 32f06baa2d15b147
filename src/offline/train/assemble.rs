//! The training run as a whole: rows to a model directory.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Axis;

use super::corpus::{Corpus, Targets};
use super::difficulty::{DifficultyHead, ability_scale, fit_difficulty};
use super::intent::{fit_intent, fit_out_of_scope};
use super::tune::{Material, tune};
use super::{TrainError, TrainOptions, TrainReport};
use crate::artifact::{
    self, Artifact, CalibrationFigures, ClassifierManifest, EncoderManifest, FileEntry,
    manifest::{EncoderNeeded, TrainingRecord},
};
use crate::classifier::HEADS;
use crate::encoder::{CHANGES, Encoder, EncoderOptions, TOKENIZER, TextTokenizer, Tuning};
use crate::heads::HeadWeights;
use crate::offline::evaluate::models::{REFERENCE_STRONG, REFERENCE_WEAK};
use crate::offline::split::Split;
use crate::text::features;

/// Trains heads, and the encoder where the recipe says so, writes the model directory and reports on the test split.
///
/// `progress` is told what is being done and how far it is.
///
/// # Errors
/// Says which file, row or tensor was at fault; nothing is written to the model directory then.
pub fn train(options: &TrainOptions, progress: &dyn Fn(&str, usize, usize)) -> Result<TrainReport, TrainError> {
    let base_encoder = Artifact::<EncoderManifest>::load(&options.encoder, &options.roots)?;
    let tokenizer = TextTokenizer::from_bytes(base_encoder.file(TOKENIZER)?, options.max_tokens)?;
    let corpus = Corpus::read(options, &tokenizer)?;
    let targets = Targets::build(options, &corpus)?;
    let mut report = TrainReport::default();
    for split in [Split::Train, Split::Calibration, Split::Test] {
        report.rows.insert(split.as_str(), corpus.splits.iter().filter(|s| **s == split).count());
    }
    let base = if corpus.has_difficulty() { None } else { Some(base_weights(options, &mut report)?) };
    let feature_scale = match &base {
        Some(base) => (base.feature_mean.clone(), base.feature_scale.clone()),
        None => corpus.feature_scale(),
    };
    let features = corpus.standardised(&feature_scale);
    let abilities = ability_scale(&corpus);

    let changes = match (&options.tuned_as, options.recipe.encoder.tune) {
        (Some(classifier), _) => changes_of(classifier, options)?,
        (None, Tuning::Frozen) => None,
        (None, _) => Some({
            let material = Material { corpus: &corpus, targets: &targets, features: &features, scale: &abilities };
            tune(options, &base_encoder, &material, progress)?
        }),
    };
    // In f32: whatever the heads are served with, they are fitted on the exact embeddings.
    let exact = EncoderOptions::exact(&options.device, options.max_tokens);
    let encoder = Encoder::load(&base_encoder, changes.as_deref(), &exact)?;
    let embeddings = corpus.embed(&encoder, options, progress)?;
    let inputs = ndarray::concatenate(Axis(1), &[embeddings.view(), features.view()])
        .map_err(|error| TrainError::Unusable(error.to_string()))?;

    progress("fitting intent", 0, 0);
    let (intent, intent_figures) = fit_intent(options, &corpus, &targets, &inputs, &mut report)?;
    progress("fitting difficulty", 0, 0);
    let difficulty = match base {
        Some(base) => DifficultyHead {
            difficulty: base.difficulty,
            complexity: base.complexity,
            scale: base.tier_scale,
            figures: None,
        },
        None => fit_difficulty(options, &corpus, &inputs, &abilities, &mut report)?,
    };
    let logits = intent.logits(inputs.view(), &corpus.ngrams(0..corpus.rows.len()));
    let centroids = targets.centroids(&corpus, &embeddings);
    let out_of_scope = fit_out_of_scope(&corpus, &targets, &embeddings, &logits, &centroids, &mut report);
    let weights = HeadWeights {
        feature_mean: feature_scale.0,
        feature_scale: feature_scale.1,
        intent,
        // The calibrator is part of the head.
        intent_temperature: 1.0,
        difficulty: difficulty.difficulty,
        complexity: difficulty.complexity,
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
    let manifest = ClassifierManifest {
        schema: ClassifierManifest::schema(),
        name: options.out.file_name().map_or_else(|| "classifier".into(), |name| name.to_string_lossy().into_owned()),
        version: options.version.clone(),
        encoder: EncoderNeeded {
            name: options.encoder.clone(),
            weights_sha256: encoder.weights_sha256().to_owned(),
            max_tokens: options.max_tokens,
        },
        features: features::LAYOUT.into(),
        intent_labels: targets.labels,
        reference_pair: Some([REFERENCE_WEAK, REFERENCE_STRONG].map(str::to_owned))
            .filter(|pair| pair.iter().all(|model| report.abilities.contains_key(model))),
        tier_control: report.tier_control.clone(),
        calibration,
        training: TrainingRecord {
            command: options.command.clone(),
            seed: options.recipe.seed,
            rows_by_source: corpus.train_rows_by_source(),
        },
        abilities: report.abilities.clone(),
        trial: Vec::new(),
        files: BTreeMap::new(),
    };
    let heads = weights.to_bytes()?;
    let changes = changes.as_deref().map(|changes| (CHANGES, changes));
    write_classifier(
        &options.out,
        manifest,
        &[(HEADS, heads.as_slice())].into_iter().chain(changes).collect::<Vec<_>>(),
    )?;
    Ok(report)
}

/// What a classifier changed in the encoder that it was trained on; nothing where it left it alone.
fn changes_of(classifier: &str, options: &TrainOptions) -> Result<Option<Vec<u8>>, TrainError> {
    let artifact = Artifact::<ClassifierManifest>::load(classifier, &options.roots)?;
    if artifact.manifest.encoder.name != options.encoder {
        let (other, asked) = (&artifact.manifest.encoder.name, &options.encoder);
        return Err(TrainError::Unusable(format!(
            "{classifier:?} was tuned on the encoder {other:?}, not on {asked:?}"
        )));
    }
    if !artifact.manifest.files.contains_key(CHANGES) {
        return Ok(None);
    }
    Ok(Some(artifact.file(CHANGES)?.to_vec()))
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

/// Writes the files of a classifier, and the manifest that lists them.
///
/// # Errors
/// Says which file could not be written.
pub fn write_classifier(
    out: &Path,
    mut manifest: ClassifierManifest,
    files: &[(&str, &[u8])],
) -> Result<(), TrainError> {
    let save = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes).map_err(|source| TrainError::Io { path, source })
    };
    std::fs::create_dir_all(out).map_err(|source| TrainError::Io { path: out.to_owned(), source })?;
    for (name, bytes) in files {
        save(name, bytes)?;
        manifest.files.insert((*name).to_owned(), FileEntry::of(bytes));
    }
    save(artifact::MANIFEST, toml::to_string(&manifest)?.as_bytes())
}
