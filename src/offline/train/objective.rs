//! What the heads are asked to get right: losses over rows, for heads alone and for the encoder with them.
//!
//! Both objectives take the dense inputs `[rows, hidden + features]` from outside, so that embeddings may come from a
//! table or from an encoder under training.

use std::collections::HashMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops;
use ndarray::{Array1, Array2};

use super::network::{Dropout, Network, matrix, vector};
use super::recipe::HeadRecipe;
use crate::heads::{Mlp, TierScale};

/// What the intent head learns from: one row each of n-grams, targets and weights.
#[derive(Clone, Debug)]
pub struct IntentData {
    /// Each row's n-gram buckets.
    pub ngrams: Vec<Vec<u32>>,
    /// `[rows, labels]`, each row a distribution, or zeros at weight 0.
    pub targets: Array2<f32>,
    /// `[rows]`.
    pub weights: Array1<f32>,
    /// `[rows]`: what the row is a version of; a row and its changed copies have the same.
    pub kin: Vec<usize>,
}

/// What the difficulty head learns from.
#[derive(Clone, Debug)]
pub struct DifficultyData {
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
    /// As in [`IntentData`].
    pub kin: Vec<usize>,
}

/// Losses of some rows, each times its weight.
pub(super) struct Losses {
    weighted: Tensor,
    weights: Tensor,
    /// Mean weight over all rows of the data, these or not.
    usual_weight: f64,
}

/// The dense part of the intent head under training.
pub(super) struct IntentModel {
    network: Network,
}

/// The parameters of a latent number, difficulty or complexity, and of the tier scale under training.
pub(super) struct DifficultyModel {
    network: Network,
    /// First cut, log of the gap to the second, log of the slope.
    tier: Var,
}

/// Which of some rows are versions of one text; verdicts on these should agree.
pub(super) struct Kinship {
    /// `[rows, rows]`: 1 / (rows alike) where both are versions of one text, else 0.
    shares: Tensor,
}

/// [`IntentData`] on the device.
pub(super) struct IntentTensors {
    targets: Tensor,
    weights: Tensor,
    usual_weight: f64,
}

/// [`DifficultyData`] on the device.
pub(super) struct DifficultyTensors {
    scores: Tensor,
    answered: Tensor,
    abilities: Tensor,
    above_cut: Tensor,
    tier_weights: Tensor,
    answer_weights: Tensor,
    usual_tier_weight: f64,
    usual_answer_weight: f64,
}

// === impl Losses ===

impl Losses {
    /// `Σ wᵢlᵢ / Σ wᵢ`, and 0 where no row has any weight.
    pub(super) fn mean(&self) -> Result<Tensor> {
        self.weighted.sum_all()? / self.weights.sum_all()?.maximum(1e-6)?
    }

    /// As the mean, with the weight that as many rows usually have: a batch of few weighty rows stays a small step.
    pub(super) fn usual_mean(&self) -> Result<Tensor> {
        let usual = self.usual_weight * self.weights.elem_count() as f64;
        self.weighted.sum_all()? / usual.max(1e-6)
    }
}

// === impl IntentModel ===

impl IntentModel {
    pub(super) fn new(n_in: usize, n_labels: usize, recipe: &HeadRecipe, seed: u64, device: &Device) -> Result<Self> {
        Ok(Self { network: Network::new(n_in, recipe.hidden, n_labels, seed, device)? })
    }

    pub(super) fn parameters(&self) -> Vec<Var> {
        self.network.parameters()
    }

    /// `[rows, labels]` at dense `inputs`.
    pub(super) fn logits(&self, inputs: &Tensor, dropout: &mut Dropout) -> Result<Tensor> {
        self.network.forward(inputs, dropout)
    }

    pub(super) fn to_mlp(&self) -> Result<Mlp> {
        self.network.to_mlp()
    }
}

// === impl DifficultyModel ===

impl DifficultyModel {
    pub(super) fn new(n_in: usize, recipe: &HeadRecipe, seed: u64, device: &Device) -> Result<Self> {
        let network = Network::new(n_in, recipe.hidden, 1, seed, device)?;
        Ok(Self { network, tier: Var::new(&[-0.5_f32, 0.0, 0.0], device)? })
    }

    pub(super) fn parameters(&self) -> Vec<Var> {
        let mut parameters = self.network.parameters();
        parameters.push(self.tier.clone());
        parameters
    }

    /// Latent difficulty, `[rows, 1]`, at dense `inputs`.
    pub(super) fn latent(&self, inputs: &Tensor, dropout: &mut Dropout) -> Result<Tensor> {
        self.network.forward(inputs, dropout)
    }

