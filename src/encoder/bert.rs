//! The BERT graph over ragged batches.
//!
//! Devlin et al. 2018 (arXiv 1810.04805), post-norm, exact GELU; pooled and normalised as sentence-transformers does
//! for all-MiniLM-L6-v2: mean over all tokens, then L2. Sequences are sorted by length and concatenated; runs of equal
//! length share one attention product.

use std::sync::Arc;
use std::time::Duration;

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{Config, HiddenAct, PositionEmbeddingType};

use super::attention::attend;
use super::int8::{Isa, LayerTensors, Stack, Stage};
use super::layers::{Dense, Norm, Product};
use super::noise::Noise;
use super::{EncoderError, EncoderOptions, Tokens, gradient};

/// A batch of sequences, concatenated in order of length.
#[derive(Debug)]
pub struct RaggedBatch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    runs: Arc<[Run]>,
    order: Vec<usize>,
}

/// Neighbouring sequences of equal length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) n_sequences: usize,
    pub(super) length: usize,
}

#[derive(Debug)]
pub(super) struct Bert {
    /// Empty once quantised, as `layers`.
    word: Tensor,
    /// Position and (constant) type embedding, summed: `[positions, hidden]`.
    position: Tensor,
    norm: Norm,
    pub(super) layers: Vec<Layer>,
    quantised: Option<Stack>,
    n_heads: usize,
    hidden: usize,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) qkv: Dense,
    /// Its bias is part of the norm that follows, as is that of `down`.
    pub(super) attention_out: Product,
    pub(super) attention_norm: Norm,
    pub(super) up: Dense,
    pub(super) down: Product,
    pub(super) output_norm: Norm,
}

// === impl RaggedBatch ===

impl RaggedBatch {
    /// Arranges `texts` for one pass.
    pub fn new(texts: &[&Tokens]) -> Self {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| texts[index].ids.len());
        let n_tokens = texts.iter().map(|tokens| tokens.ids.len()).sum();
        let (mut ids, mut positions) = (Vec::with_capacity(n_tokens), Vec::with_capacity(n_tokens));
        let mut runs: Vec<Run> = Vec::new();
        for &index in &order {
            let text = &texts[index].ids;
            ids.extend_from_slice(text);
            positions.extend(0..text.len() as u32);
            match runs.last_mut() {
                Some(run) if run.length == text.len() => run.n_sequences += 1,
                _ => runs.push(Run { n_sequences: 1, length: text.len() }),
            }
        }
        Self { ids, positions, runs: runs.into(), order }
    }

    /// Each sequence's word pieces, ascending.
    fn lengths(&self) -> Vec<usize> {
        self.runs.iter().flat_map(|run| std::iter::repeat_n(run.length, run.n_sequences)).collect()
    }

    /// For each row of the output, the index of its text in the input.
    pub fn order(&self) -> &[usize] {
        &self.order
    }
}

// === impl Bert ===

