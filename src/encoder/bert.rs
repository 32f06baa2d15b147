//! The BERT graph over ragged batches.
//!
//! Devlin et al. 2018 (arXiv 1810.04805), post-norm, exact GELU; pooled and normalised as sentence-transformers does
//! for all-MiniLM-L6-v2: mean over all tokens, then L2. Sequences are sorted by length and concatenated; runs of equal
//! length share one attention product.

use candle_core::{D, Device, IndexOp, Module, Result, Tensor};
use candle_nn::{LayerNorm, VarBuilder};
use candle_transformers::models::bert::{Config, HiddenAct, PositionEmbeddingType};

use super::ops::{AddBias, AddBiasGelu, AddNorm, norm_parameters};
use super::{EncoderError, Tokens};

/// A batch of sequences, concatenated in order of length.
#[derive(Debug)]
pub struct RaggedBatch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    runs: Vec<Run>,
    order: Vec<usize>,
}

/// Neighbouring sequences of equal length.
#[derive(Clone, Copy, Debug)]
struct Run {
    n_sequences: usize,
    length: usize,
}

#[derive(Debug)]
pub(super) struct Bert {
    word: Tensor,
    /// Position and (constant) type embedding, summed: `[positions, hidden]`.
    position: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    n_heads: usize,
    hidden: usize,
}

#[derive(Debug)]
struct Layer {
    qkv: Dense,
    /// The product only; its bias is part of the norm that follows.
    attention_out: Tensor,
    attention_norm: Norm,
    up: Dense,
    /// As `attention_out`.
    down: Tensor,
    output_norm: Norm,
}

/// `x · wᵀ + b`, with the weight kept as `[in, out]`.
#[derive(Debug)]
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

/// `layer_norm(x + bias + residual)`, where the bias is that of the product which made `x`.
#[derive(Debug)]
struct Norm {
    bias: Tensor,
    norm: LayerNorm,
    /// For the CPU's own pass.
    parameters: Tensor,
    eps: f64,
}

// === impl RaggedBatch ===

impl RaggedBatch {
    /// Arranges `texts` for one pass.
    pub fn new(texts: &[&Tokens]) -> Self {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| texts[index].ids.len());
        let n_tokens = texts.iter().map(|tokens| tokens.ids.len()).sum();
        let mut batch = Self {
            ids: Vec::with_capacity(n_tokens),
            positions: Vec::with_capacity(n_tokens),
            runs: Vec::new(),
            order: Vec::new(),
        };
        for &index in &order {
            let ids = &texts[index].ids;
            batch.ids.extend_from_slice(ids);
            batch.positions.extend(0..ids.len() as u32);
            match batch.runs.last_mut() {
                Some(run) if run.length == ids.len() => run.n_sequences += 1,
                _ => batch.runs.push(Run { n_sequences: 1, length: ids.len() }),
            }
        }
        batch.order = order;
        batch
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
            norm: Norm::load(Tensor::zeros(hidden, vb.dtype(), vb.device())?, eps, &embeddings.pp("LayerNorm"))?,
            layers,
            n_heads: config.num_attention_heads,
            hidden,
        })
    }

    pub(super) fn hidden_size(&self) -> usize {
        self.hidden
    }

    /// `[sequences, hidden]` f32, rows L2-normalised, in the batch's own order.
    pub(super) fn forward(&self, batch: &RaggedBatch, device: &Device) -> Result<Tensor> {
        let ids = Tensor::new(batch.ids.as_slice(), device)?;
        let positions = Tensor::new(batch.positions.as_slice(), device)?;
        let words = self.word.index_select(&ids, 0)?;
        let mut hidden = self.norm.forward(words, &self.position.index_select(&positions, 0)?)?;
        for layer in &self.layers {
            let attended = self.attend(layer, &hidden, &batch.runs)?.matmul(&layer.attention_out)?;
            hidden = layer.attention_norm.forward(attended, &hidden)?;
            let inner = layer.up.forward_gelu(&hidden)?;
            hidden = layer.output_norm.forward(inner.matmul(&layer.down)?, &hidden)?;
        }
        self.pool(&hidden, &batch.runs)
    }

    /// Attention within each sequence: `[tokens, hidden]` to `[tokens, hidden]`.
    fn attend(&self, layer: &Layer, hidden: &Tensor, runs: &[Run]) -> Result<Tensor> {
        let head_size = self.hidden / self.n_heads;
        let qkv = layer.qkv.forward(hidden)?;
        let mut contexts = Vec::with_capacity(runs.len());
        let mut start = 0;
        for run in runs {
            let n_tokens = run.n_sequences * run.length;
            // [tokens, 3·hidden] -> [3, sequences, heads, length, head_size]
            let parts = qkv
                .narrow(0, start, n_tokens)?
                .reshape((run.n_sequences, run.length, 3, self.n_heads, head_size))?
                .permute((2, 0, 3, 1, 4))?;
            let part =
                |index| parts.i(index)?.contiguous()?.reshape((run.n_sequences * self.n_heads, run.length, head_size));
            let (q, k, v): (Tensor, Tensor, Tensor) = (part(0)?, part(1)?, part(2)?);
            // Queries come scaled, see `Layer::load`.
            let scores = q.matmul(&k.transpose(1, 2)?)?;
            let context = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
            contexts.push(
                context
                    .reshape((run.n_sequences, self.n_heads, run.length, head_size))?
                    .transpose(1, 2)?
                    .reshape((n_tokens, self.hidden))?,
            );
            start += n_tokens;
        }
        Tensor::cat(&contexts, 0)
    }

    /// Mean over each sequence's tokens, then L2: `[tokens, hidden]` to `[sequences, hidden]`.
    fn pool(&self, hidden: &Tensor, runs: &[Run]) -> Result<Tensor> {
        let mut pooled = Vec::with_capacity(runs.len());
        let mut start = 0;
        for run in runs {
            let n_tokens = run.n_sequences * run.length;
            pooled
                .push(hidden.narrow(0, start, n_tokens)?.reshape((run.n_sequences, run.length, self.hidden))?.mean(1)?);
            start += n_tokens;
        }
        let pooled = Tensor::cat(&pooled, 0)?;
        let norms = pooled.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
        pooled.broadcast_div(&norms)
    }
}

