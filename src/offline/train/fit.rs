//! Fitting the networks with candle: minibatches, `AdamW`, early stopping on the calibration split.

use std::cell::RefCell;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW, ops};
use ndarray::{Array1, Array2};
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::recipe::HeadRecipe;
use crate::heads::{Dense, IntentHead, Mlp, TierScale, ngram_weight};

/// What the intent head learns from: one row each of inputs, targets and weights.
#[derive(Clone, Debug)]
pub struct IntentData {
    /// `[rows, hidden + features]`.
    pub inputs: Array2<f32>,
    /// Each row's n-gram buckets.
    pub ngrams: Vec<Vec<u32>>,
    /// `[rows, labels]`, each row a distribution.
    pub targets: Array2<f32>,
    /// `[rows]`.
    pub weights: Array1<f32>,
}

/// What the difficulty head learns from.
#[derive(Clone, Debug)]
pub struct DifficultyData {
    /// `[rows, hidden + features]`.
    pub inputs: Array2<f32>,
    /// `[rows, models]`: graded answers, 0..1.
    pub scores: Array2<f32>,
    /// `[rows, models]`: 1 / (answers of the row) where there is an answer, else 0.
    pub answered: Array2<f32>,
    /// `[models]`: abilities on the fitted scale.
    pub abilities: Array1<f32>,
    /// `[rows, 2]`: 1 where the row's tier is above the cut.
    pub above_cut: Array2<f32>,
    /// `[rows]`: weight of the row's tier; 0 where it has none.
    pub tier_weights: Array1<f32>,
    /// `[rows]`: weight of the row's answers.
    pub answer_weights: Array1<f32>,
}

/// Passes without improvement before training stops.
const PATIENCE: usize = 5;

/// Fits the intent head.
///
/// # Errors
/// When a tensor operation fails.
pub fn fit_intent(
    train: &IntentData,
    held_out: &IntentData,
    n_buckets: usize,
    recipe: &HeadRecipe,
    seed: u64,
    device: &Device,
) -> Result<IntentHead> {
    let n_labels = train.targets.ncols();
    let network = Network::new(train.inputs.ncols(), recipe.hidden, n_labels, seed, device)?;
    let table = Var::from_tensor(&Tensor::zeros((n_buckets, n_labels), DType::F32, device)?)?;
    let (data, validation) = (IntentTensors::new(train, device)?, IntentTensors::new(held_out, device)?);
    let loss = |data: &IntentTensors, rows: Option<&Tensor>, dropout: f32| {
        let (buckets, weights) = (select(&data.buckets, rows)?, select(&data.bucket_weights, rows)?);
        let weights = network.drop_out(&weights, dropout)?;
        let added =
            table.index_select(&buckets.flatten_all()?, 0)?.reshape((buckets.dim(0)?, buckets.dim(1)?, n_labels))?;
        let added = added.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?;
        let logits = (network.forward(&select(&data.inputs, rows)?, dropout)? + added)?;
        let losses = (ops::log_softmax(&logits, D::Minus1)? * select(&data.targets, rows)?)?.sum(1)?.neg()?;
        weighted_mean(&losses, &select(&data.weights, rows)?)
    };
    let mut parameters = network.parameters();
    parameters.push(table.clone());
    run(
        &parameters,
        train.inputs.nrows(),
        recipe,
        seed,
        device,
        |rows| loss(&data, Some(rows), recipe.dropout),
        || loss(&validation, None, 0.0),
    )?;
    Ok(IntentHead { network: network.to_mlp()?, ngrams: to_array(&table)? })
}

