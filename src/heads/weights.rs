//! `heads.safetensors`: everything a trained set of heads consists of, and nothing else.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::mlp::{Dense, Mlp, ShapeError};
use super::{IntentHead, OutOfScope, TierScale};

/// All numbers of the heads.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadWeights {
    /// Mean of each text feature over the training rows: `[features]`.
    pub feature_mean: Array1<f32>,
    /// Reciprocal of each feature's standard deviation: `[features]`.
    pub feature_scale: Array1<f32>,
    /// To intent logits.
    pub intent: IntentHead,
    /// Divides the intent logits before the softmax.
    pub intent_temperature: f32,
    /// `[hidden + features]` to one latent difficulty: what language models fail at.
    pub difficulty: Mlp,
    /// `[hidden + features]` to one latent complexity: what people call hard.
    pub complexity: Mlp,
    /// From latent complexity to tiers.
    pub tier_scale: TierScale,
    /// L2-normalised mean embedding of each intent: `[labels, hidden]`.
    pub centroids: Array2<f32>,
    /// From familiarity to the probability of being out of scope.
    pub out_of_scope: OutOfScope,
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// It is not safetensors.
    #[error("not a safetensors file")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor is missing.
    #[error("tensor {0:?} is missing")]
    Missing(String),
    /// A tensor has another type, rank or length.
    #[error("tensor {name:?} should be {expected}, is {found}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What was expected.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A number is NaN or infinite.
    #[error("tensor {0:?} holds a number that is not finite")]
    NotFinite(String),
    /// A calibration parameter is outside its range.
    #[error("{0}")]
    Parameter(&'static str),
    /// The layers of a network do not fit.
    #[error("the layers of {head} do not fit")]
    Shape {
        /// The head.
        head: &'static str,
        /// Which layer.
        #[source]
        source: ShapeError,
    },
}

impl HeadWeights {
    /// Parses and checks the file.
    ///
    /// # Errors
    /// Names the tensor at fault.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let file = SafeTensors::deserialize(bytes)?;
        let scale = array1(&file, "tier.scale")?;
        let out_of_scope = array1(&file, "out_of_scope")?;
        let temperature = array1(&file, "intent.temperature")?;
        let (&[low, high, slope], &[w0, w1, w2, bias], &[intent_temperature]) = (
            scale.as_slice().unwrap_or_default(),
            out_of_scope.as_slice().unwrap_or_default(),
            temperature.as_slice().unwrap_or_default(),
        ) else {
            return Err(WeightsError::Parameter("tier.scale has 3 numbers, out_of_scope 4, intent.temperature 1"));
        };
        if low > high || slope <= 0.0 || intent_temperature <= 0.0 {
            return Err(WeightsError::Parameter("tier cuts must ascend; slope and temperature must be positive"));
        }
        Ok(Self {
            feature_mean: array1(&file, "features.mean")?,
            feature_scale: array1(&file, "features.scale")?,
            intent: IntentHead { network: network(&file, "intent")?, ngrams: array2(&file, "intent.ngrams")? },
            intent_temperature,
            difficulty: network(&file, "difficulty")?,
            complexity: network(&file, "complexity")?,
            tier_scale: TierScale { cuts: [low, high], slope },
            centroids: array2(&file, "intent.centroids")?,
            out_of_scope: OutOfScope { weights: [w0, w1, w2], bias },
        })
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// When a tensor cannot be written, which only its size could cause.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WeightsError> {
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        let mut add = |name: String, shape: Vec<usize>, values: &mut dyn Iterator<Item = f32>| {
            tensors.insert(name, (shape, values.flat_map(f32::to_le_bytes).collect()));
        };
        let TierScale { cuts: [low, high], slope } = self.tier_scale;
        let OutOfScope { weights: [w0, w1, w2], bias } = self.out_of_scope;
        for (name, values) in [
            ("features.mean", self.feature_mean.to_vec()),
            ("features.scale", self.feature_scale.to_vec()),
            ("intent.temperature", vec![self.intent_temperature]),
            ("tier.scale", vec![low, high, slope]),
            ("out_of_scope", vec![w0, w1, w2, bias]),
        ] {
            add(name.into(), vec![values.len()], &mut values.into_iter());
        }
        for (name, matrix) in [("intent.centroids", &self.centroids), ("intent.ngrams", &self.intent.ngrams)] {
            add(name.into(), matrix.shape().to_vec(), &mut matrix.iter().copied());
        }
        let networks =
            [("intent", &self.intent.network), ("difficulty", &self.difficulty), ("complexity", &self.complexity)];
        for (head, network) in networks {
            for (index, layer) in network.layers().iter().enumerate() {
                let (weight, bias) = (&layer.weight, &layer.bias);
                add(format!("{head}.{index}.weight"), weight.shape().to_vec(), &mut weight.iter().copied());
                add(format!("{head}.{index}.bias"), bias.shape().to_vec(), &mut bias.iter().copied());
            }
        }
        let views = tensors
            .iter()
            .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<BTreeMap<_, _>, safetensors::SafeTensorError>>()?;
        Ok(safetensors::serialize(views, None)?)
    }
}

