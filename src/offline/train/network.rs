//! A small trainable network, and the way between candle's tensors and `ndarray`.

use candle_core::{DType, Device, Result, Tensor, Var};
use ndarray::{Array1, Array2};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::heads::{Dense, Mlp};

/// Dense layers with ReLU between them and dropout before each, as [`Mlp`] without the dropout.
pub(super) struct Network {
    layers: Vec<(Var, Var)>,
}

/// The dropout masks of one step. candle's own dropout cannot be seeded.
pub(super) struct Dropout {
    share: f32,
    rng: StdRng,
}

impl Network {
    pub(super) fn new(n_in: usize, hidden: usize, n_out: usize, seed: u64, device: &Device) -> Result<Self> {
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
        Ok(Self { layers })
    }

    pub(super) fn forward(&self, inputs: &Tensor, dropout: &mut Dropout) -> Result<Tensor> {
        let mut values = inputs.clone();
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            if index > 0 {
                values = values.relu()?;
            }
            values = dropout.apply(&values)?.matmul(weight)?.broadcast_add(bias)?;
        }
        Ok(values)
    }

    pub(super) fn parameters(&self) -> Vec<Var> {
        self.layers.iter().flat_map(|(weight, bias)| [weight.clone(), bias.clone()]).collect()
    }

    pub(super) fn to_mlp(&self) -> Result<Mlp> {
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

// === impl Dropout ===

impl Dropout {
    /// Masks that drop values with probability `share`, the same for the same seed.
    pub(super) fn new(share: f32, seed: u64) -> Self {
        Self { share, rng: StdRng::seed_from_u64(seed) }
    }

    /// Drops nothing.
    pub(super) fn none() -> Self {
        Self::new(0.0, 0)
    }

    /// What a value is multiplied by: 0, or what makes up for those that are dropped.
    pub(super) fn factor(&mut self) -> f32 {
        if self.share <= 0.0 {
            1.0
        } else if self.rng.random::<f32>() < self.share {
            0.0
        } else {
            1.0 / (1.0 - self.share)
        }
    }

    fn apply(&mut self, values: &Tensor) -> Result<Tensor> {
        if self.share <= 0.0 {
            return Ok(values.clone());
        }
        let mask: Vec<f32> = (0..values.elem_count()).map(|_| self.factor()).collect();
        values * Tensor::from_vec(mask, values.shape(), values.device())?
    }
}

pub(super) fn to_array(tensor: &Tensor) -> Result<Array2<f32>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Array2::from_shape_vec(tensor.dims2()?, values).map_err(candle_core::Error::wrap)
}

pub(super) fn matrix(values: &Array2<f32>, device: &Device) -> Result<Tensor> {
    Tensor::from_iter(values.iter().copied(), device)?.reshape(values.dim())
}

pub(super) fn vector(values: &Array1<f32>, device: &Device) -> Result<Tensor> {
    Tensor::from_iter(values.iter().copied(), device)
}
