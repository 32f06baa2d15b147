//! Dense networks with ReLU between the layers.

use ndarray::{Array1, Array2, ArrayView2, s};

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

    /// One network that gives the mean of what `members` give: their hidden values stand side by side.
    ///
    /// # Errors
    /// When there is none, or they differ in depth or in what they read or give.
    pub fn mean(members: &[Self]) -> Result<Self, ShapeError> {
        let first = members.first().ok_or(ShapeError::Empty)?;
        for member in members {
            let pairs = [(first.layers.len(), member.layers.len()), (first.n_in(), member.n_in())];
            for (reads, given) in pairs.into_iter().chain([(first.n_out(), member.n_out())]) {
                if reads != given {
                    return Err(ShapeError::Mismatch { layer: 0, reads, given });
                }
            }
        }
        let last = first.layers.len() - 1;
        let layers = (0..=last).map(|index| side_by_side(members, index, last)).collect();
        Self::new(layers)
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

/// The layer of that index, of all members: they share what the first one reads and what the last one gives.
fn side_by_side(members: &[Mlp], index: usize, last: usize) -> Dense {
    let of = |member: &Mlp| member.layers[index].weight.dim();
    let sum = |side: fn((usize, usize)) -> usize| members.iter().map(|member| side(of(member))).sum::<usize>();
    let shared = |is_shared: bool, side: fn((usize, usize)) -> usize| {
        if is_shared { side(of(&members[0])) } else { sum(side) }
    };
    let (n_in, n_out) = (shared(index == 0, |dim| dim.0), shared(index == last, |dim| dim.1));
    let share = if index == last { 1.0 / members.len() as f32 } else { 1.0 };
    let mut dense = Dense { weight: Array2::zeros((n_in, n_out)), bias: Array1::zeros(n_out) };
    let (mut row, mut column) = (0, 0);
    for Dense { weight, bias } in members.iter().map(|member| &member.layers[index]) {
        let (rows, columns) = weight.dim();
        dense.weight.slice_mut(s![row..row + rows, column..column + columns]).scaled_add(share, weight);
        dense.bias.slice_mut(s![column..column + columns]).scaled_add(share, bias);
        row += if index == 0 { 0 } else { rows };
        column += if index == last { 0 } else { columns };
    }
    dense
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

    #[test]
    fn the_mean_of_networks_is_a_network() {
        let dense = |n_in, n_out, seed: f32| Dense {
            weight: Array2::from_shape_fn((n_in, n_out), |(i, j)| ((i * 7 + j * 3) as f32 + seed).sin()),
            bias: Array1::from_shape_fn(n_out, |i| (i as f32 - seed).cos()),
        };
        let inputs = Array2::from_shape_fn((5, 4), |(i, j)| ((i + 2 * j) as f32).cos());
        for widths in [&[4, 2][..], &[4, 6, 2], &[4, 6, 3, 2]] {
            let member = |seed: f32| {
                let layers = widths.windows(2).map(|pair| dense(pair[0], pair[1], seed + pair[0] as f32));
                Mlp::new(layers.collect()).unwrap()
            };
            let members = [member(0.3), member(1.7), member(2.9)];
            let said = members.iter().map(|member| member.forward(inputs.view()));
            let expected = said.fold(Array2::<f32>::zeros((5, 2)), |sum, said| sum + said / 3.0);
            let said = Mlp::mean(&members).unwrap().forward(inputs.view());
            assert!((said - expected).iter().all(|difference| difference.abs() < 1e-5), "{widths:?}");
        }
        let (narrow, wide) = (Mlp::new(vec![dense(4, 2, 0.1)]), Mlp::new(vec![dense(4, 3, 0.1)]));
        let unlike = Mlp::mean(&[narrow.unwrap(), wide.unwrap()]);
        assert_eq!(unlike, Err(ShapeError::Mismatch { layer: 0, reads: 2, given: 3 }));
        assert_eq!(Mlp::mean(&[]), Err(ShapeError::Empty));
    }
}
