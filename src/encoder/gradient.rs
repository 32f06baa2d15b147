//! Gradients for the fused passes, so that the graph that serves is the graph that is trained.
//!
//! Each operation here computes its result with the passes of [`super::ops`], outside candle's graph, and gives
//! candle a closure for the way back. CPU only: other devices use candle's own operations, which have gradients.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use rayon::prelude::*;

use super::ops::{AddBias, AddBiasGelu, AddNorm, for_each_row, gelu_slope, moments, read, write};

/// `x · w`, with gradients for those of the two that need one: candle's own product computes both always.
pub(super) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (x_value, weight_value) = (x.detach(), weight.detach());
    let (for_x, for_weight) = (x.track_op(), weight.track_op());
    let result = x_value.matmul(&weight_value)?;
    let backward = move |grad: &Tensor| {
        let x_grad = for_x.then(|| grad.matmul(&weight_value.t()?)).transpose()?;
        let weight_grad = for_weight.then(|| x_value.t()?.matmul(grad)).transpose()?;
        Ok([x_grad, weight_grad])
    };
    x.apply_op2(weight, Known { name: "product", result, backward })
}

/// `x + bias`, by row.
pub(super) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let result = x.detach().copy()?;
    result.inplace_op2(&bias.detach(), &AddBias)?;
    let backward = |grad: &Tensor| Ok([Some(grad.clone()), Some(sum_rows(grad)?)]);
    x.apply_op2(bias, Known { name: "add-bias", result, backward })
}

/// `gelu(x + bias)`, by row.
pub(super) fn add_bias_gelu(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (x_value, bias_value) = (x.detach(), bias.detach());
    let result = x_value.copy()?;
    result.inplace_op2(&bias_value, &AddBiasGelu)?;
    let backward = move |grad: &Tensor| {
        let grad = grad.copy()?;
        grad.inplace_op3(&x_value, &bias_value, &TimesGeluSlope)?;
        let for_bias = sum_rows(&grad)?;
        Ok([Some(grad), Some(for_bias)])
    };
    x.apply_op2(bias, Known { name: "add-bias-gelu", result, backward })
}

/// `layer_norm(x + bias + residual)`, by row; `parameters` as in [`AddNorm`].
pub(super) fn add_norm(x: &Tensor, residual: &Tensor, parameters: &Tensor, eps: f32) -> Result<Tensor> {
    let (x_value, residual_value, parameters_value) = (x.detach(), residual.detach(), parameters.detach());
    let result = x_value.copy()?;
    result.inplace_op3(&residual_value, &parameters_value, &AddNorm { eps })?;
    let (for_residual, for_parameters) = (residual.track_op(), parameters.track_op());
    let backward = move |grad: &Tensor| {
        let sum = (&x_value + &residual_value)?;
        let (x_grad, parameters_grad) = norm_gradient(&sum, &parameters_value, grad, eps)?;
        let residual_grad = for_residual.then(|| x_grad.clone());
        Ok([Some(x_grad), residual_grad, for_parameters.then_some(parameters_grad)])
    };
    x.apply_op3(residual, parameters, Known { name: "add-norm", result, backward })
}

/// `result`, computed from `x` outside the graph, with `backward` from its gradient to that of `x`.
pub(super) fn known(
    name: &'static str,
    x: &Tensor,
    result: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op1(Known { name, result, backward: move |grad: &Tensor| Ok([Some(backward(grad)?)]) })
}

/// An operation whose result is known already, and the way back through it.
struct Known<B> {
    name: &'static str,
    result: Tensor,
    backward: B,
}

/// `grad · gelu'(x + bias)`, in the place of `grad`.
struct TimesGeluSlope;

type Grads<const N: usize> = Result<[Option<Tensor>; N]>;

// === impl Known ===

impl<B> Known<B> {
    fn storage(&self) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.result.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("{} is for the CPU", self.name) };
        Ok((CpuStorage::F32(read(storage, layout)?.to_vec()), layout.shape().clone()))
    }
}

impl<B: Fn(&Tensor) -> Grads<1> + Send + Sync> CustomOp1 for Known<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.storage()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [x] = (self.backward)(&grad.contiguous()?)?;
        Ok(x)
    }
}

impl<B: Fn(&Tensor) -> Grads<2> + Send + Sync> CustomOp2 for Known<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.storage()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = (self.backward)(&grad.contiguous()?)?;
        Ok((x, y))
    }
}

impl<B: Fn(&Tensor) -> Grads<3> + Send + Sync> CustomOp3 for Known<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.storage()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = (self.backward)(&grad.contiguous()?)?;
        Ok((x, y, z))
    }
}

impl InplaceOp3 for TimesGeluSlope {
    fn name(&self) -> &'static str {
        "times-gelu-slope"
    }

    fn cpu_fwd(
        &self,
        grad: &mut CpuStorage,
        grad_l: &Layout,
        x: &CpuStorage,
        x_l: &Layout,
        bias: &CpuStorage,
        bias_l: &Layout,
    ) -> Result<()> {
        let (x, bias) = (read(x, x_l)?, read(bias, bias_l)?);
        for_each_row(write(grad, grad_l)?, bias.len(), |at, row| {
            for ((grad, x), bias) in row.iter_mut().zip(&x[at..]).zip(bias) {
                *grad *= gelu_slope(x + bias);
            }
        })
    }
}

/// Sum over rows as a product with ones, which uses all threads.
fn sum_rows(x: &Tensor) -> Result<Tensor> {
    Tensor::ones((1, x.dim(0)?), x.dtype(), x.device())?.matmul(x)?.squeeze(0)
}

