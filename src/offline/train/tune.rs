//! Training the encoder through all heads at once.
//!
//! One pass of the encoder serves every head, so it is trained on the sum of their losses. The heads trained here only
//! lead the encoder; the ones that are served are fitted afterwards on its embeddings.

use std::io::Write as _;
use std::time::Instant;

use candle_core::{Device, Result as TensorResult, Tensor, Var};
use ndarray::{Array2, Axis};
use rand::seq::SliceRandom as _;
use rand::{SeedableRng as _, rngs::StdRng};
use rayon::prelude::*;
use serde::Serialize;

use super::checkpoint::{Checkpoint, Progress, fingerprint};
use super::corpus::{Corpus, Targets};
use super::difficulty::difficulty_data;
use super::held_out::HeldOut;
use super::intent::intent_data;
use super::irt::Scale;
use super::network::{Dropout, matrix};
use super::objective::{DifficultyModel, DifficultyTensors, IntentModel, IntentTensors, Kinship, families};
use super::optimizer::{AdamW, Group};
use super::recipe::{EncoderRecipe, HeadRecipe, Recipe};
use super::{TrainError, TrainOptions};
use crate::artifact::{Artifact, EncoderManifest};
use crate::encoder::{Encoder, EncoderOptions, Noise, RaggedBatch, Tokens, TunableEncoder};
use crate::offline::split::Split;

/// Batches that are sorted by length together: long enough for even lengths, short enough to stay random.
const BATCHES_PER_SORT: usize = 40;

/// What the encoder learns from.
pub(super) struct Material<'a> {
    pub(super) corpus: &'a Corpus,
    pub(super) targets: &'a Targets,
    /// `[rows, features]`, standardised.
    pub(super) features: &'a Array2<f32>,
    pub(super) scale: &'a Scale,
}

/// Rows of one split, ready for the device.
pub(super) struct Part {
    tokens: Vec<Tokens>,
    /// Rows by text, versions of one text together.
    families: Vec<Vec<usize>>,
    /// `[rows]`: what the row is a version of.
    kin: Vec<usize>,
    /// `[rows, features]`.
    features: Tensor,
    intent: IntentTensors,
    difficulty: DifficultyTensors,
}

/// Everything that is trained.
pub(super) struct Model {
    encoder: TunableEncoder,
    pub(super) intent: IntentModel,
    pub(super) difficulty: DifficultyModel,
    /// Weight of the difficulty loss.
    pub(super) difficulty_weight: f64,
    device: Device,
}

/// Everything random about one step.
pub(super) struct StepNoise {
    pieces: Dropout,
    encoder: Noise,
    pub(super) intent: Dropout,
    pub(super) difficulty: Dropout,
}

/// One line of the log.
#[derive(Serialize)]
struct Line<'a> {
    recipe: &'a EncoderRecipe,
    seed: u64,
    epoch: usize,
    steps: usize,
    train_loss: f64,
    held_out_loss: f64,
    best: bool,
    seconds: f64,
    tokens_per_second: f64,
}

