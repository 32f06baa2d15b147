//! Weights as bytes: one scale for each output column and unit of work, packed once for the kernels.

use candle_core::{Result, Tensor};

use super::kernels::{PANEL, Panels, QUAD, ZERO};

/// A matrix of bytes, `[width, columns]`, as [`Panels`].
#[derive(Debug)]
pub(super) struct Matrix {
    values: Vec<i8>,
    scales: Vec<f32>,
    corrections: Vec<i32>,
    width: usize,
}

/// A matrix of floats `[in, out]`, to take parts of.
#[derive(Debug)]
pub(super) struct Dense {
    values: Vec<f32>,
    n_out: usize,
}

// === impl Dense ===

impl Dense {
    pub(super) fn new(weight: &Tensor) -> Result<Self> {
        let (_, n_out) = weight.dims2()?;
        Ok(Self { values: weight.flatten_all()?.to_vec1()?, n_out })
    }

    pub(super) fn n_out(&self) -> usize {
        self.n_out
    }

    /// The part of `n_in` rows and `n_out` columns from the given ones on, as bytes.
    ///
    /// A column's largest weight becomes 127, so that a weight is off by at most a 254th of it.
    pub(super) fn quantise(&self, (row, n_in): (usize, usize), (column, n_out): (usize, usize)) -> Matrix {
        let weight = |k: usize, c: usize| self.values[(row + k) * self.n_out + column + c];
        let mut largest = vec![0.0_f32; n_out];
        for k in 0..n_in {
            for (c, largest) in largest.iter_mut().enumerate() {
                *largest = largest.max(weight(k, c).abs());
            }
        }
        let factors: Vec<f32> = largest.iter().map(|max| if *max > 0.0 { 127.0 / max } else { 0.0 }).collect();
        let mut values = Vec::with_capacity(n_in * n_out);
        let mut corrections = vec![0_i32; n_out];
        for first in (0..n_out).step_by(PANEL) {
            for quad in (0..n_in).step_by(QUAD) {
                for c in first..first + PANEL {
                    for k in quad..quad + QUAD {
                        // Rounded in the low bits of the sum: the library's rounding is a call for each weight.
                        let value = (weight(k, c) * factors[c] + 12_582_912.0).to_bits() as i8;
                        corrections[c] -= ZERO * i32::from(value);
                        values.push(value);
                    }
                }
            }
        }
        Matrix { values, scales: largest.iter().map(|max| max / 127.0).collect(), corrections, width: n_in }
    }
}

// === impl Matrix ===

impl Matrix {
    /// Matrices of one width, side by side.
    pub(super) fn join<const N: usize>(parts: [Self; N]) -> Self {
        let mut joined = Self { values: Vec::new(), scales: Vec::new(), corrections: Vec::new(), width: 0 };
        for part in parts {
            joined.values.extend(part.values);
            joined.scales.extend(part.scales);
            joined.corrections.extend(part.corrections);
            joined.width = part.width;
        }
        joined
    }

    pub(super) fn n_columns(&self) -> usize {
        self.scales.len()
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
