//! One pass over a batch: who does which part of it.
//!
//! A batch of many texts is cut into blocks of whole sequences, and each thread takes a block from end to end: no
//! waiting. A single text, or one that dwarfs the rest, is one block whose units are shared out among a team. Either
//! way the arithmetic is the same ([`super::layer`]).

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use half::slice::HalfFloatSliceExt as _;

use super::kernels::{Bytes, Isa, Onto, Target};
use super::layer::{Layer, NormWeights, UnitBytes, UnitScratch};
use super::stages::{Clock, Stage};
use super::threads::{Barrier, Broken, Job};
use super::{Weights, plan::Plan};

/// One pass, shared by those who work on it.
pub(super) struct Pass {
    pub(super) weights: Arc<Weights>,
    pub(super) isa: Isa,
    /// Word pieces, `[tokens]`.
    pub(super) ids: Vec<u32>,
    /// Lengths of the sequences, in order.
    pub(super) lengths: Vec<usize>,
    pub(super) plan: Plan,
    /// The block that is nobody's yet, where members take blocks of their own.
    pub(super) next: AtomicUsize,
    /// The block that a team shares.
    pub(super) shared: Option<Work>,
    /// `[sequences, hidden]`.
    pub(super) pooled: Mutex<Vec<f32>>,
    /// A member has panicked, or has met one who did.
    pub(super) failed: std::sync::atomic::AtomicBool,
}

/// The buffers of one block, for a team of any size.
#[derive(Debug)]
pub(super) struct Work {
    /// Sequences of the pass.
    sequences: Range<usize>,
    /// Tokens of the pass.
    tokens: Range<usize>,
    /// Each member's rows, as they go from layer to layer.
    rows: Vec<RwLock<Rows>>,
    /// Units' shares of a product, `[tokens, hidden]`: added up unit by unit by a single member, else one for each unit.
    shares: Vec<RwLock<Vec<f32>>>,
    barrier: Barrier,
}

/// Some rows of a block.
#[derive(Debug, Default)]
struct Rows {
    /// Within the block.
    range: Range<usize>,
    hidden: Vec<f32>,
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

/// The memory of a [`Work`], kept from pass to pass: new memory is slow when it is first touched.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    rows: Vec<Rows>,
    shares: Vec<Vec<f32>>,
}

/// What a member writes on the way, kept for its memory.
#[derive(Default)]
struct MemberScratch {
    /// All rows of the block, copied from those who made them.
    bytes: Vec<u8>,
    scales: Vec<f32>,
    unit: UnitScratch,
    /// One for each unit of attention.
    contexts: Vec<UnitBytes>,
    inner: UnitBytes,
    block: Buffers,
}

thread_local! {
    static SCRATCH: RefCell<MemberScratch> = RefCell::default();
}

// === impl Pass ===

impl Job for Pass {
    fn run(&self, member: usize) {
        let mut scratch = SCRATCH.take();
        if let Some(work) = &self.shared {
            if self.run_block(work, member, &mut scratch, &mut ()).is_err() {
                self.give_up();
            }
        } else {
            while let Some(sequences) = self.plan.blocks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
                let buffers = std::mem::take(&mut scratch.block);
                let work = Work::new(sequences.clone(), &self.lengths, 1, &self.weights, buffers);
                if self.run_block(&work, 0, &mut scratch, &mut ()).is_err() {
                    self.give_up();
                }
                scratch.block = work.into_buffers();
            }
        }
        SCRATCH.set(scratch);
    }

    fn give_up(&self) {
        self.failed.store(true, Ordering::Release);
        if let Some(work) = &self.shared {
            work.barrier.give_up();
        }
    }
}

impl Pass {
    /// The whole pass by the calling thread alone, as one block.
    pub(super) fn run_timed(&self, clock: &mut impl Clock) -> Result<(), Broken> {
        let mut scratch = SCRATCH.take();
        let work =
            Work::new(0..self.lengths.len(), &self.lengths, 1, &self.weights, std::mem::take(&mut scratch.block));
        let ran = self.run_block(&work, 0, &mut scratch, clock);
        scratch.block = work.into_buffers();
        SCRATCH.set(scratch);
        ran
    }

