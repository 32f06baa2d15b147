//! Fitting the heads on embeddings that are known: minibatches, `AdamW`, early stopping on the calibration split.

use candle_core::{Device, Result, Tensor, Var};
use ndarray::{Array2, array};
use rand::seq::SliceRandom as _;
use rand::{SeedableRng as _, rngs::StdRng};
use rayon::prelude::*;

use super::network::{Dropout, matrix, to_array};
use super::objective::{
    DifficultyData, DifficultyModel, DifficultyTensors, IntentData, IntentModel, IntentTensors, Kinship, families,
};
use super::optimizer::{AdamW, Group};
use super::recipe::HeadRecipe;
use super::table::NgramTable;
use crate::heads::{IntentHead, Mlp, TierScale};

/// Passes without improvement before training stops.
const PATIENCE: usize = 5;
/// Between the seeds of a head's members: runs with neighbouring seeds have no member in common.
const SEED_STRIDE: u64 = 1_000_003;

/// Fits the intent head on rows whose dense inputs, `[rows, hidden + features]`, stand beside their data.
///
/// # Errors
/// When a tensor operation fails.
pub fn fit_intent(
    train: (&Array2<f32>, &IntentData),
    held_out: (&Array2<f32>, &IntentData),
    n_buckets: usize,
    recipe: &HeadRecipe,
    seed: u64,
    device: &Device,
) -> Result<IntentHead> {
    let n_labels = train.1.targets.ncols();
    let (inputs, data) = (matrix(train.0, device)?, IntentTensors::new(train.1, device)?);
    let (held_out_inputs, held_out_data) = (matrix(held_out.0, device)?, IntentTensors::new(held_out.1, device)?);
    let members = members(recipe, seed, |seed| {
        let model = IntentModel::new(train.0.ncols(), n_labels, recipe, seed, device)?;
        let parameters = model.parameters();
        let problem = IntentProblem {
            inputs: &inputs,
            data: &data,
            ngrams: &train.1.ngrams,
            kin: &train.1.kin,
            held_out_inputs: &held_out_inputs,
            held_out: &held_out_data,
            held_out_ngrams: &held_out.1.ngrams,
            recipe,
            model,
            table: NgramTable::new(n_buckets, n_labels),
            best_table: Array2::zeros((n_buckets, n_labels)),
        };
        let problem = run(problem, parameters, &train.1.kin, recipe, seed)?;
        Ok(IntentHead { network: problem.model.to_mlp()?, ngrams: problem.best_table })
    })?;
    IntentHead::mean(&members).map_err(candle_core::Error::wrap)
}

/// What a latent number is to explain, and how much each counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Explains {
    /// How each model did, through the fitted abilities.
    pub answers: f64,
    /// How people judged the tier.
    pub tiers: f64,
}

/// Fits a network to one latent number, difficulty or complexity, and a tier scale with it, on inputs as for
/// [`fit_intent`].
///
/// # Errors
/// When a tensor operation fails.
pub fn fit_latent(
    train: (&Array2<f32>, &DifficultyData),
    held_out: (&Array2<f32>, &DifficultyData),
    explains: Explains,
    recipe: &HeadRecipe,
    seed: u64,
    device: &Device,
) -> Result<(Mlp, TierScale)> {
    let (inputs, data) = (matrix(train.0, device)?, DifficultyTensors::new(train.1, device)?);
    let (held_out_inputs, held_out) = (matrix(held_out.0, device)?, DifficultyTensors::new(held_out.1, device)?);
    let members = members(recipe, seed, |seed| {
        let model = DifficultyModel::new(train.0.ncols(), recipe, seed, device)?;
        let parameters = model.parameters();
        let problem = LatentProblem {
            explains,
            inputs: &inputs,
            kin: &train.1.kin,
            data: &data,
            held_out_inputs: &held_out_inputs,
            held_out: &held_out,
            recipe,
            model,
        };
        let (mut network, scale) = run(problem, parameters, &train.1.kin, recipe, seed)?.model.to_head()?;
        if explains.answers > 0.0 {
            return Ok((network, scale));
        }
        // Only abilities tie the latent number to a scale. Without them each member has one of its own.
        let [low, high] = scale.cuts;
        network.rescale(&array![scale.slope], &array![-scale.slope * low]);
        Ok((network, TierScale { cuts: [0.0, scale.slope * (high - low)], slope: 1.0 }))
    })?;
    let (networks, scales): (Vec<Mlp>, Vec<TierScale>) = members.into_iter().unzip();
    let mean = |of: fn(&TierScale) -> f32| scales.iter().map(of).sum::<f32>() / scales.len() as f32;
    let cuts = [mean(|scale| scale.cuts[0]), mean(|scale| scale.cuts[1])];
    let scale = TierScale { cuts, slope: mean(|scale| scale.slope) };
    Ok((Mlp::mean(&networks).map_err(candle_core::Error::wrap)?, scale))
}