/// Trains the encoder and returns what changed, the content of [`crate::encoder::CHANGES`].
pub(super) fn tune(
    options: &TrainOptions,
    base: &Artifact<EncoderManifest>,
    material: &Material<'_>,
    progress: &dyn Fn(&str, usize, usize),
) -> Result<Vec<u8>, TrainError> {
    let recipe = &options.recipe;
    let settings = &recipe.encoder;
    let Material { corpus, targets, features, .. } = material;
    let n_in = features.ncols();
    let tokenizer = Encoder::load(base, None, &EncoderOptions::exact(&Device::Cpu, settings.max_tokens))?;
    let hidden = tokenizer.hidden_size();
    let rows_of = |split| {
        let teaches = |row: usize| {
            let weighs = targets.has_intent(row) && recipe.intent_weight(&corpus.rows[row]) > 0.0;
            recipe.tunes(&corpus.rows[row]) && (weighs || corpus.informs(row))
        };
        corpus.indices(split, teaches)
    };
    let (train, held_out) = (rows_of(Split::Train), rows_of(Split::Calibration));
    if train.is_empty() || held_out.is_empty() {
        return Err(TrainError::Unusable("too few rows: the training or calibration split is empty".into()));
    }
    let train = Part::new(recipe, material, &train, settings.label_smoothing, &tokenizer, &options.device)?;
    let held_out = HeldOut {
        intent: intent_data(recipe, corpus, targets, &held_out),
        difficulty: difficulty_data(recipe, corpus, &material.scale.abilities, &held_out),
        part: Part::new(recipe, material, &held_out, 0.0, &tokenizer, &options.device)?,
    };
    let model = Model {
        encoder: TunableEncoder::load(base, settings.tune, recipe.seed, &options.device)?,
        intent: IntentModel::new(
            hidden + n_in,
            targets.labels.len(),
            &linear(&recipe.intent),
            recipe.seed,
            &options.device,
        )?,
        difficulty: DifficultyModel::new(hidden + n_in, &linear(&recipe.difficulty), recipe.seed, &options.device)?,
        difficulty_weight: if corpus.has_difficulty() { settings.difficulty } else { 0.0 },
        device: options.device.clone(),
    };
    let groups = model.groups(recipe);
    let mut optimizer = AdamW::new(groups);
    let run = fingerprint(recipe, train.tokens.len(), &tokenizer);
    let checkpoint = options.checkpoint_dir.as_deref().map(|dir| Checkpoint::open(dir, run)).transpose()?;
    let mut state = Progress::start();
    if let Some(saved) = checkpoint.as_ref().map(|checkpoint| checkpoint.load(&mut optimizer)).transpose()?.flatten() {
        state = saved;
    }

    let rows_per_epoch = match settings.rows_per_epoch {
        0 => train.tokens.len(),
        n => n.min(train.tokens.len()),
    };
    while state.epoch < settings.epochs && state.stale < settings.patience {
        let started = Instant::now();
        let epoch_seed = recipe.seed.wrapping_mul(1_000).wrapping_add(state.epoch as u64);
        let batches = train.batches(settings, rows_per_epoch, &mut StdRng::seed_from_u64(epoch_seed));
        let title = format!("training the encoder, pass {} of at most {}", state.epoch + 1, settings.epochs);
        let (mut loss_sum, mut n_tokens, mut done) = (0.0, 0, 0);
        for (index, rows) in batches.iter().enumerate() {
            let share = (state.epoch as f64 + index as f64 / batches.len() as f64) / settings.epochs as f64;
            let factor = schedule(share, settings.warm_up);
            let step_seed = epoch_seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
            let (loss, gradients) = model.gradients(&train, rows, recipe, step_seed, &optimizer)?;
            loss_sum += loss * rows.len() as f64;
            optimizer.step(&gradients, factor)?;
            n_tokens += train.n_tokens(rows);
            done += rows.len();
            progress(&title, done, rows_per_epoch);
        }
        let seconds = started.elapsed().as_secs_f64();
        let held_out_loss = held_out.loss(&model, settings)?;
        let best = held_out_loss < state.best_loss;
        if best {
            state.best_loss = held_out_loss;
            state.best = snapshot(&optimizer)?;
            state.stale = 0;
        } else {
            state.stale += 1;
        }
        state.epoch += 1;
        if let Some(path) = &options.log {
            let line = Line {
                recipe: settings,
                seed: recipe.seed,
                epoch: state.epoch,
                steps: batches.len(),
                train_loss: loss_sum / done.max(1) as f64,
                held_out_loss,
                best,
                seconds,
                tokens_per_second: n_tokens as f64 / seconds,
            };
            append(path, &line)?;
        }
        if let Some(checkpoint) = &checkpoint {
            checkpoint.save(&optimizer, &state)?;
        }
    }
    for (parameter, value) in optimizer.parameters().zip(&state.best) {
        parameter.set(value)?;
    }
    Ok(model.encoder.changes()?)
}

// === impl Part ===

impl Part {
    fn new(
        recipe: &Recipe,
        material: &Material<'_>,
        rows: &[usize],
        smoothing: f32,
        tokenizer: &Encoder,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let Material { corpus, targets, features, scale } = material;
        let tokens = rows
            .par_iter()
            .map(|row| tokenizer.tokenizer().tokenize(&corpus.prepared[*row].task.text))
            .collect::<Result<_, _>>()?;
        let mut intent = intent_data(recipe, corpus, targets, rows);
        let even = smoothing / targets.labels.len() as f32;
        intent.targets.mapv_inplace(|target| target * (1.0 - smoothing) + even);
        Ok(Self {
            tokens,
            families: families(&intent.kin),
            kin: intent.kin.clone(),
            features: matrix(&features.select(Axis(0), rows), device)?,
            intent: IntentTensors::new(&intent, device)?,
            difficulty: DifficultyTensors::new(&difficulty_data(recipe, corpus, &scale.abilities, rows), device)?,
        })
    }

    /// Some rows in random order, in batches of similar lengths within the limits.
    fn batches(&self, settings: &EncoderRecipe, n_rows: usize, rng: &mut StdRng) -> Vec<Vec<usize>> {
        let mut order: Vec<&[usize]> = self.families.iter().map(Vec::as_slice).collect();
        order.shuffle(rng);
        let mut n_drawn = 0;
        let drawn = order.iter().position(|family| {
            n_drawn += family.len();
            n_drawn >= n_rows
        });
        order.truncate(drawn.map_or(order.len(), |last| last + 1));
        let mut batches = Vec::new();
        for some in order.chunks_mut(settings.batch.max(1) * BATCHES_PER_SORT) {
            batches.extend(self.cut(settings, some));
        }
        batches.shuffle(rng);
        batches
    }