impl Bert {
    pub(super) fn load(config: &Config, vb: &VarBuilder<'_>) -> std::result::Result<Self, EncoderError> {
        if config.hidden_act != HiddenAct::Gelu || config.position_embedding_type != PositionEmbeddingType::Absolute {
            return Err(EncoderError::Unsupported("only GELU and absolute positions are known".into()));
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(EncoderError::Unsupported(format!(
                "hidden size {} does not divide into {} heads",
                config.hidden_size, config.num_attention_heads
            )));
        }
        // Some exports keep the wrapping model's prefix.
        let vb = if vb.contains_tensor("bert.embeddings.LayerNorm.weight") { vb.pp("bert") } else { vb.clone() };
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = vb.pp("embeddings");
        let position = embeddings
            .get((config.max_position_embeddings, hidden), "position_embeddings.weight")?
            .broadcast_add(&embeddings.get((config.type_vocab_size, hidden), "token_type_embeddings.weight")?.i(0)?)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(config, &vb.pp("encoder").pp("layer").pp(index)))
            .collect::<Result<_>>()?;
        Ok(Self {
            word: embeddings.get((config.vocab_size, hidden), "word_embeddings.weight")?,
            position,
            norm: Norm::load(&Tensor::zeros(hidden, vb.dtype(), vb.device())?, eps, &embeddings.pp("LayerNorm"))?,
            layers,
            quantised: None,
            n_heads: config.num_attention_heads,
            hidden,
        })
    }

    pub(super) fn hidden_size(&self) -> usize {
        self.hidden
    }

    pub(super) fn max_positions(&self) -> usize {
        self.position.dims()[0]
    }

    /// `[sequences, hidden]` f32, rows L2-normalised, in the batch's own order.
    pub(super) fn forward(&self, batch: &RaggedBatch, device: &Device, noise: &mut Noise) -> Result<Tensor> {
        let ids = Tensor::new(batch.ids.as_slice(), device)?;
        if let Some(stack) = &self.quantised {
            return stack.forward(&ids, batch.lengths());
        }
        let hidden = self.run_layers(batch, &ids, noise, |_| Ok(()))?;
        let pooled = self.pool(&hidden, batch)?;
        let norms = pooled.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
        pooled.broadcast_div(&norms)
    }

    /// The layers as a graph: `[tokens, hidden]`. `see` is shown what enters each layer's two wide products.
    fn run_layers(
        &self,
        batch: &RaggedBatch,
        ids: &Tensor,
        noise: &mut Noise,
        mut see: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let positions = Tensor::new(batch.positions.as_slice(), ids.device())?;
        let words = self.word.index_select(ids, 0)?;
        let mut hidden = noise.apply(self.norm.forward(words, &self.position.index_select(&positions, 0)?)?)?;
        for layer in &self.layers {
            see(&hidden)?;
            let context = attend(&layer.qkv.forward(&hidden)?, &batch.runs, self.n_heads)?;
            let context = noise.apply(layer.attention_out.forward(&context)?)?;
            hidden = layer.attention_norm.forward(context, &hidden)?;
            see(&hidden)?;
            let inner = layer.up.forward_gelu(&hidden)?;
            hidden = layer.output_norm.forward(noise.apply(layer.down.forward(&inner)?)?, &hidden)?;
        }
        Ok(hidden)
    }

    /// The largest magnitudes in each column of what enters each layer's two wide products.
    fn peaks(&self, sample: &RaggedBatch) -> Result<Vec<[Vec<f32>; 2]>> {
        let ids = Tensor::new(sample.ids.as_slice(), &Device::Cpu)?;
        let mut peaks = Vec::new();
        self.run_layers(sample, &ids, &mut Noise::none(), |hidden| {
            peaks.push(hidden.abs()?.max(0)?.to_vec1()?);
            Ok(())
        })?;
        let mut peaks = peaks.into_iter();
        Ok(std::iter::from_fn(|| Some([peaks.next()?, peaks.next()?])).collect())
    }

    /// Whether [`Self::quantise`] has kernels for these shapes.
    pub(super) fn fits_int8(&self) -> bool {
        let inner = self.layers.first().map_or(0, |layer| layer.up.bias.elem_count());
        inner > 0 && Stack::fits(self.hidden, inner, self.hidden / self.n_heads)
    }

    /// Puts 8-bit layers in place of the ones in f32, which it drops. `sample` shows what numbers are usual.
    pub(super) fn quantise(&mut self, options: &EncoderOptions, sample: &RaggedBatch) -> Result<()> {
        let peaks = self.peaks(sample)?;
        let layers = std::mem::take(&mut self.layers);
        let tensors: Vec<LayerTensors<'_>> =
            layers.iter().zip(&peaks).map(|(layer, peaks)| layer.tensors(peaks)).collect();
        let isa = options.isa.unwrap_or_else(Isa::best);
        let head_size = self.hidden / self.n_heads;
        let norm = (&self.norm.parameters, self.norm.eps);
        self.quantised =
            Some(Stack::new([&self.word, &self.position], norm, &tensors, head_size, isa, options.threads)?);
        self.word = Tensor::zeros((0, self.hidden), DType::F32, &Device::Cpu)?;
        Ok(())
    }

    /// See [`Stack::stage_times`]; `None` without 8-bit layers.
    pub(super) fn stage_times(&self, batch: &RaggedBatch) -> Option<Result<[Duration; Stage::ALL.len()]>> {
        self.quantised.as_ref().map(|stack| stack.stage_times(&batch.ids, batch.lengths()))
    }

    /// The instruction set of the 8-bit layers.
    pub(super) fn isa(&self) -> Option<Isa> {
        self.quantised.as_ref().map(Stack::isa)
    }

    /// Mean over each sequence's tokens: `[tokens, hidden]` to `[sequences, hidden]`.
    fn pool(&self, hidden: &Tensor, batch: &RaggedBatch) -> Result<Tensor> {
        let mut pooled = Vec::with_capacity(batch.runs.len());
        let mut start = 0;
        for run in batch.runs.iter() {
            let n_tokens = run.n_sequences * run.length;
            let rows = hidden.detach().narrow(0, start, n_tokens)?;
            pooled.push(rows.reshape((run.n_sequences, run.length, self.hidden))?.mean(1)?);
            start += n_tokens;
        }
        let result = Tensor::cat(&pooled, 0)?;
        if !hidden.track_op() {
            return Ok(result);
        }
        let runs = Arc::clone(&batch.runs);
        gradient::known("pool", hidden, result, move |grad| {
            // Each token has its share of its sequence's gradient.
            let (mut owners, mut shares, mut sequence) = (Vec::new(), Vec::new(), 0_u32);
            for run in runs.iter() {
                for _ in 0..run.n_sequences {
                    owners.extend(std::iter::repeat_n(sequence, run.length));
                    shares.push(1.0 / run.length as f32);
                    sequence += 1;
                }
            }
            let shares = Tensor::new(shares, grad.device())?.unsqueeze(1)?;
            grad.broadcast_mul(&shares)?.index_select(&Tensor::new(owners, grad.device())?, 0)
        })
    }
}

