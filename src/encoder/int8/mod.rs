//! The layers on a CPU in 8-bit integers: what candle's graph hands to this project's own kernels.
//!
//! Weights are symmetric bytes with a scale for each output column; activations are quantised by token as they come
//! (127 steps to each side, or 255 above GELU's least value), after the columns of a norm's output were made more alike
//! ([`weights`]); products are exact sums of bytes; everything between them is f32. Norms, softmax and pooling are never
//! quantised. The whole stack is one operation for candle: at one short query its graph, which makes a
//! tensor for each step, would cost more than the arithmetic of the step.
//!
//! Shapes: `tokens` is the number of word pieces of all sequences together; nothing is padded.

mod kernels;
mod layer;
mod pass;
mod plan;
mod stages;
mod threads;
mod weights;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use half::f16;
use half::vec::HalfFloatVecExt as _;

pub use kernels::Isa;
pub(super) use layer::LayerTensors;
use layer::{Layer, NormWeights};
use pass::{Buffers, Pass, Work};
use plan::Plan;
pub use stages::Stage;
use stages::StageTimes;
use threads::{Job as _, Threads};

/// The layers of an encoder, ready to run.
#[derive(Debug)]
pub(super) struct Stack {
    weights: Arc<Weights>,
    threads: Threads,
    isa: Isa,
    /// Buffers of the last pass that a team shared.
    spare: Mutex<Option<Buffers>>,
}

/// Everything that a pass reads.
#[derive(Debug)]
struct Weights {
    /// `[vocabulary, hidden]`. Halves, as the file has them, are half of the memory and not a bit less exact.
    words: Vec<f16>,
    /// `[positions, hidden]`: position and type embedding, summed.
    positions: Vec<f32>,
    norm: NormWeights,
    layers: Vec<Layer>,
    hidden: usize,
}

/// The operation that candle sees: word pieces `[tokens]` (u32) to `[sequences, hidden]`, rows L2-normalised.
struct Encode<'a> {
    stack: &'a Stack,
    /// Ascending.
    lengths: Vec<usize>,
}

// === impl Stack ===

impl Stack {
    /// Whether there are kernels for these shapes.
    pub(super) fn fits(hidden: usize, inner: usize, head_size: usize) -> bool {
        let panel = kernels::PANEL;
        hidden.is_multiple_of(panel) && inner.is_multiple_of(panel) && [16, 32, 64].contains(&head_size)
    }

    /// Quantises the layers of an encoder for passes by `n_threads`.
    pub(super) fn new(
        [words, positions]: [&Tensor; 2],
        (norm, eps): (&Tensor, f64),
        layers: &[LayerTensors<'_>],
        head_size: usize,
        isa: Isa,
        n_threads: usize,
    ) -> Result<Self> {
        use rayon::prelude::*;
        let first = layers.first().map(|layer| &layer.peaks[0]);
        let norm = NormWeights::new(norm, first, eps)?;
        let layers = (0..layers.len())
            .into_par_iter()
            .map(|index| Layer::new(&layers[index], layers.get(index + 1), head_size))
            .collect::<Result<_>>()?;
        let words = Vec::from_f32_slice(&words.flatten_all()?.to_vec1()?);
        if !words.iter().all(|value: &f16| value.is_finite()) {
            bail!("the encoder's word table has numbers that 16 bits do not hold");
        }
        let weights =
            Weights { words, positions: positions.flatten_all()?.to_vec1()?, norm, layers, hidden: positions.dim(1)? };
        Ok(Self { weights: Arc::new(weights), threads: Threads::new(n_threads)?, isa, spare: Mutex::default() })
    }

    /// The instruction set it runs on.
    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// Word pieces `[tokens]` of sequences in ascending order of length to `[sequences, hidden]`.
    pub(super) fn forward(&self, ids: &Tensor, lengths: Vec<usize>) -> Result<Tensor> {
        ids.apply_op1_no_bwd(&Encode { stack: self, lengths })
    }

    /// What the stages of a pass by one thread take, in the order of [`Stage::ALL`].
    pub(super) fn stage_times(&self, ids: &[u32], lengths: Vec<usize>) -> Result<[Duration; Stage::ALL.len()]> {
        let plan = Plan::new(&lengths, 1);
        let pass = self.pass(ids, lengths, plan, None);
        let mut times = StageTimes::start();
        if pass.run_timed(&mut times).is_err() {
            bail!("a pass of the encoder panicked");
        }
        Ok(times.sums())
    }

    fn pass(&self, ids: &[u32], lengths: Vec<usize>, plan: Plan, shared: Option<Work>) -> Pass {
        Pass {
            weights: Arc::clone(&self.weights),
            isa: self.isa,
            ids: ids.to_vec(),
            pooled: Mutex::new(vec![0.0; lengths.len() * self.weights.hidden]),
            lengths,
            plan,
            next: AtomicUsize::new(0),
            shared,
            failed: AtomicBool::new(false),
        }
    }

    fn run(&self, ids: &[u32], lengths: Vec<usize>) -> Result<Vec<f32>> {
        // A caller that finds the threads at work for another works alone.
        let claim = self.threads.claim();
        let n_members = claim.as_ref().map_or(1, threads::Claim::n_members);
        let plan = Plan::new(&lengths, n_members);
        let shared = plan.together.then(|| {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
            Work::new(0..lengths.len(), &lengths, n_members, &self.weights, spare.unwrap_or_default())
        });
        let n_blocks = plan.blocks.len();
        let pass = Arc::new(self.pass(ids, lengths, plan, shared));
        match claim {
            Some(claim) if pass.shared.is_some() || n_blocks > 1 => claim.run(&pass),
            _ => pass.run(0),
        }
        if pass.failed.load(Ordering::Acquire) {
            bail!("a pass of the encoder panicked");
        }
        let pooled = std::mem::take(&mut *pass.pooled.lock().unwrap_or_else(PoisonError::into_inner));
        // All members are done and have let go of the pass.
        if let Some(work) = Arc::into_inner(pass).and_then(|pass| pass.shared) {
            *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(work.into_buffers());
        }
        Ok(pooled)
    }
}

impl Weights {
    fn n_units(&self) -> usize {
        self.layers.iter().map(Layer::n_units).max().unwrap_or(0)
    }
}

impl CustomOp1 for Encode<'_> {
    fn name(&self) -> &'static str {
        "encode-int8"
    }

    fn cpu_fwd(&self, ids: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("word pieces are not contiguous") };
        let ids = &ids.as_slice::<u32>()?[start..end];
        let Weights { hidden, ref words, ref positions, .. } = *self.stack.weights;
        let longest = self.lengths.last().copied().unwrap_or(0);
        if ids.len() != self.lengths.iter().sum::<usize>() || longest * hidden > positions.len() {
            bail!("{} word pieces are not these sequences", ids.len());
        }
        if let Some(unknown) = ids.iter().find(|id| **id as usize >= words.len() / hidden) {
            bail!("no word piece has the number {unknown}");
        }
        let pooled = self.stack.run(ids, self.lengths.clone())?;
        Ok((CpuStorage::F32(pooled), (self.lengths.len(), hidden).into()))
    }
}