/// Heads from as many starts as the recipe asks for, at the same time as far as there are cores.
fn members<T: Send>(recipe: &HeadRecipe, seed: u64, fit: impl Fn(u64) -> Result<T> + Sync) -> Result<Vec<T>> {
    (0..recipe.members.max(1) as u64)
        .into_par_iter()
        .map(|member| fit(seed.wrapping_add(member * SEED_STRIDE)))
        .collect()
}

/// A head, its rows and its loss.
trait Problem {
    /// One step on the given rows at `factor` times the learning rate.
    fn step(&mut self, rows: &[u32], factor: f64, dropout: &mut Dropout, optimizer: &mut AdamW) -> Result<()>;
    fn held_out_loss(&self) -> Result<f64>;
    /// Told when the held-out loss is the lowest so far; the parameters that the optimizer knows are kept elsewhere.
    fn keep_best(&mut self) {}
}

struct IntentProblem<'a> {
    inputs: &'a Tensor,
    data: &'a IntentTensors,
    ngrams: &'a [Vec<u32>],
    kin: &'a [usize],
    held_out_inputs: &'a Tensor,
    held_out: &'a IntentTensors,
    held_out_ngrams: &'a [Vec<u32>],
    recipe: &'a HeadRecipe,
    model: IntentModel,
    table: NgramTable,
    best_table: Array2<f32>,
}

struct LatentProblem<'a> {
    explains: Explains,
    inputs: &'a Tensor,
    kin: &'a [usize],
    data: &'a DifficultyTensors,
    held_out_inputs: &'a Tensor,
    held_out: &'a DifficultyTensors,
    recipe: &'a HeadRecipe,
    model: DifficultyModel,
}

// === impl Problem ===

impl Problem for IntentProblem<'_> {
    fn step(&mut self, rows: &[u32], factor: f64, dropout: &mut Dropout, optimizer: &mut AdamW) -> Result<()> {
        let ngrams = rows.iter().map(|row| self.ngrams[*row as usize].as_slice());
        let lookup = self.table.look_up(ngrams, dropout);
        let added = Var::from_tensor(&matrix(&lookup.sums, self.inputs.device())?)?;
        let kinship = kinship(self.kin, rows, self.inputs.device())?;
        let rows = Tensor::new(rows, self.inputs.device())?;
        let logits = (self.model.logits(&self.inputs.index_select(&rows, 0)?, dropout)? + added.as_tensor())?;
        let mut loss = self.data.losses(&logits, Some(&rows))?.mean()?;
        if let Some(kinship) = kinship {
            loss = (loss + (kinship.of_logits(&logits)? * self.recipe.agreement)?)?;
        }
        let grads = loss.backward()?;
        optimizer.step(&optimizer.gradients(&grads), factor)?;
        if let Some(gradient) = grads.get(&added) {
            let rate = self.recipe.ngram_learning_rate * factor;
            self.table.step(&lookup, to_array(gradient)?.view(), rate as f32, self.recipe.ngram_weight_decay as f32);
        }
        Ok(())
    }

    fn held_out_loss(&self) -> Result<f64> {
        let lookup = self.table.look_up(self.held_out_ngrams.iter().map(Vec::as_slice), &mut Dropout::none());
        let added = matrix(&lookup.sums, self.inputs.device())?;
        let logits = (self.model.logits(self.held_out_inputs, &mut Dropout::none())? + added)?;
        Ok(f64::from(self.held_out.losses(&logits, None)?.mean()?.to_scalar::<f32>()?))
    }

    fn keep_best(&mut self) {
        self.best_table.assign(&self.table.values);
    }
}

impl LatentProblem<'_> {
    fn loss(&self, data: &DifficultyTensors, z: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
        let [answers, tiers] = self.model.losses(data, z, rows)?;
        (answers.mean()? * self.explains.answers)? + (tiers.mean()? * self.explains.tiers)?
    }
}

