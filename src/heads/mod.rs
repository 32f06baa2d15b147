//! The learned heads: intent, difficulty, tier, out-of-scope; all calibrated.
//!
//! Input: a batch of embeddings `[rows, hidden]` f32, text features `[rows, features]` f32 and the hashed n-grams of
//! each row. Output: one [`HeadOutput`] a row. The heads are small dense networks in plain `ndarray`; training them is
//! `offline::train`'s business, and both sides share [`HeadWeights`], the content of `heads.safetensors`.

mod mlp;
mod weights;

use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, concatenate};

pub use mlp::{Dense, Mlp, ShapeError};
pub use weights::{HeadWeights, WeightsError};

use crate::domain::{Distribution, Probability};

/// The heads of one classifier, ready to run.
#[derive(Debug)]
pub struct Heads {
    weights: HeadWeights,
    labels: Arc<[Arc<str>]>,
}

/// What the heads say of one row, calibrated.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadOutput {
    /// Probability of each intent.
    pub intent: Distribution,
    /// Continuous difficulty: sigmoid of a latent number on the scale of models' abilities.
    pub difficulty: Probability,
    /// Distribution over tiers, cheapest first.
    pub tiers: [f32; 3],
    /// Probability that the row is like nothing in the training data.
    pub out_of_scope: Probability,
}

/// Complexity on a latent scale, cut into tiers: an ordinal logistic model.
///
/// `P(tier > k) = sigmoid(slope · (z - cut_k))`, where `z` is the head's output. One number orders the tiers, so a more
/// complex query never gets a lower one. It is not the difficulty, which is learnt from what models fail at: people call
/// complex what would be much work for them, and models fail at short questions about things that few know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierScale {
    /// Between simple and medium, and between medium and complex; ascending.
    pub cuts: [f32; 2],
    /// How sharply the tiers are separated; positive.
    pub slope: f32,
}

/// A logistic model over a few numbers that tell familiar from unfamiliar queries.
///
/// The inputs are the largest intent probability, the log-sum-exp of the intent logits (energy) and the cosine to the
/// nearest class centroid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfScope {
    /// Weights of the three inputs.
    pub weights: [f32; 3],
    /// Constant term.
    pub bias: f32,
}

/// The intent head: a network over the dense inputs, and what each n-gram adds.
#[derive(Clone, Debug, PartialEq)]
pub struct IntentHead {
    /// `[hidden + features]` to logits.
    pub network: Mlp,
    /// What each n-gram bucket adds to the logits: `[buckets, labels]`.
    pub ngrams: Array2<f32>,
}

/// The heads and the manifest do not belong together.
#[derive(Debug, thiserror::Error)]
pub enum HeadsError {
    /// `heads.safetensors` is malformed.
    #[error("heads.safetensors cannot be used")]
    Weights(#[from] WeightsError),
    /// The number of labels differs.
    #[error("the manifest has {manifest} intent labels, the head has {head} outputs")]
    Labels {
        /// Labels in the manifest.
        manifest: usize,
        /// Outputs of the head.
        head: usize,
    },
    /// The n-gram table has another shape.
    #[error("the n-gram table is {head:?}, buckets and labels are {given:?}")]
    Ngrams {
        /// Rows and columns of the table.
        head: (usize, usize),
        /// Buckets and labels there are.
        given: (usize, usize),
    },
    /// The inputs of the heads are not an embedding and the text features.
    #[error("the heads read {head} numbers, the encoder and the features give {given}")]
    Inputs {
        /// Numbers the heads read.
        head: usize,
        /// Numbers there are.
        given: usize,
    },
}

// === impl Heads ===

impl Heads {
    /// Pairs trained weights with their labels and checks that they fit the encoder.
    ///
    /// # Errors
    /// Says which numbers do not match.
    pub fn new(
        weights: HeadWeights,
        labels: &[String],
        hidden_size: usize,
        n_features: usize,
        n_buckets: usize,
    ) -> Result<Self, HeadsError> {
        if weights.intent.network.n_out() != labels.len() {
            return Err(HeadsError::Labels { manifest: labels.len(), head: weights.intent.network.n_out() });
        }
        let given = hidden_size + n_features;
        let networks = [&weights.intent.network, &weights.difficulty, &weights.complexity];
        for head in networks.map(Mlp::n_in).into_iter().chain([hidden_size + weights.feature_mean.len()]) {
            if head != given {
                return Err(HeadsError::Inputs { head, given });
            }
        }
        let (rows, columns) = weights.intent.ngrams.dim();
        if rows != n_buckets || columns != labels.len() {
            return Err(HeadsError::Ngrams { head: (rows, columns), given: (n_buckets, labels.len()) });
        }
        Ok(Self { weights, labels: labels.iter().map(|label| Arc::from(label.as_str())).collect() })
    }

