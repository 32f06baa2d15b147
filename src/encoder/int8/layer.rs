//! The weights of the layers, cut into units of work that threads can share.
//!
//! A unit of attention is the heads of one panel: their queries, keys and values, their attention, and their share of the
//! output product. A unit of the inner layer is some of its columns: up, GELU, and their share of the way down.
//! Shares are sums over inner indices, so members of a team need to meet only where shares are added up. Every unit
//! quantises its own activations, whoever runs it: a text's embedding is the same, bit for bit, alone or in a batch,
//! with one thread or several.

use candle_core::{Result, Tensor};

use super::kernels::{Bytes, GELU_SHIFT, Isa, Norm, Onto, PANEL, Panels, Qkv, Scratch, Target, ZERO};
use super::weights::{Dense, Matrix, smoothing};

/// Widest unit of the inner layer: its weights fit into the nearest caches.
const MAX_INNER: usize = 384;

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention: Vec<AttentionUnit>,
    pub(super) attention_norm: NormWeights,
    pub(super) inner: Vec<InnerUnit>,
    pub(super) output_norm: NormWeights,
}

/// The tensors of one layer: weights `[in, out]`, norms `[3, width]` (bias, scale, shift).
pub(in super::super) struct LayerTensors<'a> {
    /// The largest magnitudes that were seen in each column of the input of `qkv`, and of that of `up`.
    pub(in super::super) peaks: &'a [Vec<f32>; 2],
    pub(in super::super) qkv: &'a Tensor,
    pub(in super::super) qkv_bias: &'a Tensor,
    pub(in super::super) attention_out: &'a Tensor,
    pub(in super::super) attention_norm: &'a Tensor,
    pub(in super::super) up: &'a Tensor,
    pub(in super::super) up_bias: &'a Tensor,
    pub(in super::super) down: &'a Tensor,
    pub(in super::super) output_norm: &'a Tensor,
    pub(in super::super) eps: f64,
}

/// The heads of one panel.
#[derive(Debug)]
pub(super) struct AttentionUnit {
    /// Three panels: queries, keys, values.
    qkv: Matrix,
    bias: [Vec<f32>; 3],
    out: Matrix,
    head_size: usize,
}

/// Some columns of the inner layer.
#[derive(Debug)]
pub(super) struct InnerUnit {
    up: Matrix,
    bias: Vec<f32>,
    down: Matrix,
}

/// A norm, and the bias of the product before it.
#[derive(Debug)]
pub(super) struct NormWeights {
    bias: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    /// What columns are multiplied with before they become bytes; the weights that those meet are divided by it.
    steps: Vec<f32>,
    eps: f32,
}

/// What a unit writes on the way; kept for its memory.
#[derive(Debug, Default)]
pub(super) struct UnitScratch {
    floats: [Vec<f32>; 4],
    attention: Scratch,
}

/// Rows as bytes, as a unit makes them.
#[derive(Debug, Default)]
pub(super) struct UnitBytes {
    values: Vec<u8>,
    scales: Vec<f32>,
}

// === impl Layer ===

impl Layer {
    /// Quantises a layer whose heads have `head_size` columns, and whose output the layer of `next` reads.
    pub(super) fn new(tensors: &LayerTensors<'_>, next: Option<&LayerTensors<'_>>, head_size: usize) -> Result<Self> {
        let [before_qkv, before_up] = tensors.peaks.each_ref().map(|peaks| smoothing(peaks));
        let (qkv, out) = (Dense::new(tensors.qkv)?.scaled(&before_qkv), Dense::new(tensors.attention_out)?);
        let (up, down) = (Dense::new(tensors.up)?.scaled(&before_up), Dense::new(tensors.down)?);
        let (qkv_bias, up_bias) = (tensors.qkv_bias.to_vec1::<f32>()?, tensors.up_bias.to_vec1::<f32>()?);
        let (hidden, inner) = (out.n_out(), up.n_out());
        let attention = (0..hidden / PANEL).map(|unit| {
            let columns = [0, 1, 2].map(|part| part * hidden + unit * PANEL);
            AttentionUnit {
                qkv: Matrix::join(columns.map(|column| qkv.quantise((0, hidden), (column, PANEL), ZERO))),
                bias: columns.map(|column| qkv_bias[column..column + PANEL].to_vec()),
                out: out.quantise((unit * PANEL, PANEL), (0, hidden), ZERO),
                head_size,
            }
        });
        let width = inner_width(inner);
        let units: Vec<InnerUnit> = (0..inner)
            .step_by(width)
            .map(|column| InnerUnit {
                up: up.quantise((0, hidden), (column, width), ZERO),
                bias: up_bias[column..column + width].to_vec(),
                down: down.quantise((column, width), (0, hidden), 0),
            })
            .collect();
        let mut output_norm = NormWeights::new(tensors.output_norm, next.map(|next| &next.peaks[0]), tensors.eps)?;
        // What GELU is shifted by goes through the product as a constant.
        for unit in &units {
            for (bias, of_ones) in output_norm.bias.iter_mut().zip(unit.down.of_ones()) {
                *bias -= GELU_SHIFT * of_ones;
            }
        }
        Ok(Self {
            attention: attention.collect(),
            attention_norm: NormWeights::new(tensors.attention_norm, Some(&tensors.peaks[1]), tensors.eps)?,
            inner: units,
            output_norm,
        })
    }

