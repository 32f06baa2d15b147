//! Weights as bytes: one scale for each output column and unit of work, packed once for the kernels.

use candle_core::{Result, Tensor, bail};

use super::kernels::{PANEL, Panels, QUAD};

/// A matrix of bytes, `[width, columns]`, as [`Panels`].
#[derive(Debug)]
pub(super) struct Matrix {
    values: Vec<i8>,
    scales: Vec<f32>,
    corrections: Vec<i32>,
    /// Of each column.
    sums: Vec<i32>,
    width: usize,
}

/// A matrix of floats `[in, out]`, to take parts of.
#[derive(Debug)]
pub(super) struct Dense {
    values: Vec<f32>,
    n_out: usize,
}

/// How far a column's large numbers move from activations to weights: 0 not at all, 1 until all columns are alike. Chosen
/// by the embeddings' direction on our own prompts, where 0.5 and 0.7 are as good.
const SMOOTHING: f32 = 0.6;
/// Columns that were never seen to hold anything are not blown up further than this.
const LEAST_PEAK: f32 = 1e-3;

/// What weights are multiplied with, input by input, and activations divided by before they become bytes.
///
/// A handful of columns hold numbers ten times as large as the rest, and a row's bytes have one scale: without this
/// they leave the rest a few steps (Xiao et al. 2023, arXiv 2211.10438). `peaks` are the columns' largest magnitudes.
pub(super) fn smoothing(peaks: &[f32]) -> Vec<f32> {
    peaks.iter().map(|peak| peak.max(LEAST_PEAK).powf(SMOOTHING)).collect()
}

// === impl Dense ===

impl Dense {
    pub(super) fn new(weight: &Tensor) -> Result<Self> {
        let (_, n_out) = weight.dims2()?;
        let values: Vec<f32> = weight.flatten_all()?.to_vec1()?;
        // In bytes, what is no number would look like one.
        if !values.iter().all(|value| value.is_finite()) {
            bail!("weights of the encoder are not finite numbers");
        }
        Ok(Self { values, n_out })
    }

    /// With its inputs multiplied by these factors.
    pub(super) fn scaled(mut self, factors: &[f32]) -> Self {
        for (row, factor) in self.values.chunks_exact_mut(self.n_out).zip(factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        self
    }

    pub(super) fn n_out(&self) -> usize {
        self.n_out
    }

    /// The part of `n_in` rows and `n_out` columns from the given ones on, as bytes, for activations whose zero is the
    /// byte `zero`.
    ///
    /// A column's largest weight becomes 127, so that a weight is off by at most a 254th of it.
    pub(super) fn quantise(&self, (row, n_in): (usize, usize), (column, n_out): (usize, usize), zero: i32) -> Matrix {
        let weight = |k: usize, c: usize| self.values[(row + k) * self.n_out + column + c];
        let mut largest = vec![0.0_f32; n_out];
        for k in 0..n_in {
            for (c, largest) in largest.iter_mut().enumerate() {
                *largest = largest.max(weight(k, c).abs());
            }
        }
        let factors: Vec<f32> = largest.iter().map(|max| if *max > 0.0 { 127.0 / max } else { 0.0 }).collect();
        let mut values = Vec::with_capacity(n_in * n_out);
        let mut sums = vec![0_i32; n_out];
        for first in (0..n_out).step_by(PANEL) {
            for quad in (0..n_in).step_by(QUAD) {
                for c in first..first + PANEL {
                    for k in quad..quad + QUAD {
                        // Rounded in the low bits of the sum: the library's rounding is a call for each weight.
                        let value = (weight(k, c) * factors[c] + 12_582_912.0).to_bits() as i8;
                        sums[c] += i32::from(value);
                        values.push(value);
                    }
                }
            }
        }
        Matrix {
            values,
            scales: largest.iter().map(|max| max / 127.0).collect(),
            corrections: sums.iter().map(|sum| -zero * sum).collect(),
            sums,
            width: n_in,
        }
    }
}

// === impl Matrix ===

impl Matrix {
    /// Matrices of one width, side by side.
    pub(super) fn join<const N: usize>(parts: [Self; N]) -> Self {
        let mut joined =
            Self { values: Vec::new(), scales: Vec::new(), corrections: Vec::new(), sums: Vec::new(), width: 0 };
        for part in parts {
            joined.values.extend(part.values);
            joined.scales.extend(part.scales);
            joined.corrections.extend(part.corrections);
            joined.sums.extend(part.sums);
            joined.width = part.width;
        }
        joined
    }

    pub(super) fn n_columns(&self) -> usize {
        self.scales.len()
    }

    /// What inputs of 1 each come to, column by column.
    pub(super) fn of_ones(&self) -> impl Iterator<Item = f32> {
        self.sums.iter().zip(&self.scales).map(|(sum, scale)| *sum as f32 * scale)
    }

    /// All of it.
    pub(super) fn panels(&self) -> Panels<'_> {
        Panels { values: &self.values, scales: &self.scales, corrections: &self.corrections }
    }

    /// One panel.
    pub(super) fn panel(&self, index: usize) -> Panels<'_> {
        let (columns, size) = (index * PANEL..(index + 1) * PANEL, PANEL * self.width);
        Panels {
            values: &self.values[index * size..(index + 1) * size],
            scales: &self.scales[columns.clone()],
            corrections: &self.corrections[columns],
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn matrix(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (values.len() / PANEL, PANEL), &Device::Cpu).unwrap()
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let mut values = [0.5; QUAD * PANEL];
        assert!(Dense::new(&matrix(&values)).is_ok());
        for nonsense in [f32::NAN, f32::INFINITY] {
            values[7] = nonsense;
            assert!(Dense::new(&matrix(&values)).unwrap_err().to_string().contains("not finite"));
        }
    }

    #[test]
    fn sums_of_columns_are_those_of_the_bytes() {
        let values: Vec<f32> = (0..QUAD * PANEL).map(|at| (at as f32 * 0.37).sin()).collect();
        let bytes = Dense::new(&matrix(&values)).unwrap().quantise((0, QUAD), (0, PANEL), 3);
        for (column, of_ones) in bytes.of_ones().enumerate() {
            let exact: f32 = values.iter().skip(column).step_by(PANEL).sum();
            assert!((of_ones - exact).abs() < QUAD as f32 * bytes.scales[column]);
            assert_eq!(bytes.corrections[column], -3 * bytes.sums[column]);
        }
    }

    #[test]
    fn smoothing_takes_from_columns_what_it_gives_to_weights() {
        let factors = smoothing(&[0.0, 1.0, 10.0]);
        assert!(factors[0] > 0.0 && (factors[1] - 1.0).abs() < 1e-6 && factors[2] > 3.0 && factors[2] < 10.0);
        let scaled = Dense::new(&matrix(&[1.0; 3 * PANEL])).unwrap().scaled(&factors);
        assert!(scaled.values.chunks_exact(PANEL).zip(&factors).all(|(row, factor)| row == [*factor; PANEL]));
    }
}
