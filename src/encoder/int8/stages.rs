//! Where the time of a pass goes, for benchmarks: the same code with a clock that is read between its stages.

use std::time::{Duration, Instant};

/// A part of a pass. All but the first and the last occur once in each layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Word and position embeddings, and their norm.
    Embed,
    /// Queries, keys and values; attention; the product that joins the heads.
    Attention,
    /// Residual, norm and bytes after attention.
    AttentionNorm,
    /// The way up, GELU, the way down.
    Inner,
    /// Residual, norm and bytes after the inner layer.
    OutputNorm,
    /// Means of sequences, with length 1.
    Pool,
}

/// Told when a stage ends.
pub(super) trait Clock {
    fn end(&mut self, stage: Stage);
}

/// Adds up what the stages of a pass take.
#[derive(Debug)]
pub(super) struct StageTimes {
    last: Instant,
    sums: [Duration; Stage::ALL.len()],
}

// === impl Stage ===

impl Stage {
    /// In the order in which they first occur.
    pub const ALL: [Self; 6] =
        [Self::Embed, Self::Attention, Self::AttentionNorm, Self::Inner, Self::OutputNorm, Self::Pool];

    /// As benchmarks call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Attention => "attention",
            Self::AttentionNorm => "attention-norm",
            Self::Inner => "inner",
            Self::OutputNorm => "output-norm",
            Self::Pool => "pool",
        }
    }
}

// === impl Clock ===

/// Nobody asks: it compiles to nothing.
impl Clock for () {
    #[inline]
    fn end(&mut self, _: Stage) {}
}

impl Clock for StageTimes {
    fn end(&mut self, stage: Stage) {
        let now = Instant::now();
        self.sums[stage as usize] += now - self.last;
        self.last = now;
    }
}

// === impl StageTimes ===

impl StageTimes {
    pub(super) fn start() -> Self {
        Self { last: Instant::now(), sums: Default::default() }
    }

    /// In the order of [`Stage::ALL`].
    pub(super) fn sums(self) -> [Duration; Stage::ALL.len()] {
        self.sums
    }
}