    /// Units of attention, and of the inner layer.
    pub(super) fn n_units(&self) -> usize {
        self.attention.len().max(self.inner.len())
    }
}

/// Widest whole number of panels that divides the inner layer and is not above [`MAX_INNER`].
fn inner_width(inner: usize) -> usize {
    (1..=MAX_INNER / PANEL)
        .rev()
        .map(|panels| panels * PANEL)
        .find(|width| inner.is_multiple_of(*width))
        .unwrap_or(inner)
}

// === impl AttentionUnit ===

impl AttentionUnit {
    /// What these heads take from sequences of the given lengths, `[tokens, PANEL]`.
    pub(super) fn attend(
        &self,
        isa: Isa,
        x: Bytes<'_>,
        lengths: &[usize],
        scratch: &mut UnitScratch,
        out: &mut UnitBytes,
    ) {
        let n_tokens = x.scales.len();
        let n_numbers = n_tokens * PANEL;
        let UnitScratch { floats: [q, k, v, context], attention } = scratch;
        for (index, part) in [&mut *q, &mut *k, &mut *v].into_iter().enumerate() {
            part.resize(n_numbers, 0.0);
            let bias = Onto::Bias(&self.bias[index]);
            isa.product(x, self.qkv.panel(index), Target { values: part, stride: PANEL, onto: bias });
        }
        context.resize(n_numbers, 0.0);
        let mut start = 0;
        for length in lengths {
            let rows = start..start + length * PANEL;
            let qkv = Qkv { q: &q[rows.clone()], k: &k[rows.clone()], v: &v[rows.clone()] };
            isa.attend(qkv, self.head_size, &mut context[rows.clone()], attention);
            start = rows.end;
        }
        out.resize(n_tokens, PANEL);
        isa.quantise(context, PANEL, &mut out.values, &mut out.scales);
    }

    /// The operands of this unit's share of the output, `[tokens, hidden]`.
    pub(super) fn share<'a>(&'a self, context: &'a UnitBytes) -> (Bytes<'a>, Panels<'a>) {
        (context.as_bytes(PANEL), self.out.panels())
    }
}

// === impl InnerUnit ===

impl InnerUnit {
    /// This unit's share of the output, onto `out`, `[tokens, hidden]`. `bytes` are for their memory.
    pub(super) fn run(
        &self,
        isa: Isa,
        x: Bytes<'_>,
        scratch: &mut UnitScratch,
        bytes: &mut UnitBytes,
        out: &mut [f32],
        onto: Onto<'_>,
    ) {
        let (n_tokens, width) = (x.scales.len(), self.bias.len());
        let [inner, ..] = &mut scratch.floats;
        inner.resize(n_tokens * width, 0.0);
        isa.product(x, self.up.panels(), Target { values: inner, stride: width, onto: Onto::Nothing });
        bytes.resize(n_tokens, width);
        isa.gelu_quantise(inner, &self.bias, &mut bytes.values, &mut bytes.scales);
        isa.product(
            bytes.as_bytes(width),
            self.down.panels(),
            Target { values: out, stride: self.down.n_columns(), onto },
        );
    }
}

// === impl NormWeights ===

impl NormWeights {
    /// `peaks`: of what comes out of it; none where nothing makes bytes of that.
    pub(super) fn new(parameters: &Tensor, peaks: Option<&Vec<f32>>, eps: f64) -> Result<Self> {
        let part = |index| parameters.get(index)?.to_vec1::<f32>();
        let steps = match peaks {
            Some(peaks) => smoothing(peaks).into_iter().map(f32::recip).collect(),
            None => vec![1.0; parameters.dim(1)?],
        };
        Ok(Self { bias: part(0)?, scale: part(1)?, shift: part(2)?, steps, eps: eps as f32 })
    }

    pub(super) fn as_norm(&self) -> Norm<'_> {
        Norm { bias: &self.bias, scale: &self.scale, shift: &self.shift, steps: &self.steps, eps: self.eps }
    }
}

// === impl UnitBytes ===

impl UnitBytes {
    fn resize(&mut self, n_tokens: usize, width: usize) {
        self.values.resize(n_tokens * width, 0);
        self.scales.resize(n_tokens, 0.0);
    }

    fn as_bytes(&self, width: usize) -> Bytes<'_> {
        Bytes { values: &self.values, width, scales: &self.scales }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_divide_the_inner_layer() {
        assert_eq!(inner_width(1_536), 384);
        assert_eq!(inner_width(3_072), 384);
        assert_eq!(inner_width(1_024), 256);
        assert_eq!(inner_width(64), 64);
    }
}