    /// Sorts families by length and cuts them into batches within the limits; versions of one text stay together.
    fn cut(&self, settings: &EncoderRecipe, families: &mut [&[usize]]) -> Vec<Vec<usize>> {
        families.sort_by_key(|family| family.iter().map(|row| self.tokens[*row].ids.len()).max());
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut n_tokens = 0;
        for family in families {
            let length = self.n_tokens(family);
            match batches.last_mut() {
                Some(batch)
                    if batch.len() + family.len() <= settings.batch && n_tokens + length <= settings.batch_tokens =>
                {
                    batch.extend(*family);
                    n_tokens += length;
                }
                _ => {
                    batches.push(family.to_vec());
                    n_tokens = length;
                }
            }
        }
        batches
    }

    /// All rows in batches within the limits.
    pub(super) fn all(&self, settings: &EncoderRecipe) -> Vec<Vec<usize>> {
        let mut families: Vec<&[usize]> = self.families.iter().map(Vec::as_slice).collect();
        self.cut(settings, &mut families)
    }

    /// Rows of a batch in `n` shares alike in length; versions of one text stay together.
    fn shares(&self, rows: &[usize], n: usize) -> Vec<Vec<usize>> {
        let mut shares = vec![Vec::new(); n];
        for (place, family) in rows.chunk_by(|a, b| self.kin[*a] == self.kin[*b]).enumerate() {
            shares[place % n].extend_from_slice(family);
        }
        shares.retain(|share| !share.is_empty());
        shares
    }

    pub(super) fn n_rows(&self) -> usize {
        self.tokens.len()
    }

    fn n_tokens(&self, rows: &[usize]) -> usize {
        rows.iter().map(|row| self.tokens[*row].ids.len()).sum()
    }
}

// === impl Model ===

impl Model {
    fn groups(&self, recipe: &Recipe) -> Vec<Group> {
        let settings = &recipe.encoder;
        let mut heads = self.intent.parameters();
        if self.difficulty_weight > 0.0 {
            heads.extend(self.difficulty.parameters());
        }
        let layers = self.encoder.parameters();
        let n_layers = layers.len();
        let layers = layers.into_iter().enumerate().map(|(index, parameters)| Group {
            parameters,
            learning_rate: settings.learning_rate * settings.layer_decay.powi((n_layers - 1 - index) as i32),
            weight_decay: settings.weight_decay,
        });
        let heads = Group {
            parameters: heads,
            learning_rate: settings.head_learning_rate,
            weight_decay: settings.weight_decay,
        };
        layers.chain([heads]).collect()
    }

    /// Dense inputs of the heads for some rows, and which row each of them is.
    pub(super) fn inputs(
        &self,
        part: &Part,
        rows: &[usize],
        noise: &mut StepNoise,
    ) -> TensorResult<(Tensor, Vec<u32>)> {
        let texts: Vec<Tokens> = rows.iter().map(|row| noise.thin_out(&part.tokens[*row])).collect();
        let batch = RaggedBatch::new(&texts.iter().collect::<Vec<_>>());
        let embeddings = self.encoder.forward(&batch, &mut noise.encoder)?;
        let in_order: Vec<u32> = batch.order().iter().map(|index| rows[*index] as u32).collect();
        let rows = Tensor::new(in_order.as_slice(), &self.device)?;
        Ok((Tensor::cat(&[&embeddings, &part.features.index_select(&rows, 0)?], 1)?, in_order))
    }

    /// Mean loss of some rows: of intent, of models' answers and of tiers, and of agreement among versions of a text.
    fn loss(&self, part: &Part, rows: &[usize], agreement: f64, noise: &mut StepNoise) -> TensorResult<Tensor> {
        let (inputs, order) = self.inputs(part, rows, noise)?;
        let kinship = Kinship::new(order.iter().map(|row| part.kin[*row as usize]), &self.device)?;
        let rows = Tensor::new(order, &self.device)?;
        let logits = self.intent.logits(&inputs, &mut noise.intent)?;
        let mut total = part.intent.losses(&logits, Some(&rows))?.usual_mean()?;
        if let Some(kinship) = &kinship {
            total = (total + (kinship.of_logits(&logits)? * agreement)?)?;
        }
        if self.difficulty_weight > 0.0 {
            let z = self.difficulty.latent(&inputs, &mut noise.difficulty)?;
            for losses in self.difficulty.losses(&part.difficulty, &z, Some(&rows))? {
                total = (total + (losses.usual_mean()? * self.difficulty_weight)?)?;
            }
            if let Some(kinship) = &kinship {
                total = (total + (kinship.of_numbers(&z)? * (agreement * self.difficulty_weight))?)?;
            }
        }
        Ok(total)
    }