impl Problem for LatentProblem<'_> {
    fn step(&mut self, rows: &[u32], factor: f64, dropout: &mut Dropout, optimizer: &mut AdamW) -> Result<()> {
        let kinship = kinship(self.kin, rows, self.inputs.device())?;
        let rows = Tensor::new(rows, self.inputs.device())?;
        let z = self.model.latent(&self.inputs.index_select(&rows, 0)?, dropout)?;
        let mut loss = self.loss(self.data, &z, Some(&rows))?;
        if let Some(kinship) = kinship {
            loss = (loss + (kinship.of_numbers(&z)? * self.recipe.agreement)?)?;
        }
        optimizer.step(&optimizer.gradients(&loss.backward()?), factor)
    }

    fn held_out_loss(&self) -> Result<f64> {
        let z = self.model.latent(self.held_out_inputs, &mut Dropout::none())?;
        let loss = self.loss(self.held_out, &z, None)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}

/// Steps until the held-out loss stops improving; leaves the best parameters in place.
fn run<P: Problem>(mut problem: P, parameters: Vec<Var>, kin: &[usize], recipe: &HeadRecipe, seed: u64) -> Result<P> {
    let (learning_rate, weight_decay) = (recipe.learning_rate, recipe.weight_decay);
    let mut optimizer = AdamW::new(vec![Group { parameters: parameters.clone(), learning_rate, weight_decay }]);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut dropout = Dropout::new(recipe.dropout, seed);
    let mut families = families(kin);
    let n_steps = recipe.epochs * kin.len().div_ceil(recipe.batch);
    let (mut step, mut best, mut best_values, mut stale) = (0_usize, f64::INFINITY, Vec::new(), 0);
    for _ in 0..recipe.epochs {
        families.shuffle(&mut rng);
        // Versions of one text stand together, so that most steps see them together.
        let order: Vec<u32> = families.iter().flatten().map(|row| *row as u32).collect();
        for rows in order.chunks(recipe.batch) {
            let factor = cosine(step as f64 / n_steps as f64);
            problem.step(rows, factor, &mut dropout, &mut optimizer)?;
            step += 1;
        }
        let held_out = problem.held_out_loss()?;
        if held_out < best {
            best = held_out;
            best_values = parameters.iter().map(|parameter| parameter.as_tensor().copy()).collect::<Result<_>>()?;
            problem.keep_best();
            stale = 0;
        } else {
            stale += 1;
            if stale == PATIENCE {
                break;
            }
        }
    }
    for (parameter, value) in parameters.iter().zip(&best_values) {
        parameter.set(value)?;
    }
    Ok(problem)
}

/// Kinship of some rows, where verdicts on versions of a text are to agree.
fn kinship(kin: &[usize], rows: &[u32], device: &Device) -> Result<Option<Kinship>> {
    Kinship::new(rows.iter().map(|row| kin[*row as usize]), device)
}

/// Learning rate at this share of the run, from 1 to a twentieth.
pub(super) fn cosine(progress: f64) -> f64 {
    0.05 + 0.95 * 0.5 * (1.0 + (progress * std::f64::consts::PI).cos())
}

#[cfg(test)]
mod tests {
    use ndarray::Array1;
    use rand::RngExt as _;

    use super::*;

    #[test]
    fn learns_a_separable_problem_and_the_same_way_twice() {
        let mut rng = StdRng::seed_from_u64(3);
        let inputs = Array2::from_shape_fn((400, 4), |_| rng.random_range(-1.0_f32..1.0));
        let targets = Array2::from_shape_fn((400, 2), |(row, column)| {
            f32::from(u8::from((inputs[(row, 0)] + inputs[(row, 1)] > 0.0) == (column == 1)))
        });
        let data = IntentData {
            ngrams: vec![vec![1]; 400],
            targets: targets.clone(),
            weights: Array1::ones(400),
            kin: (0..400).collect(),
        };
        let recipe =
            HeadRecipe { hidden: 0, dropout: 0.1, epochs: 30, batch: 32, learning_rate: 0.05, ..HeadRecipe::default() };
        let fit = || fit_intent((&inputs, &data), (&inputs, &data), 4, &recipe, 1, &Device::Cpu).unwrap();
        let head = fit();
        let logits = head.logits(inputs.view(), &vec![&[1][..]; 400]);
        let right = (0..400).filter(|&row| (logits[(row, 1)] > logits[(row, 0)]) == (targets[(row, 1)] > 0.5)).count();
        assert!(right > 390, "{right} of 400 right");
        assert_eq!(fit(), head);
    }
}
