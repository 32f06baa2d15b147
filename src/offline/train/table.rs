//! The n-gram table of the intent head under training.
//!
//! A step of a few hundred rows looks into a few thousand of the table's buckets, so it changes only those: a dense
//! table of 150 labels would be most of the time of a training run. Rare words must learn from few steps, so each
//! number has a learning rate of its own that falls with what it has seen (`AdaGrad`: Duchi et al. 2011, JMLR 12).

use ndarray::{Array2, ArrayView2};

use super::network::Dropout;
use crate::heads::ngram_weight;

/// `[buckets, labels]` and the sums of squared gradients that set its learning rates.
pub(super) struct NgramTable {
    pub(super) values: Array2<f32>,
    squares: Array2<f32>,
}

/// What some rows looked up: each row's buckets with their weights.
pub(super) struct Lookup {
    buckets: Vec<Vec<(usize, f32)>>,
    /// `[rows, labels]`: weighted sum of the buckets.
    pub(super) sums: Array2<f32>,
}

impl NgramTable {
    pub(super) fn new(n_buckets: usize, n_labels: usize) -> Self {
        Self { values: Array2::zeros((n_buckets, n_labels)), squares: Array2::zeros((n_buckets, n_labels)) }
    }

    pub(super) fn look_up<'a>(&self, rows: impl Iterator<Item = &'a [u32]>, dropout: &mut Dropout) -> Lookup {
        let buckets: Vec<Vec<(usize, f32)>> = rows
            .map(|row| {
                let weight = ngram_weight(row.len());
                row.iter()
                    .map(|bucket| (*bucket as usize, weight * dropout.factor()))
                    .filter(|(_, w)| *w > 0.0)
                    .collect()
            })
            .collect();
        let mut sums = Array2::zeros((buckets.len(), self.values.ncols()));
        for (mut sum, row) in sums.outer_iter_mut().zip(&buckets) {
            for (bucket, weight) in row {
                sum.scaled_add(*weight, &self.values.row(*bucket));
            }
        }
        Lookup { buckets, sums }
    }

    /// One step along `gradient`, that of the lookup's sums, with `decay` of the weights at the same rate.
    pub(super) fn step(&mut self, lookup: &Lookup, gradient: ArrayView2<'_, f32>, rate: f32, decay: f32) {
        for (gradient, row) in gradient.outer_iter().zip(&lookup.buckets) {
            for (bucket, weight) in row {
                let values = self.values.row_mut(*bucket);
                let squares = self.squares.row_mut(*bucket);
                ndarray::Zip::from(values).and(squares).and(gradient).for_each(|value, square, gradient| {
                    let gradient = gradient * weight;
                    *square += gradient * gradient;
                    *value -= rate * (gradient / (square.sqrt() + EPS) + decay * *value);
                });
            }
        }
    }
}

/// Keeps the first step of a number finite.
const EPS: f32 = 1e-8;

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn only_what_was_looked_up_changes_and_goes_downhill() {
        let mut table = NgramTable::new(4, 2);
        for _ in 0..50 {
            let lookup = table.look_up([&[1_u32, 2][..], &[2]].into_iter(), &mut Dropout::none());
            // Of half the squared distance to a target.
            let gradient = &lookup.sums - &array![[1.0, -1.0], [0.5, 0.0]];
            table.step(&lookup, gradient.view(), 0.3, 0.0);
        }
        let sums = table.look_up([&[1_u32, 2][..], &[2]].into_iter(), &mut Dropout::none()).sums;
        assert!((sums - array![[1.0, -1.0], [0.5, 0.0]]).iter().all(|difference: &f32| difference.abs() < 0.05));
        assert!(table.values.row(0).iter().chain(table.values.row(3)).all(|value| *value == 0.0));
    }
}