/// Fits the difficulty head and the tier scale together; also returns the best mean loss on `held_out`.
///
/// The network is told how each model did (through the fitted abilities) and how people judged the tier; both pull on
/// one latent difficulty.
///
/// # Errors
/// When a tensor operation fails.
pub fn fit_difficulty(
    train: &DifficultyData,
    held_out: &DifficultyData,
    recipe: &HeadRecipe,
    seed: u64,
    device: &Device,
) -> Result<(Mlp, TierScale, f64)> {
    let network = Network::new(train.inputs.ncols(), recipe.hidden, 1, seed, device)?;
    // First cut, log of the gap to the second, log of the slope.
    let tier = Var::new(&[-0.5_f32, 0.0, 0.0], device)?;
    let (data, validation) = (DifficultyTensors::new(train, device)?, DifficultyTensors::new(held_out, device)?);
    let loss = |data: &DifficultyTensors, rows: Option<&Tensor>, dropout: f32| {
        let z = network.forward(&select(&data.inputs, rows)?, dropout)?;
        let answers = binary_cross_entropy(&data.abilities.broadcast_sub(&z)?, &select(&data.scores, rows)?)?;
        let answers = (answers * select(&data.answered, rows)?)?.sum(1)?;
        let first = tier.narrow(0, 0, 1)?;
        let cuts = Tensor::cat(&[&first, &(&first + tier.narrow(0, 1, 1)?.exp()?)?], 0)?.unsqueeze(0)?;
        let logits = z.broadcast_sub(&cuts)?.broadcast_mul(&tier.narrow(0, 2, 1)?.exp()?.unsqueeze(0)?)?;
        let tiers = binary_cross_entropy(&logits, &select(&data.above_cut, rows)?)?.sum(1)?;
        weighted_mean(&answers, &select(&data.answer_weights, rows)?)?
            + weighted_mean(&tiers, &select(&data.tier_weights, rows)?)?
    };
    let mut parameters = network.parameters();
    parameters.push(tier.clone());
    let best = run(
        &parameters,
        train.inputs.nrows(),
        recipe,
        seed,
        device,
        |rows| loss(&data, Some(rows), recipe.dropout),
        || loss(&validation, None, 0.0),
    )?;
    let values = tier.to_vec1::<f32>()?;
    let (low, gap, slope) = (values[0], values[1].exp(), values[2].exp());
    Ok((network.to_mlp()?, TierScale { cuts: [low, low + gap], slope }, best))
}

struct Network {
    layers: Vec<(Var, Var)>,
    /// Of the dropout masks; candle's own dropout cannot be seeded.
    rng: RefCell<StdRng>,
}

struct IntentTensors {
    inputs: Tensor,
    /// `[rows, most n-grams of a row]`, filled up with bucket 0 at weight 0.
    buckets: Tensor,
    bucket_weights: Tensor,
    targets: Tensor,
    weights: Tensor,
}

struct DifficultyTensors {
    inputs: Tensor,
    scores: Tensor,
    answered: Tensor,
    abilities: Tensor,
    above_cut: Tensor,
    tier_weights: Tensor,
    answer_weights: Tensor,
}

// === impl Network ===

impl Network {
    fn new(n_in: usize, hidden: usize, n_out: usize, seed: u64, device: &Device) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let widths = if hidden == 0 { vec![n_in, n_out] } else { vec![n_in, hidden, n_out] };
        let layers = widths
            .windows(2)
            .map(|pair| {
                let bound = (3.0 / pair[0] as f32).sqrt();
                let values: Vec<f32> = (0..pair[0] * pair[1]).map(|_| rng.random_range(-bound..bound)).collect();
                let weight = Var::from_tensor(&Tensor::from_vec(values, (pair[0], pair[1]), device)?)?;
                let bias = Var::from_tensor(&Tensor::zeros(pair[1], DType::F32, device)?)?;
                Ok((weight, bias))
            })
            .collect::<Result<_>>()?;
        Ok(Self { layers, rng: RefCell::new(rng) })
    }

    fn forward(&self, inputs: &Tensor, dropout: f32) -> Result<Tensor> {
        let mut values = inputs.clone();
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            if index > 0 {
                values = values.relu()?;
            }
            values = self.drop_out(&values, dropout)?.matmul(weight)?.broadcast_add(bias)?;
        }
        Ok(values)
    }

    /// Zeroes each value with probability `share` and scales the rest up.
    fn drop_out(&self, values: &Tensor, share: f32) -> Result<Tensor> {
        if share <= 0.0 {
            return Ok(values.clone());
        }
        let mut rng = self.rng.borrow_mut();
        let kept = 1.0 / (1.0 - share);
        let mask: Vec<f32> =
            (0..values.elem_count()).map(|_| if rng.random::<f32>() < share { 0.0 } else { kept }).collect();
        values * Tensor::from_vec(mask, values.shape(), values.device())?
    }

    fn parameters(&self) -> Vec<Var> {
        self.layers.iter().flat_map(|(weight, bias)| [weight.clone(), bias.clone()]).collect()
    }

    fn to_mlp(&self) -> Result<Mlp> {
        let layers = self
            .layers
            .iter()
            .map(|(weight, bias)| {
                Ok(Dense { weight: to_array(weight)?, bias: Array1::from_vec(bias.to_vec1::<f32>()?) })
            })
            .collect::<Result<_>>()?;
        Mlp::new(layers).map_err(candle_core::Error::wrap)
    }
}

// === impl IntentTensors ===

