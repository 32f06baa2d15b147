//! Dense networks with ReLU between the layers.

use ndarray::{Array1, Array2, ArrayView2};

/// `x · w + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// `[in, out]`.
    pub weight: Array2<f32>,
    /// `[out]`.
    pub bias: Array1<f32>,
}

/// One or more dense layers, each fitting the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    layers: Vec<Dense>,
}

/// Layers that do not fit together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ShapeError {
    /// No layer at all.
    #[error("a network needs at least one layer")]
    Empty,
    /// A layer reads another number of values than it is given.
    #[error("layer {layer} reads {reads} values but is given {given}")]
    Mismatch {
        /// Which layer, from 0.
        layer: usize,
        /// Values it reads.
        reads: usize,
        /// Values it is given.
        given: usize,
    },
}

impl Mlp {
    /// Checks that the layers fit.
    ///
    /// # Errors
    /// Names the first layer that does not.
    pub fn new(layers: Vec<Dense>) -> Result<Self, ShapeError> {
        let Some(first) = layers.first() else { return Err(ShapeError::Empty) };
        let mut given = first.weight.nrows();
        for (layer, dense) in layers.iter().enumerate() {
            let (reads, gives) = dense.weight.dim();
            if reads != given {
                return Err(ShapeError::Mismatch { layer, reads, given });
            }
            if dense.bias.len() != gives {
                return Err(ShapeError::Mismatch { layer, reads: gives, given: dense.bias.len() });
            }
            given = gives;
        }
        Ok(Self { layers })
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[Dense] {
        &self.layers
    }

    /// Values read.
    pub fn n_in(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.weight.nrows())
    }

    /// Values given.
    pub fn n_out(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.weight.ncols())
    }

    /// Makes every output `output · scale + bias`, by changing the last layer.
    pub fn rescale(&mut self, scale: &Array1<f32>, bias: &Array1<f32>) {
        if let Some(last) = self.layers.last_mut() {
            last.weight *= scale;
            last.bias = &last.bias * scale + bias;
        }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, inputs: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut values = inputs.to_owned();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                values.mapv_inplace(|value| value.max(0.0));
            }
            values = values.dot(&layer.weight) + &layer.bias;
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn layers_must_fit_and_relu_sits_between() {
        let first = Dense { weight: array![[1.0, -1.0]], bias: array![0.0, 0.0] };
        let second = Dense { weight: array![[1.0], [10.0]], bias: array![0.5] };
        let network = Mlp::new(vec![first.clone(), second]).unwrap();
        assert_eq!(network.forward(array![[2.0], [-3.0]].view()), array![[2.5], [30.5]]);
        assert_eq!((network.n_in(), network.n_out()), (1, 1));
        let mut rescaled = network.clone();
        rescaled.rescale(&array![2.0], &array![-1.0]);
        assert_eq!(rescaled.forward(array![[2.0]].view()), array![[4.0]]);
        let wide = Dense { weight: Array2::zeros((3, 1)), bias: array![0.0] };
        assert_eq!(Mlp::new(vec![first, wide]), Err(ShapeError::Mismatch { layer: 1, reads: 3, given: 2 }));
        assert_eq!(Mlp::new(vec![]), Err(ShapeError::Empty));
    }
}