    /// As [`IntentTensors::losses`]: how well models' answers, and people's tiers, are predicted from one latent
    /// difficulty, `[rows, 1]`.
    pub(super) fn losses(&self, data: &DifficultyTensors, z: &Tensor, rows: Option<&Tensor>) -> Result<[Losses; 2]> {
        let answers = binary_cross_entropy(&data.abilities.broadcast_sub(z)?, &select(&data.scores, rows)?)?;
        let answers = (answers * select(&data.answered, rows)?)?.sum(1)?;
        let first = self.tier.narrow(0, 0, 1)?;
        let cuts = Tensor::cat(&[&first, &(&first + self.tier.narrow(0, 1, 1)?.exp()?)?], 0)?.unsqueeze(0)?;
        let slope = self.tier.narrow(0, 2, 1)?.exp()?.unsqueeze(0)?;
        let logits = z.broadcast_sub(&cuts)?.broadcast_mul(&slope)?;
        let tiers = binary_cross_entropy(&logits, &select(&data.above_cut, rows)?)?.sum(1)?;
        let (answer_weights, tier_weights) = (select(&data.answer_weights, rows)?, select(&data.tier_weights, rows)?);
        Ok([
            Losses {
                weighted: (answers * &answer_weights)?,
                weights: answer_weights,
                usual_weight: data.usual_answer_weight,
            },
            Losses { weighted: (tiers * &tier_weights)?, weights: tier_weights, usual_weight: data.usual_tier_weight },
        ])
    }

    pub(super) fn to_head(&self) -> Result<(Mlp, TierScale)> {
        let values = self.tier.to_vec1::<f32>()?;
        let (low, gap, slope) = (values[0], values[1].exp(), values[2].exp());
        Ok((self.network.to_mlp()?, TierScale { cuts: [low, low + gap], slope }))
    }
}

// === impl IntentTensors ===

impl IntentTensors {
    pub(super) fn new(data: &IntentData, device: &Device) -> Result<Self> {
        Ok(Self {
            targets: matrix(&data.targets, device)?,
            weights: vector(&data.weights, device)?,
            usual_weight: mean(&data.weights),
        })
    }

    /// Losses of the given rows (`None`: all) at `logits`, `[rows, labels]`, in the same order.
    pub(super) fn losses(&self, logits: &Tensor, rows: Option<&Tensor>) -> Result<Losses> {
        let losses = (ops::log_softmax(logits, D::Minus1)? * select(&self.targets, rows)?)?.sum(1)?.neg()?;
        let weights = select(&self.weights, rows)?;
        Ok(Losses { weighted: (losses * &weights)?, weights, usual_weight: self.usual_weight })
    }
}

// === impl Kinship ===

impl Kinship {
    /// Of rows with these marks; `None` where no two are alike.
    pub(super) fn new(kin: impl IntoIterator<Item = usize>, device: &Device) -> Result<Option<Self>> {
        let kin: Vec<usize> = kin.into_iter().collect();
        let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
        for (row, mark) in kin.iter().enumerate() {
            members.entry(*mark).or_default().push(row);
        }
        if members.len() == kin.len() {
            return Ok(None);
        }
        let mut shares = Array2::zeros((kin.len(), kin.len()));
        for alike in members.values() {
            for (row, other) in alike.iter().flat_map(|row| alike.iter().map(move |other| (*row, *other))) {
                shares[(row, other)] = 1.0 / alike.len() as f32;
            }
        }
        Ok(Some(Self { shares: matrix(&shares, device)? }))
    }

    /// Mean divergence of each row's distribution, given by `logits`, `[rows, labels]`, from the mean of its kin.
    pub(super) fn of_logits(&self, logits: &Tensor) -> Result<Tensor> {
        let log_p = ops::log_softmax(logits, D::Minus1)?;
        let mean = self.shares.matmul(&log_p.detach().exp()?)?;
        // The entropy of the mean is no business of the gradient's; taken away, agreement is 0.
        let floor = (&mean * mean.maximum(1e-9)?.log()?)?;
        (floor - (mean * log_p)?)?.sum(1)?.mean_all()
    }

    /// Mean squared distance of each row's number, `[rows, 1]`, from the mean of its kin.
    pub(super) fn of_numbers(&self, numbers: &Tensor) -> Result<Tensor> {
        (numbers - self.shares.matmul(&numbers.detach())?)?.sqr()?.mean_all()
    }
}

// === impl DifficultyTensors ===

impl DifficultyTensors {
    pub(super) fn new(data: &DifficultyData, device: &Device) -> Result<Self> {
        Ok(Self {
            scores: matrix(&data.scores, device)?,
            answered: matrix(&data.answered, device)?,
            abilities: vector(&data.abilities, device)?.unsqueeze(0)?,
            above_cut: matrix(&data.above_cut, device)?,
            tier_weights: vector(&data.tier_weights, device)?,
            answer_weights: vector(&data.answer_weights, device)?,
            usual_tier_weight: mean(&data.tier_weights),
            usual_answer_weight: mean(&data.answer_weights),
        })
    }
}

/// The rows of each text, versions of one text together, in order of the texts' first rows.
pub(super) fn families(kin: &[usize]) -> Vec<Vec<usize>> {
    let mut place_of: HashMap<usize, usize> = HashMap::new();
    let mut families: Vec<Vec<usize>> = Vec::new();
    for (row, mark) in kin.iter().enumerate() {
        let place = *place_of.entry(*mark).or_insert(families.len());
        match families.get_mut(place) {
            Some(family) => family.push(row),
            None => families.push(vec![row]),
        }
    }
    families
}

/// The given rows, or all of them.
pub(super) fn select(tensor: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
    rows.map_or_else(|| Ok(tensor.clone()), |rows| tensor.index_select(rows, 0))
}

/// Elementwise, from logits, without overflow: `max(x, 0) - x·t + ln(1 + e^-|x|)`.
fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    (logits.relu()? - (logits * targets)?)? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?
}

fn mean(values: &Array1<f32>) -> f64 {
    f64::from(values.mean().unwrap_or_default())
}
