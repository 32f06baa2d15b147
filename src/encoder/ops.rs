//! What stands between the matrix products, for the CPU: bias, GELU, residual and layer norm, each in one pass.
//!
//! candle has all of it as separate operations, and they cost as much as a third of the products: a scalar `erff`,
//! a tensor made and read again for each step, and a pool of its own with a spinning thread per core, whatever
//! `--threads` says. These run on the same threads as the products and write where they read. Loops over plain
//! slices, which the compiler vectorises. Other devices use candle's operations.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// `x + bias`, by row.
pub(super) struct AddBias;

/// `gelu(x + bias)`, by row; exact GELU, not the tanh approximation.
pub(super) struct AddBiasGelu;

/// `layer_norm(x + bias + residual)`, by row. The third argument is what [`norm_parameters`] makes.
pub(super) struct AddNorm {
    pub(super) eps: f32,
}

/// Numbers that one thread takes at a time: about 10 µs of work, so that handing it out costs little.
const NUMBERS_PER_TASK: usize = 32 * 1024;
/// Partial sums of a row, so that adding is not one long chain of dependent additions.
const LANES: usize = 16;

impl InplaceOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_l: &Layout, bias: &CpuStorage, bias_l: &Layout) -> Result<()> {
        let bias = read(bias, bias_l)?;
        for_each_row(write(x, x_l)?, bias.len(), |_, row| {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x += bias;
            }
        })
    }
}

impl InplaceOp2 for AddBiasGelu {
    fn name(&self) -> &'static str {
        "add-bias-gelu"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_l: &Layout, bias: &CpuStorage, bias_l: &Layout) -> Result<()> {
        let bias = read(bias, bias_l)?;
        for_each_row(write(x, x_l)?, bias.len(), |_, row| {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x = gelu(*x + bias);
            }
        })
    }
}

impl InplaceOp3 for AddNorm {
    fn name(&self) -> &'static str {
        "add-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_l: &Layout,
        residual: &CpuStorage,
        residual_l: &Layout,
        parameters: &CpuStorage,
        parameters_l: &Layout,
    ) -> Result<()> {
        let (x, residual, parameters) = (write(x, x_l)?, read(residual, residual_l)?, read(parameters, parameters_l)?);
        let width = parameters.len() / 3;
        if residual.len() != x.len() {
            bail!("a residual of {} numbers for {}", residual.len(), x.len());
        }
        let (bias, parameters) = parameters.split_at(width);
        let (scale, shift) = parameters.split_at(width);
        for_each_row(x, width, |at, row| {
            for ((x, residual), bias) in row.iter_mut().zip(&residual[at..]).zip(bias) {
                *x += residual + bias;
            }
            let (mean, factor) = moments(row, self.eps);
            for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
                *x = (*x - mean) * factor * scale + shift;
            }
        })
    }
}

/// The parameters of [`AddNorm`], `[3, width]`: bias, then the norm's scale and shift.
pub(super) fn norm_parameters(bias: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    Tensor::stack(&[bias, scale, shift], 0)
}

/// Mean of a row, and the reciprocal of its standard deviation.
pub(super) fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(row, |x| x) / n;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
    (mean, (variance + eps).sqrt().recip())
}

/// Calls `work` with each row and where it starts.
pub(super) fn for_each_row(x: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> Result<()> {
    if width == 0 || !x.len().is_multiple_of(width) {
        bail!("{} numbers are not rows of {width}", x.len());
    }
    let task = (NUMBERS_PER_TASK / width).max(1) * width;
    let rows = |start: usize, x: &mut [f32]| {
        x.chunks_exact_mut(width).enumerate().for_each(|(index, row)| work(start + index * width, row));
    };
    if x.len() <= task {
        rows(0, x);
    } else {
        x.par_chunks_mut(task).enumerate().for_each(|(index, x)| rows(index * task, x));
    }
    Ok(())
}

pub(super) fn read<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a tensor is not contiguous") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

pub(super) fn write<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (Some((start, end)), CpuStorage::F32(numbers)) = (layout.contiguous_offsets(), storage) else {
        bail!("a tensor is not contiguous f32")
    };
    Ok(&mut numbers[start..end])
}

fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&x| term(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += term(x);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The derivative of GELU: `Φ(x) + x φ(x)`.
pub(super) fn gelu_slope(x: f32) -> f32 {
    let density = (-0.5 * x * x).exp() * (std::f32::consts::FRAC_1_SQRT_2 * std::f32::consts::FRAC_2_SQRT_PI * 0.5);
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
}

/// The error function as a quotient of polynomials in `x²`, within 4e-7 of the true value; no branches, so that a
/// loop over it vectorises. Coefficients: Eigen 3.3, `generic_fast_erf_float` (also XLA's).
#[expect(clippy::excessive_precision, reason = "as published")]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_258_013_06e-10;
    for c in [
        2.770_681_424_959_02e-8,
        -2.101_024_020_825_08e-6,
        -5.692_506_394_623_46e-5,
        -7.349_906_303_268_55e-4,
        -2.954_599_808_540_25e-3,
        -1.609_603_332_624_15e-2,
    ] {
        p = p * s + c;
    }
    let mut q = -1.456_607_184_649_96e-5;
    for c in [-2.133_740_552_789_05e-4, -1.682_826_974_382_03e-3, -7.373_329_167_204_68e-3, -1.426_473_904_951_89e-2] {
        q = q * s + c;
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_nn::{LayerNorm, Module as _};

    use super::*;

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    fn random(rows: usize, width: usize) -> Tensor {
        Tensor::randn(0.0_f32, 3.0, (rows, width), &Device::Cpu).unwrap()
    }

    #[test]
    fn erf_is_close_everywhere() {
        for step in -6_000..=6_000 {
            let x = step as f32 / 1_000.0;
            let exact = Tensor::new(x, &Device::Cpu).unwrap().erf().unwrap().to_scalar::<f32>().unwrap();
            assert!((erf(x) - exact).abs() < 4e-7, "erf({x}) = {exact}, not {}", erf(x));
        }
        assert!(gelu(f32::NAN).is_nan(), "nonsense stays visible");
    }

    /// Rows of one task and of several, against candle's own operations.
    #[test]
    fn fused_passes_give_what_separate_ones_give() {
        for rows in [1, 7, 200] {
            let width = 384;
            let (x, residual) = (random(rows, width), random(rows, width));
            let row = |seed| random(1, width).squeeze(0).unwrap().affine(1.0, seed).unwrap();
            let (bias, scale, shift) = (row(0.0), row(1.0), row(0.5));
            let biased = x.broadcast_add(&bias).unwrap();

            let normed = LayerNorm::new(scale.clone(), shift.clone(), 1e-12).forward(&(&biased + &residual).unwrap());
            let own = x.copy().unwrap();
            own.inplace_op3(&residual, &norm_parameters(&bias, &scale, &shift).unwrap(), &AddNorm { eps: 1e-12 })
                .unwrap();
            assert!(difference(&own, &normed.unwrap()) < 1e-4);

            let own = x.copy().unwrap();
            own.inplace_op2(&bias, &AddBiasGelu).unwrap();
            assert!(difference(&own, &biased.gelu_erf().unwrap()) < 1e-5);

            let own = x.copy().unwrap();
            own.inplace_op2(&bias, &AddBias).unwrap();
            assert!(difference(&own, &biased) == 0.0);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let x = random(2, 6);
        assert!(x.inplace_op2(&Tensor::zeros(5, candle_core::DType::F32, &Device::Cpu).unwrap(), &AddBias).is_err());
        assert!(x.t().unwrap().inplace_op2(&random(1, 2), &AddBias).is_err());
        assert!(x.inplace_op3(&random(1, 6), &random(3, 6), &AddNorm { eps: 1e-12 }).is_err());
    }
}
