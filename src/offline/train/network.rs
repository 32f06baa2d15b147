//! A small trainable network, and the way between candle's tensors and `ndarray`.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor, Var};
use ndarray::{Array1, Array2};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::heads::{Dense, Mlp};

/// Dense layers with ReLU between them and dropout before each, as [`Mlp`] without the dropout.
pub(super) struct Network {
    layers: Vec<(Var, Var)>,
    /// Of the dropout masks; candle's own dropout cannot be seeded.
    rng: RefCell<StdRng>,
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
        Ok(Self { layers, rng: RefCell::new(rng) })
    }

    /// Starts the dropout masks anew, so that a run that resumes draws what it would have drawn.
    pub(super) fn reseed(&self, seed: u64) {
        *self.rng.borrow_mut() = StdRng::seed_from_u64(seed);
    }

    pub(super) fn forward(&self, inputs: &Tensor, dropout: f32) -> Result<Tensor> {
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
    pub(super) fn drop_out(&self, values: &Tensor, share: f32) -> Result<Tensor> {
        if share <= 0.0 {
            return Ok(values.clone());
        }
        let mut rng = self.rng.borrow_mut();
        let kept = 1.0 / (1.0 - share);
        let mask: Vec<f32> =
            (0..values.elem_count()).map(|_| if rng.random::<f32>() < share { 0.0 } else { kept }).collect();
        values * Tensor::from_vec(mask, values.shape(), values.device())?
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