fn values(file: &SafeTensors<'_>, name: &str, rank: usize) -> Result<(Vec<usize>, Vec<f32>), WeightsError> {
    let view = file.tensor(name).map_err(|_| WeightsError::Missing(name.to_owned()))?;
    if view.dtype() != Dtype::F32 || view.shape().len() != rank {
        return Err(WeightsError::Tensor {
            name: name.to_owned(),
            expected: if rank == 1 { "an f32 vector" } else { "an f32 matrix" },
            found: format!("{:?}{:?}", view.dtype(), view.shape()),
        });
    }
    let (numbers, _) = view.data().as_chunks::<4>();
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    if numbers.iter().any(|number| !number.is_finite()) {
        return Err(WeightsError::NotFinite(name.to_owned()));
    }
    Ok((view.shape().to_vec(), numbers))
}

fn array1(file: &SafeTensors<'_>, name: &str) -> Result<Array1<f32>, WeightsError> {
    Ok(Array1::from_vec(values(file, name, 1)?.1))
}

fn array2(file: &SafeTensors<'_>, name: &str) -> Result<Array2<f32>, WeightsError> {
    let (shape, numbers) = values(file, name, 2)?;
    Array2::from_shape_vec((shape[0], shape[1]), numbers)
        .map_err(|_| WeightsError::Parameter("a matrix whose length is not rows times columns"))
}

fn network(file: &SafeTensors<'_>, head: &'static str) -> Result<Mlp, WeightsError> {
    let mut layers = Vec::new();
    for index in 0.. {
        let weight = format!("{head}.{index}.weight");
        if index > 0 && file.tensor(&weight).is_err() {
            break;
        }
        layers.push(Dense { weight: array2(file, &weight)?, bias: array1(file, &format!("{head}.{index}.bias"))? });
    }
    Mlp::new(layers).map_err(|source| WeightsError::Shape { head, source })
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn weights() -> HeadWeights {
        let dense = |n_out| Dense { weight: Array2::from_elem((3, n_out), 0.5), bias: Array1::zeros(n_out) };
        HeadWeights {
            feature_mean: array![1.0],
            feature_scale: array![2.0],
            intent: IntentHead { network: Mlp::new(vec![dense(2)]).unwrap(), ngrams: array![[0.5, -0.5], [0.25, 0.0]] },
            intent_temperature: 1.5,
            difficulty: Mlp::new(vec![dense(1)]).unwrap(),
            complexity: Mlp::new(vec![Dense { weight: Array2::from_elem((3, 1), -0.25), bias: array![1.0] }]).unwrap(),
            tier_scale: TierScale { cuts: [-1.0, 1.0], slope: 2.0 },
            centroids: array![[1.0, 0.0], [0.0, 1.0]],
            out_of_scope: OutOfScope { weights: [1.0, 2.0, 3.0], bias: -1.0 },
        }
    }

    #[test]
    fn files_round_trip() {
        let bytes = weights().to_bytes().unwrap();
        assert_eq!(HeadWeights::from_bytes(&bytes).unwrap(), weights());
    }

    #[test]
    fn bad_files_are_refused() {
        let refused = |change: &dyn Fn(&mut HeadWeights)| {
            let mut weights = weights();
            change(&mut weights);
            HeadWeights::from_bytes(&weights.to_bytes().unwrap()).unwrap_err()
        };
        assert!(matches!(refused(&|w| w.feature_mean[0] = f32::NAN), WeightsError::NotFinite(_)));
        assert!(matches!(refused(&|w| w.intent_temperature = 0.0), WeightsError::Parameter(_)));
        assert!(matches!(refused(&|w| w.tier_scale.cuts = [1.0, 0.0]), WeightsError::Parameter(_)));
        assert!(matches!(HeadWeights::from_bytes(b"nonsense"), Err(WeightsError::Format(_))));
    }
}