/// From the gradient of `layer_norm(sum + bias)` to that of `sum` and of the parameters `[3, width]`.
fn norm_gradient(sum: &Tensor, parameters: &Tensor, grad: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let width = grad.dim(1)?;
    let (sum_storage, sum_layout) = sum.storage_and_layout();
    let (grad_storage, grad_layout) = grad.storage_and_layout();
    let (parameters_storage, parameters_layout) = parameters.storage_and_layout();
    let (Storage::Cpu(sum), Storage::Cpu(grad_in), Storage::Cpu(parameters)) =
        (&*sum_storage, &*grad_storage, &*parameters_storage)
    else {
        bail!("add-norm is for the CPU")
    };
    let (sum, grad_in) = (read(sum, sum_layout)?, read(grad_in, grad_layout)?);
    let parameters = read(parameters, parameters_layout)?;
    let (bias, scale) = (&parameters[..width], &parameters[width..2 * width]);
    let mut out = vec![0.0_f32; grad_in.len()];
    let task = ROWS_PER_TASK * width;
    let totals = out
        .par_chunks_mut(task)
        .zip(sum.par_chunks(task))
        .zip(grad_in.par_chunks(task))
        .map(|((out, sum), grad)| {
            // By parameter: bias, scale, shift.
            let mut totals = vec![0.0_f32; 3 * width];
            let (mut normed, mut scaled) = (vec![0.0_f32; width], vec![0.0_f32; width]);
            let rows = out.chunks_exact_mut(width).zip(sum.chunks_exact(width)).zip(grad.chunks_exact(width));
            for ((out, sum), grad) in rows {
                for ((normed, sum), bias) in normed.iter_mut().zip(sum).zip(bias) {
                    *normed = sum + bias;
                }
                let (mean, factor) = moments(&normed, eps);
                for value in &mut normed {
                    *value = (*value - mean) * factor;
                }
                for ((scaled, grad), scale) in scaled.iter_mut().zip(grad).zip(scale) {
                    *scaled = grad * scale;
                }
                let n = width as f32;
                let level = scaled.iter().sum::<f32>() / n;
                let along = scaled.iter().zip(&normed).map(|(g, x)| g * x).sum::<f32>() / n;
                let (for_bias, rest) = totals.split_at_mut(width);
                let (for_scale, for_shift) = rest.split_at_mut(width);
                for index in 0..width {
                    let gradient = factor * (scaled[index] - level - normed[index] * along);
                    out[index] = gradient;
                    for_bias[index] += gradient;
                    for_scale[index] += grad[index] * normed[index];
                    for_shift[index] += grad[index];
                }
            }
            totals
        })
        .reduce(
            || vec![0.0; 3 * width],
            |mut totals, more| {
                totals.iter_mut().zip(more).for_each(|(total, more)| *total += more);
                totals
            },
        );
    Ok((Tensor::from_vec(out, grad.shape(), grad.device())?, Tensor::from_vec(totals, (3, width), grad.device())?))
}

/// Rows that one thread takes at a time.
const ROWS_PER_TASK: usize = 64;

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::encoder::ops::norm_parameters;

    fn random(shape: (usize, usize)) -> Var {
        Var::randn(0.0_f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    /// The gradients of `Σ weights · f` for each variable, by the fused operation and by candle's own.
    #[track_caller]
    fn agree(variables: &[&Var], fused: &Tensor, composed: &Tensor) {
        let weights = Tensor::randn(0.0_f32, 1.0, fused.shape(), &Device::Cpu).unwrap();
        let loss = |value: &Tensor| (value * &weights).unwrap().sum_all().unwrap();
        let (ours, theirs) = (loss(fused).backward().unwrap(), loss(composed).backward().unwrap());
        for (index, variable) in variables.iter().enumerate() {
            let difference = (ours.get(variable).unwrap() - theirs.get(variable).unwrap()).unwrap();
            let largest: f32 = difference.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
            assert!(largest < 2e-4, "variable {index}: {largest}");
        }
    }

    #[test]
    fn gradients_are_those_of_the_separate_operations() {
        for rows in [1, 5, 150] {
            let width = 48;
            let (x, residual, weight) = (random((rows, width)), random((rows, width)), random((width, 32)));
            let row = || Var::from_tensor(&random((1, width)).squeeze(0).unwrap()).unwrap();
            let (bias, scale, shift) = (row(), row(), row());

            agree(&[&x, &weight], &product(&x, &weight).unwrap(), &x.matmul(&weight).unwrap());
            let biased = x.broadcast_add(&bias).unwrap();
            agree(&[&x, &bias], &add_bias(&x, &bias).unwrap(), &biased);
            agree(&[&x, &bias], &add_bias_gelu(&x, &bias).unwrap(), &biased.gelu_erf().unwrap());

            let parameters = Var::from_tensor(&norm_parameters(&bias, &scale, &shift).unwrap()).unwrap();
            let part = |index: usize| parameters.narrow(0, index, 1).unwrap().squeeze(0).unwrap();
            let sum = (x.broadcast_add(&part(0)).unwrap() + residual.as_tensor()).unwrap();
            let composed = candle_nn::ops::layer_norm_slow(&sum, &part(1), &part(2), 1e-12).unwrap();
            agree(&[&x, &residual, &parameters], &add_norm(&x, &residual, &parameters, 1e-12).unwrap(), &composed);
        }
    }

    #[test]
    fn what_is_frozen_gets_no_gradient() {
        let (x, weight) = (random((3, 4)), Tensor::ones((4, 2), DType::F32, &Device::Cpu).unwrap());
        let grads = product(&x, &weight).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&weight).is_none());
    }
}
