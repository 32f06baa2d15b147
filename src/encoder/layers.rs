//! The parts a layer is made of: products, bias, GELU and norms, on each device's best operations.
//!
//! On a CPU they are the fused passes of [`super::ops`], with gradients of their own while training; elsewhere candle's
//! operations.

use candle_core::{Module as _, Result, Tensor};
use candle_nn::{LayerNorm, VarBuilder};

use super::gradient;
use super::ops::{AddBias, AddBiasGelu, AddNorm, norm_parameters};

/// A weight `[in, out]`, and while an adapter is trained, the low-rank product that is added to it.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) weight: Tensor,
    /// `[in, rank]` and `[rank, out]`.
    pub(super) adapter: Option<(Tensor, Tensor)>,
}

/// `x · w + b`.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) product: Product,
    pub(super) bias: Tensor,
}

/// `layer_norm(x + bias + residual)`, where the bias is that of the product which made `x`.
#[derive(Debug)]
pub(super) struct Norm {
    /// `[3, width]`: bias, then the norm's scale and shift.
    pub(super) parameters: Tensor,
    pub(super) eps: f64,
}

// === impl Product ===

impl Product {
    pub(super) fn new(weight: Tensor) -> Self {
        Self { weight, adapter: None }
    }

    /// `[rows, in]` to `[rows, out]`; a new tensor that nothing else uses.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let multiply = |x: &Tensor, weight: &Tensor| {
            if x.device().is_cpu() && (x.track_op() || weight.track_op()) {
                gradient::product(x, weight)
            } else {
                x.matmul(weight)
            }
        };
        let full = multiply(x, &self.weight)?;
        match &self.adapter {
            None => Ok(full),
            Some((down, up)) => full + multiply(&multiply(x, down)?, up)?,
        }
    }
}

// === impl Dense ===

impl Dense {
    pub(super) fn load(n_in: usize, n_out: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((n_out, n_in), "weight")?.t()?.contiguous()?;
        Ok(Self { product: Product::new(weight), bias: vb.get(n_out, "bias")? })
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = self.product.forward(x)?;
        if !product.device().is_cpu() {
            return product.broadcast_add(&self.bias);
        }
        if product.track_op() || self.bias.track_op() {
            return gradient::add_bias(&product, &self.bias);
        }
        product.inplace_op2(&self.bias, &AddBias)?;
        Ok(product)
    }

    /// As [`Self::forward`], with GELU after it.
    pub(super) fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        let product = self.product.forward(x)?;
        if !product.device().is_cpu() {
            return product.broadcast_add(&self.bias)?.gelu_erf();
        }
        if product.track_op() || self.bias.track_op() {
            return gradient::add_bias_gelu(&product, &self.bias);
        }
        product.inplace_op2(&self.bias, &AddBiasGelu)?;
        Ok(product)
    }
}

// === impl Norm ===

impl Norm {
    /// `bias` is that of the product before the norm.
    pub(super) fn load(bias: &Tensor, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = candle_nn::layer_norm(bias.elem_count(), eps, vb.clone())?;
        let shift = norm.bias().cloned().map_or_else(|| bias.zeros_like(), Ok)?;
        Ok(Self { parameters: norm_parameters(bias, norm.weight(), &shift)?, eps })
    }

    /// `[rows, hidden]` twice, to the same. `x` is a tensor that nothing else uses: on a CPU it becomes the result.
    pub(super) fn forward(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        let trains = x.track_op() || residual.track_op() || self.parameters.track_op();
        if x.device().is_cpu() {
            let eps = self.eps as f32;
            if trains {
                return gradient::add_norm(&x, residual, &self.parameters, eps);
            }
            x.inplace_op3(residual, &self.parameters, &AddNorm { eps })?;
            return Ok(x);
        }
        let part = |index| self.parameters.narrow(0, index, 1)?.squeeze(0);
        let sum = (x.broadcast_add(&part(0)?)? + residual)?;
        if trains {
            // candle's fused norm has no gradient.
            return candle_nn::ops::layer_norm_slow(&sum, &part(1)?, &part(2)?, self.eps as f32);
        }
        LayerNorm::new(part(1)?, part(2)?, self.eps).forward(&sum)
    }
}
