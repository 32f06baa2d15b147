//! Attention within each sequence of a ragged batch.

use std::sync::Arc;

use candle_core::{D, IndexOp, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};

use super::bert::Run;
use super::gradient;

/// The three inputs of one run, `[sequences · heads, length, head_size]` each. Queries come scaled.
struct Inputs {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// What the way back needs of one run.
struct Kept {
    inputs: Inputs,
    /// `[sequences · heads, length, length]`.
    weights: Tensor,
}

/// `[tokens, 3·hidden]` to `[tokens, hidden]`.
pub(super) fn attend(qkv: &Tensor, runs: &Arc<[Run]>, n_heads: usize) -> Result<Tensor> {
    if !qkv.track_op() {
        return Ok(forward(qkv, runs, n_heads, false)?.0);
    }
    if !qkv.device().is_cpu() {
        let mut contexts = Vec::with_capacity(runs.len());
        for (run, start) in with_starts(runs) {
            let Inputs { q, k, v } = split(qkv, run, start, n_heads)?;
            let weights = softmax(&q.matmul(&k.transpose(1, 2)?)?, D::Minus1)?;
            contexts.push(join(&weights.matmul(&v)?, run, n_heads)?);
        }
        return Tensor::cat(&contexts, 0);
    }
    let (context, kept) = forward(&qkv.detach(), runs, n_heads, true)?;
    let runs = Arc::clone(runs);
    gradient::known("attention", qkv, context, move |grad| backward(grad, &kept, &runs, n_heads))
}

fn forward(qkv: &Tensor, runs: &[Run], n_heads: usize, keep: bool) -> Result<(Tensor, Vec<Kept>)> {
    let (mut contexts, mut kept) = (Vec::with_capacity(runs.len()), Vec::new());
    for (run, start) in with_starts(runs) {
        let inputs = split(qkv, run, start, n_heads)?;
        let weights = softmax_last_dim(&inputs.q.matmul(&inputs.k.transpose(1, 2)?)?)?;
        contexts.push(join(&weights.matmul(&inputs.v)?, run, n_heads)?);
        if keep {
            kept.push(Kept { inputs, weights });
        }
    }
    Ok((Tensor::cat(&contexts, 0)?, kept))
}

/// From the gradient of the context, `[tokens, hidden]`, to that of the inputs, `[tokens, 3·hidden]`.
fn backward(grad: &Tensor, kept: &[Kept], runs: &[Run], n_heads: usize) -> Result<Tensor> {
    let hidden = grad.dim(1)?;
    let head_size = hidden / n_heads;
    let mut grads = Vec::with_capacity(runs.len());
    for ((run, start), Kept { inputs: Inputs { q, k, v }, weights }) in with_starts(runs).zip(kept) {
        let n_tokens = run.n_sequences * run.length;
        let by_head = grad
            .narrow(0, start, n_tokens)?
            .reshape((run.n_sequences, run.length, n_heads, head_size))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((run.n_sequences * n_heads, run.length, head_size))?;
        let for_v = weights.transpose(1, 2)?.matmul(&by_head)?;
        let for_weights = by_head.matmul(&v.transpose(1, 2)?)?;
        let level = (&for_weights * weights)?.sum_keepdim(D::Minus1)?;
        let for_scores = (for_weights.broadcast_sub(&level)? * weights)?;
        let for_q = for_scores.matmul(k)?;
        let for_k = for_scores.transpose(1, 2)?.matmul(q)?;
        // [3, sequences, heads, length, head_size] -> [tokens, 3·hidden]
        grads.push(
            Tensor::stack(&[for_q, for_k, for_v], 0)?
                .reshape((3, run.n_sequences, n_heads, run.length, head_size))?
                .permute((1, 3, 0, 2, 4))?
                .reshape((n_tokens, 3 * hidden))?,
        );
    }
    Tensor::cat(&grads, 0)
}

fn split(qkv: &Tensor, run: Run, start: usize, n_heads: usize) -> Result<Inputs> {
    let head_size = qkv.dim(1)? / (3 * n_heads);
    // [tokens, 3·hidden] -> [3, sequences, heads, length, head_size]
    let parts = qkv
        .narrow(0, start, run.n_sequences * run.length)?
        .reshape((run.n_sequences, run.length, 3, n_heads, head_size))?
        .permute((2, 0, 3, 1, 4))?;
    let part = |index: usize| parts.i(index)?.contiguous()?.reshape((run.n_sequences * n_heads, run.length, head_size));
    Ok(Inputs { q: part(0)?, k: part(1)?, v: part(2)? })
}

/// `[sequences · heads, length, head_size]` to `[tokens, hidden]`.
fn join(context: &Tensor, run: Run, n_heads: usize) -> Result<Tensor> {
    let head_size = context.dim(2)?;
    context
        .reshape((run.n_sequences, n_heads, run.length, head_size))?
        .transpose(1, 2)?
        .reshape((run.n_sequences * run.length, n_heads * head_size))
}

/// Each run and the token it starts at.
fn with_starts(runs: &[Run]) -> impl Iterator<Item = (Run, usize)> + '_ {
    runs.iter().scan(0, |next, run| {
        let start = *next;
        *next += run.n_sequences * run.length;
        Some((*run, start))
    })
}