// === impl Layer ===

impl Layer {
    fn tensors<'a>(&'a self, peaks: &'a [Vec<f32>; 2]) -> LayerTensors<'a> {
        LayerTensors {
            peaks,
            qkv: &self.qkv.product.weight,
            qkv_bias: &self.qkv.bias,
            attention_out: &self.attention_out.weight,
            attention_norm: &self.attention_norm.parameters,
            up: &self.up.product.weight,
            up_bias: &self.up.bias,
            down: &self.down.weight,
            output_norm: &self.output_norm.parameters,
            eps: self.output_norm.eps,
        }
    }

    fn load(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = vb.pp("attention");
        let part = |name: &str| {
            let Dense { product, bias } = Dense::load(hidden, hidden, &attention.pp("self").pp(name))?;
            Ok::<_, candle_core::Error>((product.weight, bias))
        };
        let (q, k, v) = (part("query")?, part("key")?, part("value")?);
        // Attention divides scores by the root of the head size; dividing the queries' weights costs nothing.
        let head_size = hidden / config.num_attention_heads;
        let scale = (head_size as f64).powf(-0.5);
        let q = ((q.0 * scale)?, (q.1 * scale)?);
        // One product for all three: [hidden, 3·hidden].
        let qkv = Dense {
            product: Product::new(Tensor::cat(&[&q.0, &k.0, &v.0], 1)?.contiguous()?),
            bias: Tensor::cat(&[&q.1, &k.1, &v.1], 0)?,
        };
        let attention_out = Dense::load(hidden, hidden, &attention.pp("output").pp("dense"))?;
        let down = Dense::load(inner, hidden, &vb.pp("output").pp("dense"))?;
        Ok(Self {
            qkv,
            attention_out: attention_out.product,
            attention_norm: Norm::load(&attention_out.bias, eps, &attention.pp("output").pp("LayerNorm"))?,
            up: Dense::load(hidden, inner, &vb.pp("intermediate").pp("dense"))?,
            down: down.product,
            output_norm: Norm::load(&down.bias, eps, &vb.pp("output").pp("LayerNorm"))?,
        })
    }
}