    /// Intent labels, in output order.
    pub fn labels(&self) -> &Arc<[Arc<str>]> {
        &self.labels
    }

    /// Runs every head over a batch: `[rows, hidden]`, `[rows, features]` and each row's n-gram buckets, row by row in
    /// the same order.
    pub fn apply(
        &self,
        embeddings: ArrayView2<'_, f32>,
        features: ArrayView2<'_, f32>,
        ngrams: &[&[u32]],
    ) -> Vec<HeadOutput> {
        let inputs = self.weights.inputs(embeddings, features);
        let intent_logits = self.weights.intent.logits(inputs.view(), ngrams);
        let difficulty = self.weights.difficulty.forward(inputs.view());
        let complexity = self.weights.complexity.forward(inputs.view());
        let latent = difficulty.outer_iter().zip(complexity.outer_iter());
        intent_logits
            .outer_iter()
            .zip(latent)
            .zip(embeddings.outer_iter())
            .map(|((logits, (difficulty, complexity)), embedding)| {
                self.output(logits, (difficulty[0], complexity[0]), embedding)
            })
            .collect()
    }

    fn output(
        &self,
        logits: ArrayView1<'_, f32>,
        (difficulty, complexity): (f32, f32),
        embedding: ArrayView1<'_, f32>,
    ) -> HeadOutput {
        let probabilities = softmax(logits, self.weights.intent_temperature);
        let signs = familiarity(&probabilities, logits, self.weights.centroids.view(), embedding);
        let n = self.labels.len() as f32;
        let intent = Distribution::new(self.labels.clone(), probabilities).unwrap_or_else(|_| {
            // Only non-finite logits get here: say that nothing is known instead of inventing a label.
            let uniform = vec![1.0 / n; self.labels.len()];
            Distribution::new(self.labels.clone(), uniform).unwrap_or_else(|_| unreachable!("n labels, n values"))
        });
        HeadOutput {
            intent,
            // In f64, so that the latent difficulty can be had back from it.
            difficulty: Probability::saturating(1.0 / (1.0 + (-f64::from(difficulty)).exp())),
            tiers: self.weights.tier_scale.probabilities(complexity),
            out_of_scope: Probability::saturating(f64::from(self.weights.out_of_scope.probability(signs))),
        }
    }
}

// === impl IntentHead ===

impl IntentHead {
    /// `[rows, hidden + features]` and each row's n-gram buckets to logits, `[rows, labels]`.
    pub fn logits(&self, inputs: ArrayView2<'_, f32>, ngrams: &[&[u32]]) -> Array2<f32> {
        let mut logits = self.network.forward(inputs);
        for (mut row, buckets) in logits.outer_iter_mut().zip(ngrams) {
            let weight = ngram_weight(buckets.len());
            for bucket in *buckets {
                row.scaled_add(weight, &self.ngrams.row(*bucket as usize));
            }
        }
        logits
    }

    /// One head that says the mean of what `members` say.
    ///
    /// # Errors
    /// When there is none, or they differ in shape.
    pub fn mean(members: &[Self]) -> Result<Self, ShapeError> {
        let networks: Vec<Mlp> = members.iter().map(|member| member.network.clone()).collect();
        let network = Mlp::mean(&networks)?;
        let share = 1.0 / members.len() as f32;
        let mut ngrams = Array2::zeros(members[0].ngrams.dim());
        members.iter().for_each(|member| ngrams.scaled_add(share, &member.ngrams));
        Ok(Self { network, ngrams })
    }

