//! Fitting the heads on embeddings that are known: minibatches, `AdamW`, early stopping on the calibration split.

use candle_core::{Device, Result, Tensor, Var};
use ndarray::Array2;
use rand::seq::SliceRandom as _;
use rand::{SeedableRng as _, rngs::StdRng};

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
    let model = IntentModel::new(train.0.ncols(), n_labels, recipe, seed, device)?;
    let parameters = model.parameters();
    let problem = IntentProblem {
        inputs: matrix(train.0, device)?,
        data: IntentTensors::new(train.1, device)?,
        ngrams: &train.1.ngrams,
        kin: &train.1.kin,
        held_out_inputs: matrix(held_out.0, device)?,
        held_out: IntentTensors::new(held_out.1, device)?,
        held_out_ngrams: &held_out.1.ngrams,
        recipe,
        model,
        table: NgramTable::new(n_buckets, n_labels),
        best_table: Array2::zeros((n_buckets, n_labels)),
    };
    let problem = run(problem, parameters, &train.1.kin, recipe, seed)?;
    Ok(IntentHead { network: problem.model.to_mlp()?, ngrams: problem.best_table })
}

/// Fits the difficulty head and the tier scale together, on inputs as for [`fit_intent`].
///
/// The network is told how each model did (through the fitted abilities) and how people judged the tier; both pull on
/// one latent difficulty.
///
/// # Errors
/// When a tensor operation fails.
pub fn fit_difficulty(
    train: (&Array2<f32>, &DifficultyData),
    held_out: (&Array2<f32>, &DifficultyData),
    recipe: &HeadRecipe,
    seed: u64,
    device: &Device,
) -> Result<(Mlp, TierScale)> {
    let model = DifficultyModel::new(train.0.ncols(), recipe, seed, device)?;
    let parameters = model.parameters();
    let problem = DifficultyProblem {
        inputs: matrix(train.0, device)?,
        kin: &train.1.kin,
        data: DifficultyTensors::new(train.1, device)?,
        held_out_inputs: matrix(held_out.0, device)?,
        held_out: DifficultyTensors::new(held_out.1, device)?,
        recipe,
        model,
    };
    run(problem, parameters, &train.1.kin, recipe, seed)?.model.to_head()
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
    inputs: Tensor,
    data: IntentTensors,
    ngrams: &'a [Vec<u32>],
    kin: &'a [usize],
    held_out_inputs: Tensor,
    held_out: IntentTensors,
    held_out_ngrams: &'a [Vec<u32>],
    recipe: &'a HeadRecipe,
    model: IntentModel,
    table: NgramTable,
    best_table: Array2<f32>,
}

struct DifficultyProblem<'a> {
    inputs: Tensor,
    kin: &'a [usize],
    data: DifficultyTensors,
    held_out_inputs: Tensor,
    held_out: DifficultyTensors,
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
        let inputs = &self.held_out_inputs;
        let logits = (self.model.logits(inputs, &mut Dropout::none())? + added)?;
        Ok(f64::from(self.held_out.losses(&logits, None)?.mean()?.to_scalar::<f32>()?))
    }

    fn keep_best(&mut self) {
        self.best_table.assign(&self.table.values);
    }
}

impl DifficultyProblem<'_> {
    fn loss(&self, data: &DifficultyTensors, z: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
        let [answers, tiers] = self.model.losses(data, z, rows)?;
        answers.mean()? + (tiers.mean()? * self.recipe.tier_weight)?
    }
}

impl Problem for DifficultyProblem<'_> {
    fn step(&mut self, rows: &[u32], factor: f64, dropout: &mut Dropout, optimizer: &mut AdamW) -> Result<()> {
        let kinship = kinship(self.kin, rows, self.inputs.device())?;
        let rows = Tensor::new(rows, self.inputs.device())?;
        let z = self.model.latent(&self.inputs.index_select(&rows, 0)?, dropout)?;
        let mut loss = self.loss(&self.data, &z, Some(&rows))?;
        if let Some(kinship) = kinship {
            loss = (loss + (kinship.of_numbers(&z)? * self.recipe.agreement)?)?;
        }
        optimizer.step(&optimizer.gradients(&loss.backward()?), factor)
    }

    fn held_out_loss(&self) -> Result<f64> {
        let z = self.model.latent(&self.held_out_inputs, &mut Dropout::none())?;
        let loss = self.loss(&self.held_out, &z, None)?;
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