    /// The loss of some rows, and its gradients in the optimizer's order.
    ///
    /// On a CPU each core takes a share of the rows from end to end: the small steps between the matrix products would
    /// leave all cores but one idle, and they are a third of the time.
    fn gradients(
        &self,
        part: &Part,
        rows: &[usize],
        recipe: &Recipe,
        seed: u64,
        optimizer: &AdamW,
    ) -> TensorResult<(f64, Vec<Option<Tensor>>)> {
        let n_shares = if self.device.is_cpu() { rayon::current_num_threads().min(rows.len()) } else { 1 };
        let results = part
            .shares(rows, n_shares)
            .par_iter()
            .enumerate()
            .map(|(index, share)| {
                let seed = seed.wrapping_mul(31).wrapping_add(index as u64);
                let mut noise = StepNoise::new(recipe, seed);
                let total = self.loss(part, share, recipe.encoder.agreement, &mut noise)?;
                let total = (total * (share.len() as f64 / rows.len() as f64))?;
                Ok((f64::from(total.to_scalar::<f32>()?), optimizer.gradients(&total.backward()?)))
            })
            .collect::<TensorResult<Vec<_>>>()?;
        let n_parameters = results.first().map_or(0, |(_, gradients)| gradients.len());
        let sum = |parameter: usize| {
            let mut gradients = results.iter().filter_map(|(_, gradients)| gradients[parameter].as_ref());
            let first = gradients.next().cloned();
            gradients.try_fold(first, |sum, more| sum.map(|sum| sum + more).transpose())
        };
        let gradients = (0..n_parameters).into_par_iter().map(sum).collect::<TensorResult<_>>()?;
        Ok((results.iter().map(|(loss, _)| loss).sum(), gradients))
    }
}

// === impl StepNoise ===

impl StepNoise {
    fn new(recipe: &Recipe, seed: u64) -> Self {
        let part = |index: u64| seed.wrapping_mul(4).wrapping_add(index);
        Self {
            pieces: Dropout::new(recipe.encoder.piece_dropout, part(0)),
            encoder: Noise::new(recipe.encoder.dropout, part(1)),
            intent: Dropout::new(recipe.intent.dropout, part(2)),
            difficulty: Dropout::new(recipe.difficulty.dropout, part(3)),
        }
    }

    pub(super) fn none() -> Self {
        let [pieces, intent, difficulty] = std::array::from_fn(|_| Dropout::none());
        Self { pieces, encoder: Noise::none(), intent, difficulty }
    }

    /// The text with some of its word pieces left out; the special ones at its ends stay.
    fn thin_out(&mut self, tokens: &Tokens) -> Tokens {
        let last = tokens.ids.len().saturating_sub(1);
        let kept = tokens.ids.iter().enumerate().filter(|(at, _)| [0, last].contains(at) || self.pieces.factor() > 0.0);
        Tokens { ids: kept.map(|(_, id)| *id).collect(), n_cut: tokens.n_cut }
    }
}

/// Without a hidden layer: a head that can bend would spare the encoder the work.
fn linear(recipe: &HeadRecipe) -> HeadRecipe {
    HeadRecipe { hidden: 0, ..recipe.clone() }
}

/// Learning rate at this share of the run: a rise, then straight down to zero.
fn schedule(share: f64, warm_up: f64) -> f64 {
    if share < warm_up { share / warm_up } else { (1.0 - share) / (1.0 - warm_up) }
}

fn snapshot(optimizer: &AdamW) -> TensorResult<Vec<Tensor>> {
    optimizer.parameters().map(|parameter: &Var| parameter.as_tensor().copy()).collect()
}

fn append(path: &std::path::Path, line: &Line<'_>) -> Result<(), TrainError> {
    let text = serde_json::to_string(line).map_err(|error| TrainError::Unusable(error.to_string()))?;
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| writeln!(file, "{text}"))
        .map_err(|source| TrainError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_rises_then_falls_to_nothing() {
        assert_eq!(schedule(0.0, 0.1), 0.0);
        assert!((schedule(0.05, 0.1) - 0.5).abs() < 1e-9 && (schedule(0.1, 0.1) - 1.0).abs() < 1e-9);
        assert!((schedule(0.55, 0.1) - 0.5).abs() < 1e-9 && schedule(1.0, 0.1) == 0.0);
        assert_eq!(schedule(0.0, 0.0), 1.0);
    }
}