    /// Makes every logit `logit · scale + bias` of its label, by changing the weights.
    pub fn rescale(&mut self, scale: &Array1<f32>, bias: &Array1<f32>) {
        self.network.rescale(scale, bias);
        self.ngrams *= scale;
    }
}

// === impl TierScale ===

impl TierScale {
    /// Distribution over the three tiers at latent complexity `z`; finite and summing to 1 for any input.
    pub fn probabilities(&self, z: f32) -> [f32; 3] {
        let z = if z.is_finite() { z } else { 0.0 };
        let above = self.cuts.map(|cut| sigmoid(self.slope * (z - cut)));
        let complex = above[1].min(above[0]);
        [1.0 - above[0], above[0] - complex, complex]
    }
}

// === impl OutOfScope ===

impl OutOfScope {
    /// Calibrated probability of being out of scope.
    pub fn probability(&self, signs: [f32; 3]) -> f32 {
        sigmoid(self.weights.iter().zip(signs).map(|(weight, sign)| weight * sign).sum::<f32>() + self.bias)
    }
}

/// The three numbers that [`OutOfScope`] reads: largest probability, energy, cosine to the nearest centroid.
pub fn familiarity(
    probabilities: &[f32],
    logits: ArrayView1<'_, f32>,
    centroids: ArrayView2<'_, f32>,
    embedding: ArrayView1<'_, f32>,
) -> [f32; 3] {
    let largest = probabilities.iter().copied().fold(0.0, f32::max);
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let energy = peak + logits.iter().map(|logit| (logit - peak).exp()).sum::<f32>().ln();
    let nearest = centroids.dot(&embedding).iter().copied().fold(-1.0, f32::max);
    [largest, energy / 10.0, nearest]
}

/// `softmax(logits / temperature)`.
pub fn softmax(logits: ArrayView1<'_, f32>, temperature: f32) -> Vec<f32> {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut values: Vec<f32> = logits.iter().map(|logit| ((logit - peak) / temperature).exp()).collect();
    let sum: f32 = values.iter().sum();
    for value in &mut values {
        *value /= sum;
    }
    values
}

/// The logistic function.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

// === impl HeadWeights ===

impl HeadWeights {
    /// What the networks read: the embedding beside the standardised features, `[rows, hidden + features]`.
    pub fn inputs(&self, embeddings: ArrayView2<'_, f32>, features: ArrayView2<'_, f32>) -> Array2<f32> {
        let standardised = standardise(features, &self.feature_mean, &self.feature_scale);
        concatenate(Axis(1), &[embeddings, standardised.view()])
            .unwrap_or_else(|_| unreachable!("both have one row a text"))
    }
}

/// Weight of each of a row's `n` n-grams: rows with many and with few have the same length.
pub fn ngram_weight(n: usize) -> f32 {
    1.0 / (n.max(1) as f32).sqrt()
}

/// `(features - mean) · scale`, cut to ±`MAX_STANDARDISED` so that a freak text cannot throw the heads far out.
pub fn standardise(features: ArrayView2<'_, f32>, mean: &Array1<f32>, scale: &Array1<f32>) -> Array2<f32> {
    ((&features - mean) * scale).mapv_into(|value| value.clamp(-MAX_STANDARDISED, MAX_STANDARDISED))
}

/// Largest standardised feature.
const MAX_STANDARDISED: f32 = 6.0;

#[cfg(test)]
mod tests {
    use ndarray::array;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn softmax_is_stable_and_temperature_flattens() {
        let logits = array![1_000.0, 999.0, -1_000.0];
        let sharp = softmax(logits.view(), 1.0);
        let flat = softmax(logits.view(), 10.0);
        assert!((sharp.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((sharp[0] - 0.731_06).abs() < 1e-4 && flat[0] < sharp[0]);
    }

    proptest! {
        #[test]
        fn tiers_are_a_distribution_and_ordered_by_complexity(
            low in -50.0_f32..50.0, more in 0.0_f32..50.0, cut in -5.0_f32..5.0, gap in 0.0_f32..5.0, slope in 0.1_f32..5.0,
        ) {
            let scale = TierScale { cuts: [cut, cut + gap], slope };
            let (easier, harder) = (scale.probabilities(low), scale.probabilities(low + more));
            for p in [easier, harder] {
                prop_assert!(p.iter().all(|value| (0.0..=1.0).contains(value)));
                prop_assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
            prop_assert!(harder[0] <= easier[0] + 1e-6 && harder[2] >= easier[2] - 1e-6);
        }
    }

    #[test]
    fn nonsense_from_the_encoder_stays_a_distribution() {
        let scale = TierScale { cuts: [0.0, 1.0], slope: 1.0 };
        assert!(scale.probabilities(f32::NAN).iter().all(|value| value.is_finite()));
    }
}