    fn run_block(
        &self,
        work: &Work,
        member: usize,
        scratch: &mut MemberScratch,
        clock: &mut impl Clock,
    ) -> Result<(), Broken> {
        self.embed(work, member);
        work.barrier.wait()?;
        clock.end(Stage::Embed);
        for layer in &self.weights.layers {
            self.attend(work, member, layer, scratch);
            work.barrier.wait()?;
            clock.end(Stage::Attention);
            self.finish(work, member, layer.attention.len(), &layer.attention_norm);
            work.barrier.wait()?;
            clock.end(Stage::AttentionNorm);
            self.widen(work, member, layer, scratch);
            work.barrier.wait()?;
            clock.end(Stage::Inner);
            self.finish(work, member, layer.inner.len(), &layer.output_norm);
            work.barrier.wait()?;
            clock.end(Stage::OutputNorm);
        }
        if member == 0 {
            self.pool(work);
            clock.end(Stage::Pool);
        }
        Ok(())
    }

    /// Word and position embeddings, added and normalised.
    fn embed(&self, work: &Work, member: usize) {
        let hidden = self.weights.hidden;
        let mut rows = work.rows[member].write().unwrap_or_else(PoisonError::into_inner);
        let Rows { range, hidden: values, bytes, scales } = &mut *rows;
        let ids = &self.ids[work.tokens.start + range.start..work.tokens.start + range.end];
        values.resize(ids.len() * hidden, 0.0);
        for (row, id) in values.chunks_exact_mut(hidden).zip(ids) {
            self.weights.words[*id as usize * hidden..(*id as usize + 1) * hidden].convert_to_f32_slice(row);
        }
        let positions = self.lengths[work.sequences.clone()].iter().flat_map(|length| 0..*length);
        for (row, position) in values.chunks_exact_mut(hidden).zip(positions.skip(range.start)) {
            let position = &self.weights.positions[position * hidden..(position + 1) * hidden];
            row.iter_mut().zip(position).for_each(|(x, position)| *x += position);
        }
        bytes.resize(values.len(), 0);
        scales.resize(range.len(), 0.0);
        self.isa.add_norm_quantise(values, &[], self.weights.norm.as_norm(), bytes, scales);
    }

    /// A member's units of attention, and their shares of the output.
    fn attend(&self, work: &Work, member: usize, layer: &Layer, scratch: &mut MemberScratch) {
        let hidden = self.weights.hidden;
        work.gather(scratch);
        let MemberScratch { bytes, scales, unit: buffers, contexts, .. } = scratch;
        let x = Bytes { values: bytes, width: hidden, scales };
        let units = work.units_of(member, layer.attention.len());
        contexts.resize_with(layer.attention.len(), UnitBytes::default);
        for unit in units.clone() {
            let lengths = &self.lengths[work.sequences.clone()];
            layer.attention[unit].attend(self.isa, x, lengths, buffers, &mut contexts[unit]);
        }
        let parts: Vec<_> = units.clone().map(|unit| layer.attention[unit].share(&contexts[unit])).collect();
        // One alone adds up the shares of all; else each has its own place.
        let n_together = if work.shares.len() == 1 { parts.len() } else { 1 };
        for (unit, parts) in units.zip(parts.chunks(n_together)) {
            let mut share = work.shares[unit].write().unwrap_or_else(PoisonError::into_inner);
            share.resize(work.tokens.len() * hidden, 0.0);
            self.isa.products(parts, Target { values: &mut share, stride: hidden, onto: Onto::Nothing });
        }
    }

    /// A member's units of the inner layer.
    fn widen(&self, work: &Work, member: usize, layer: &Layer, scratch: &mut MemberScratch) {
        let hidden = self.weights.hidden;
        work.gather(scratch);
        let MemberScratch { bytes, scales, unit: buffers, inner, .. } = scratch;
        let x = Bytes { values: bytes, width: hidden, scales };
        for unit in work.units_of(member, layer.inner.len()) {
            let (share, onto) = work.share_of(unit);
            let mut share = share.write().unwrap_or_else(PoisonError::into_inner);
            share.resize(work.tokens.len() * hidden, 0.0);
            layer.inner[unit].run(self.isa, x, buffers, inner, &mut share, onto);
        }
    }