// === impl Layer ===

impl Layer {
    fn load(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = vb.pp("attention");
        let part = |name: &str| Dense::load(hidden, hidden, &attention.pp("self").pp(name));
        let (q, k, v) = (part("query")?, part("key")?, part("value")?);
        // Attention divides scores by the root of the head size; dividing the queries' weights costs nothing.
        let head_size = hidden / config.num_attention_heads;
        let scale = (head_size as f64).powf(-0.5);
        let q = Dense { weight: (q.weight * scale)?, bias: (q.bias * scale)? };
        // One product for all three: [hidden, 3·hidden].
        let qkv = Dense {
            weight: Tensor::cat(&[&q.weight, &k.weight, &v.weight], 1)?.contiguous()?,
            bias: Tensor::cat(&[&q.bias, &k.bias, &v.bias], 0)?,
        };
        let attention_out = Dense::load(hidden, hidden, &attention.pp("output").pp("dense"))?;
        let down = Dense::load(inner, hidden, &vb.pp("output").pp("dense"))?;
        Ok(Self {
            qkv,
            attention_out: attention_out.weight,
            attention_norm: Norm::load(attention_out.bias, eps, &attention.pp("output").pp("LayerNorm"))?,
            up: Dense::load(hidden, inner, &vb.pp("intermediate").pp("dense"))?,
            down: down.weight,
            output_norm: Norm::load(down.bias, eps, &vb.pp("output").pp("LayerNorm"))?,
        })
    }
}

// === impl Dense ===

impl Dense {
    fn load(n_in: usize, n_out: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get((n_out, n_in), "weight")?.t()?.contiguous()?, bias: vb.get(n_out, "bias")? })
    }

    /// `[rows, in]` to `[rows, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.weight)?;
        if product.device().is_cpu() {
            product.inplace_op2(&self.bias, &AddBias)?;
            return Ok(product);
        }
        product.broadcast_add(&self.bias)
    }

    /// As [`Self::forward`], with GELU after it.
    fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.weight)?;
        if product.device().is_cpu() {
            product.inplace_op2(&self.bias, &AddBiasGelu)?;
            return Ok(product);
        }
        product.broadcast_add(&self.bias)?.gelu_erf()
    }
}

// === impl Norm ===

impl Norm {
    fn load(bias: Tensor, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = candle_nn::layer_norm(bias.elem_count(), eps, vb.clone())?;
        let shift = norm.bias().cloned().map_or_else(|| bias.zeros_like(), Ok)?;
        Ok(Self { parameters: norm_parameters(&bias, norm.weight(), &shift)?, bias, norm, eps })
    }

    /// `[rows, hidden]` twice, to the same. `x` is a tensor that nothing else uses: on a CPU it becomes the result.
    fn forward(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            x.inplace_op3(residual, &self.parameters, &AddNorm { eps: self.eps as f32 })?;
            return Ok(x);
        }
        self.norm.forward(&(x.broadcast_add(&self.bias)? + residual)?)
    }
}
