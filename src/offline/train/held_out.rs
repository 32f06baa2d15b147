//! How good an encoder under training is on rows that it does not learn from.
//!
//! Measured as it will be served: by log-loss after calibration. A model that grows surer than it should while it still
//! learns to tell labels apart would otherwise look worse, and training would stop too soon.

use candle_core::Result as TensorResult;
use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;

use super::calibrate::{fit_temperature, fit_tier_scale};
use super::objective::{DifficultyData, IntentData};
use super::recipe::EncoderRecipe;
use super::tune::{Model, Part, StepNoise};
use crate::heads::{TierScale, sigmoid, softmax};

/// Rows with what is known of them.
pub(super) struct HeldOut {
    pub(super) part: Part,
    pub(super) intent: IntentData,
    pub(super) difficulty: DifficultyData,
}

/// What the heads under training say of every row.
struct Said {
    /// `[rows, labels]`.
    logits: Array2<f32>,
    /// `[rows]`: latent difficulty.
    z: Array1<f32>,
}

impl HeldOut {
    /// Calibrated log-loss of intent, and of tier and answers where `model` learns those.
    pub(super) fn loss(&self, model: &Model, settings: &EncoderRecipe) -> TensorResult<f64> {
        let said = self.ask(model, settings)?;
        let difficulty =
            if model.difficulty_weight > 0.0 { self.tier_loss(&said) + self.answer_loss(&said) } else { 0.0 };
        Ok(self.intent_loss(&said) + model.difficulty_weight * difficulty)
    }

    fn ask(&self, model: &Model, settings: &EncoderRecipe) -> TensorResult<Said> {
        let n = self.part.n_rows();
        let batches = self.part.all(settings);
        let answers = batches
            .par_iter()
            .map(|rows| {
                let mut noise = StepNoise::none();
                let (inputs, order) = model.inputs(&self.part, rows, &mut noise)?;
                let logits = model.intent.logits(&inputs, &mut noise.intent)?.to_vec2::<f32>()?;
                let z = model.difficulty.latent(&inputs, &mut noise.difficulty)?.flatten_all()?.to_vec1::<f32>()?;
                Ok((order, logits, z))
            })
            .collect::<TensorResult<Vec<_>>>()?;
        let mut said = Said { logits: Array2::zeros(self.intent.targets.dim()), z: Array1::zeros(n) };
        for (order, logits, z) in answers {
            for ((row, logits), z) in order.into_iter().zip(logits).zip(z) {
                said.logits.row_mut(row as usize).assign(&Array1::from(logits));
                said.z[row as usize] = z;
            }
        }
        Ok(said)
    }

    fn intent_loss(&self, said: &Said) -> f64 {
        let weights = &self.intent.weights;
        let rows: Vec<usize> = (0..weights.len()).filter(|row| weights[*row] > 0.0).collect();
        let (logits, targets) = (said.logits.select(Axis(0), &rows), self.intent.targets.select(Axis(0), &rows));
        let temperature = fit_temperature(logits.view(), &targets);
        mean(rows.iter().zip(logits.outer_iter().zip(targets.outer_iter())).map(|(row, (logits, target))| {
            let probabilities = softmax(logits, temperature);
            let loss: f32 = probabilities.iter().zip(target).map(|(p, t)| -t * p.max(1e-9).ln()).sum();
            (loss, weights[*row])
        }))
    }

    fn tier_loss(&self, said: &Said) -> f64 {
        let weights = &self.difficulty.tier_weights;
        let rows: Vec<usize> = (0..weights.len()).filter(|row| weights[*row] > 0.0).collect();
        let tiers: Vec<usize> =
            rows.iter().map(|row| self.difficulty.above_cut.row(*row).sum().round() as usize).collect();
        let z: Vec<f32> = rows.iter().map(|row| said.z[*row]).collect();
        let scale = fit_tier_scale(&z, &tiers, TierScale { cuts: [-0.5, 0.5], slope: 1.0 });
        mean(
            rows.iter()
                .zip(z.iter().zip(&tiers))
                .map(|(row, (z, tier))| (-scale.probabilities(*z)[*tier].max(1e-6).ln(), weights[*row])),
        )
    }

    fn answer_loss(&self, said: &Said) -> f64 {
        let data = &self.difficulty;
        mean((0..data.answer_weights.len()).filter(|row| data.answer_weights[*row] > 0.0).map(|row| {
            let answers = data.scores.row(row).into_iter().zip(data.answered.row(row)).zip(&data.abilities);
            let loss = answers.map(|((score, share), ability)| {
                let p = sigmoid(ability - said.z[row]).clamp(1e-6, 1.0 - 1e-6);
                -share * (score * p.ln() + (1.0 - score) * (1.0 - p).ln())
            });
            (loss.sum::<f32>(), data.answer_weights[row])
        }))
    }
}

/// `Σ wᵢlᵢ / Σ wᵢ` of (loss, weight) pairs; 0 without any.
fn mean(losses: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (sum, weights) = losses.fold((0.0, 0.0), |(sum, weights), (loss, weight)| {
        (sum + f64::from(loss * weight), weights + f64::from(weight))
    });
    if weights > 0.0 { sum / weights } else { 0.0 }
}