    /// Adds up the shares of a member's rows, and normalises.
    fn finish(&self, work: &Work, member: usize, n_units: usize, norm: &NormWeights) {
        let mut rows = work.rows[member].write().unwrap_or_else(PoisonError::into_inner);
        let Rows { range, hidden: values, bytes, scales } = &mut *rows;
        let numbers = range.start * self.weights.hidden..range.end * self.weights.hidden;
        let shares: Vec<RwLockReadGuard<'_, Vec<f32>>> = work
            .shares
            .iter()
            .take(n_units)
            .map(|share| share.read().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let parts: Vec<&[f32]> = shares.iter().map(|share| &share[numbers.clone()]).collect();
        self.isa.add_norm_quantise(values, &parts, norm.as_norm(), bytes, scales);
    }

    /// Means over the tokens of each sequence, with length 1.
    fn pool(&self, work: &Work) {
        let hidden = self.weights.hidden;
        let rows: Vec<_> = work.rows.iter().map(|rows| rows.read().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut tokens = rows.iter().flat_map(|rows| rows.hidden.chunks_exact(hidden));
        let mut pooled = self.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        for sequence in work.sequences.clone() {
            let mean = &mut pooled[sequence * hidden..(sequence + 1) * hidden];
            for token in tokens.by_ref().take(self.lengths[sequence]) {
                mean.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
            }
            let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            mean.iter_mut().for_each(|x| *x /= norm);
        }
    }
}

// === impl Work ===

impl Work {
    pub(super) fn new(
        sequences: Range<usize>,
        lengths: &[usize],
        n_members: usize,
        weights: &Weights,
        mut buffers: Buffers,
    ) -> Self {
        let start = lengths[..sequences.start].iter().sum();
        let n_tokens: usize = lengths[sequences.clone()].iter().sum();
        buffers.rows.resize_with(n_members, Rows::default);
        for (member, rows) in buffers.rows.iter_mut().enumerate() {
            rows.range = member * n_tokens / n_members..(member + 1) * n_tokens / n_members;
        }
        let n_shares = if n_members == 1 { 1 } else { weights.n_units() };
        buffers.shares.resize_with(n_shares, Vec::new);
        Self {
            sequences,
            tokens: start..start + n_tokens,
            rows: buffers.rows.into_iter().map(RwLock::new).collect(),
            shares: buffers.shares.into_iter().map(RwLock::new).collect(),
            barrier: Barrier::new(n_members),
        }
    }

    pub(super) fn into_buffers(self) -> Buffers {
        Buffers {
            rows: self.rows.into_iter().map(|rows| rows.into_inner().unwrap_or_else(PoisonError::into_inner)).collect(),
            shares: self
                .shares
                .into_iter()
                .map(|share| share.into_inner().unwrap_or_else(PoisonError::into_inner))
                .collect(),
        }
    }

    fn units_of(&self, member: usize, n_units: usize) -> Range<usize> {
        let n = self.rows.len();
        member * n_units / n..(member + 1) * n_units / n
    }

    /// Where a unit puts its share.
    fn share_of(&self, unit: usize) -> (&RwLock<Vec<f32>>, Onto<'static>) {
        match self.shares.get(unit) {
            Some(share) if self.shares.len() > 1 => (share, Onto::Nothing),
            _ => (&self.shares[0], if unit == 0 { Onto::Nothing } else { Onto::Sum }),
        }
    }

    /// Copies all rows' bytes.
    fn gather(&self, scratch: &mut MemberScratch) {
        scratch.bytes.clear();
        scratch.scales.clear();
        for rows in &self.rows {
            let rows = rows.read().unwrap_or_else(PoisonError::into_inner);
            scratch.bytes.extend_from_slice(&rows.bytes);
            scratch.scales.extend_from_slice(&rows.scales);
        }
    }
}
