//! Fitting the heads on embeddings that are known: minibatches, `AdamW`, early stopping on the calibration split.

use candle_core::{Device, Result, Tensor, Var};
use ndarray::Array2;
use rand::seq::SliceRandom as _;
use rand::{SeedableRng as _, rngs::StdRng};

use super::network::matrix;
use super::objective::{
    DifficultyData, DifficultyModel, DifficultyTensors, IntentData, IntentModel, IntentTensors, select,
};
use super::optimizer::{AdamW, Group};
use super::recipe::HeadRecipe;
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
    let model = IntentModel::new(train.0.ncols(), train.1.targets.ncols(), n_buckets, recipe, seed, device)?;
    let (inputs, held_out_inputs) = (matrix(train.0, device)?, matrix(held_out.0, device)?);
    let (data, held_out) = (IntentTensors::new(train.1, device)?, IntentTensors::new(held_out.1, device)?);
    run(
        model.parameters(),
        train.0.nrows(),
        recipe,
        seed,
        device,
        |rows| model.losses(&data, &select(&inputs, Some(rows))?, Some(rows), recipe.dropout)?.mean(),
        || model.losses(&held_out, &held_out_inputs, None, 0.0)?.mean(),
    )?;
    model.to_head()
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
    let (inputs, held_out_inputs) = (matrix(train.0, device)?, matrix(held_out.0, device)?);
    let (data, held_out) = (DifficultyTensors::new(train.1, device)?, DifficultyTensors::new(held_out.1, device)?);
    let loss = |data: &DifficultyTensors, inputs: &Tensor, rows: Option<&Tensor>, dropout: f32| {
        let [answers, tiers] = model.losses(data, inputs, rows, dropout)?;
        answers.mean()? + tiers.mean()?
    };
    run(
        model.parameters(),
        train.0.nrows(),
        recipe,
        seed,
        device,
        |rows| loss(&data, &select(&inputs, Some(rows))?, Some(rows), recipe.dropout),
        || loss(&held_out, &held_out_inputs, None, 0.0),
    )?;
    model.to_head()
}

/// Steps until the held-out loss stops improving; leaves the best parameters in place.
fn run(
    parameters: Vec<Var>,
    n_rows: usize,
    recipe: &HeadRecipe,
    seed: u64,
    device: &Device,
    step_loss: impl Fn(&Tensor) -> Result<Tensor>,
    held_out_loss: impl Fn() -> Result<Tensor>,
) -> Result<()> {
    let (learning_rate, weight_decay) = (recipe.learning_rate, recipe.weight_decay);
    let mut optimizer = AdamW::new(vec![Group { parameters: parameters.clone(), learning_rate, weight_decay }]);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut order: Vec<u32> = (0..n_rows as u32).collect();
    let n_steps = recipe.epochs * n_rows.div_ceil(recipe.batch);
    let (mut step, mut best, mut best_values, mut stale) = (0_usize, f64::INFINITY, Vec::new(), 0);
    for _ in 0..recipe.epochs {
        order.shuffle(&mut rng);
        for rows in order.chunks(recipe.batch) {
            let factor = cosine(step as f64 / n_steps as f64);
            optimizer.step(&step_loss(&Tensor::new(rows, device)?)?, &[factor])?;
            step += 1;
        }
        let held_out = f64::from(held_out_loss()?.to_scalar::<f32>()?);
        if held_out < best {
            best = held_out;
            best_values = parameters.iter().map(|parameter| parameter.as_tensor().copy()).collect::<Result<_>>()?;
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
    Ok(())
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
        let data = IntentData { ngrams: vec![vec![1]; 400], targets: targets.clone(), weights: Array1::ones(400) };
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
