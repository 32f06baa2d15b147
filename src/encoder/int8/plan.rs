//! How a batch is shared out among threads.

use std::ops::Range;

/// Blocks of whole sequences.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Plan {
    /// In order of taking: the longest sequences first.
    pub(super) blocks: Vec<Range<usize>>,
    /// Whether the members work on one block together.
    pub(super) together: bool,
}

/// Most tokens of a block that one thread takes: its numbers fit into the thread's own cache.
const MAX_TOKENS: usize = 128;
/// What a block costs beside its tokens, in tokens: the weights come from further away than the numbers.
const TOKENS_PER_BLOCK: usize = 6;
/// What a team takes for as many tokens as one thread takes four of: it meets at barriers, and adds up units' shares.
const TEAM_FOR_FOUR: usize = 5;

impl Plan {
    /// For sequences in ascending order of length and a number of threads.
    pub(super) fn new(lengths: &[usize], n_threads: usize) -> Self {
        let n_tokens: usize = lengths.iter().sum();
        let rounds = n_tokens.div_ceil(n_threads * MAX_TOKENS).max(1);
        let wanted = n_tokens.div_ceil(n_threads * rounds).min(MAX_TOKENS);
        let mut blocks: Vec<Range<usize>> = Vec::new();
        let (mut end, mut in_block) = (lengths.len(), 0);
        for (sequence, length) in lengths.iter().enumerate().rev() {
            if in_block > 0 && in_block + length > wanted {
                blocks.push(sequence + 1..end);
                (end, in_block) = (sequence + 1, 0);
            }
            in_block += length;
        }
        if end > 0 {
            blocks.push(0..end);
        }
        let as_team = n_tokens * TEAM_FOR_FOUR / (4 * n_threads);
        let together = n_threads > 1 && as_team < makespan(&blocks, lengths, n_threads);
        // A large batch has blocks enough to keep everybody busy, and a team's numbers would leave the caches.
        if together && n_tokens <= 2 * MAX_TOKENS * n_threads {
            return Self { blocks: std::iter::once(0..lengths.len()).collect(), together };
        }
        Self { blocks, together: false }
    }
}

/// Tokens' worth of time until all blocks are done, each taken by whoever is free first.
fn makespan(blocks: &[Range<usize>], lengths: &[usize], n_threads: usize) -> usize {
    let mut busy_until = vec![0; n_threads];
    for block in blocks {
        let cost = lengths[block.clone()].iter().sum::<usize>() + TOKENS_PER_BLOCK;
        if let Some(first_free) = busy_until.iter_mut().min() {
            *first_free += cost;
        }
    }
    // All of them read the weights of at least one block.
    busy_until.into_iter().max().unwrap_or(0).saturating_sub(TOKENS_PER_BLOCK / n_threads)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_text_is_shared_and_many_are_shared_out() {
        let (shared, alone) = (Plan::new(&[8], 2), Plan::new(&[8], 1));
        assert!(shared.together && shared.blocks.len() == 1 && !alone.together && alone.blocks.len() == 1);
        assert_eq!(Plan::new(&[16; 8], 2), Plan { blocks: vec![4..8, 0..4], together: false });
        assert!(Plan::new(&[4, 200], 2).together, "one dwarfs the rest");
        assert_eq!(Plan::new(&[64; 32], 2).blocks.len(), 16);
    }

    proptest! {
        #[test]
        fn every_sequence_is_in_one_block(mut lengths in prop::collection::vec(2_usize..300, 0..60), threads in 1_usize..5) {
            lengths.sort_unstable();
            let plan = Plan::new(&lengths, threads);
            let mut seen: Vec<usize> = plan.blocks.iter().cloned().flatten().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert!(!plan.together || plan.blocks.len() == 1);
            for block in &plan.blocks {
                let n: usize = lengths[block.clone()].iter().sum();
                prop_assert!(plan.together || n <= MAX_TOKENS || block.len() == 1);
            }
        }
    }
}