impl IntentTensors {
    fn new(data: &IntentData, device: &Device) -> Result<Self> {
        let width = data.ngrams.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let (mut buckets, mut weights) = (Vec::new(), Vec::new());
        for row in &data.ngrams {
            buckets.extend(row.iter().copied().chain(std::iter::repeat(0)).take(width));
            let weight = ngram_weight(row.len());
            weights.extend((0..width).map(|index| if index < row.len() { weight } else { 0.0 }));
        }
        let shape = (data.ngrams.len(), width);
        Ok(Self {
            buckets: Tensor::from_vec(buckets, shape, device)?,
            bucket_weights: Tensor::from_vec(weights, shape, device)?,
            inputs: matrix(&data.inputs, device)?,
            targets: matrix(&data.targets, device)?,
            weights: vector(&data.weights, device)?,
        })
    }
}

// === impl DifficultyTensors ===

impl DifficultyTensors {
    fn new(data: &DifficultyData, device: &Device) -> Result<Self> {
        Ok(Self {
            inputs: matrix(&data.inputs, device)?,
            scores: matrix(&data.scores, device)?,
            answered: matrix(&data.answered, device)?,
            abilities: vector(&data.abilities, device)?.unsqueeze(0)?,
            above_cut: matrix(&data.above_cut, device)?,
            tier_weights: vector(&data.tier_weights, device)?,
            answer_weights: vector(&data.answer_weights, device)?,
        })
    }
}

/// Steps until the held-out loss stops improving; leaves the best parameters in place and returns their loss.
fn run(
    parameters: &[Var],
    n_rows: usize,
    recipe: &HeadRecipe,
    seed: u64,
    device: &Device,
    step_loss: impl Fn(&Tensor) -> Result<Tensor>,
    held_out_loss: impl Fn() -> Result<Tensor>,
) -> Result<f64> {
    let settings =
        ParamsAdamW { lr: recipe.learning_rate, weight_decay: recipe.weight_decay, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(parameters.to_vec(), settings)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut order: Vec<u32> = (0..n_rows as u32).collect();
    let n_steps = recipe.epochs * n_rows.div_ceil(recipe.batch);
    let (mut step, mut best, mut best_values, mut stale) = (0_usize, f64::INFINITY, Vec::new(), 0);
    for _ in 0..recipe.epochs {
        order.shuffle(&mut rng);
        for rows in order.chunks(recipe.batch) {
            // Cosine from the peak to a twentieth of it.
            let progress = step as f64 / n_steps as f64;
            optimizer.set_learning_rate(
                recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1.0 + (progress * std::f64::consts::PI).cos())),
            );
            optimizer.backward_step(&step_loss(&Tensor::new(rows, device)?)?)?;
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
    Ok(best)
}

/// The given rows, or all of them.
fn select(tensor: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
    rows.map_or_else(|| Ok(tensor.clone()), |rows| tensor.index_select(rows, 0))
}

/// `Σ wᵢxᵢ / Σ wᵢ`, and 0 where no row has any weight.
fn weighted_mean(values: &Tensor, weights: &Tensor) -> Result<Tensor> {
    (values * weights)?.sum_all()? / weights.sum_all()?.maximum(1e-6)?
}

/// Elementwise, from logits, without overflow: `max(x, 0) - x·t + ln(1 + e^-|x|)`.
fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    (logits.relu()? - (logits * targets)?)? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?
}

fn to_array(tensor: &Tensor) -> Result<Array2<f32>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Array2::from_shape_vec(tensor.dims2()?, values).map_err(candle_core::Error::wrap)
}

fn matrix(values: &Array2<f32>, device: &Device) -> Result<Tensor> {
    Tensor::from_iter(values.iter().copied(), device)?.reshape(values.dim())
}

fn vector(values: &Array1<f32>, device: &Device) -> Result<Tensor> {
    Tensor::from_iter(values.iter().copied(), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_a_separable_problem_and_the_same_way_twice() {
        let mut rng = StdRng::seed_from_u64(3);
        let inputs = Array2::from_shape_fn((400, 4), |_| rng.random_range(-1.0_f32..1.0));
        let targets = Array2::from_shape_fn((400, 2), |(row, column)| {
            f32::from(u8::from((inputs[(row, 0)] + inputs[(row, 1)] > 0.0) == (column == 1)))
        });
        let data = IntentData {
            inputs: inputs.clone(),
            ngrams: vec![vec![1]; 400],
            targets: targets.clone(),
            weights: Array1::ones(400),
        };
        let recipe =
            HeadRecipe { hidden: 0, dropout: 0.1, epochs: 30, batch: 32, learning_rate: 0.05, ..HeadRecipe::default() };
        let fit = || fit_intent(&data, &data, 4, &recipe, 1, &Device::Cpu).unwrap();
        let head = fit();
        let logits = head.logits(inputs.view(), &vec![&[1][..]; 400]);
        let right = (0..400).filter(|&row| (logits[(row, 1)] > logits[(row, 0)]) == (targets[(row, 1)] > 0.5)).count();
        assert!(right > 390, "{right} of 400 right");
        assert_eq!(fit(), head);
    }
}
