//! Hashed words and word pairs from the edges of a text, for the intent head.
//!
//! An embedding blurs the words that name a task ("translate", "tl;dr", "act as"); a linear map over hashed n-grams
//! remembers them. Only the edges are read, because instructions stand at the start or at the end. On the held-out
//! rows of the default model they are worth six points of macro-F1 over a linear head without them.

/// Number of buckets. Changing it, the hash or the edges changes [`super::features::LAYOUT`].
pub const N_BUCKETS: usize = 1 << 14;
/// Most buckets a text can have.
pub const MAX_NGRAMS: usize = 4 * EDGE_WORDS;

/// Words read at each edge.
const EDGE_WORDS: usize = 24;

/// The buckets of a prepared text, each below [`N_BUCKETS`], sorted, without repeats.
pub fn buckets(text: &str) -> Vec<u32> {
    let words: Vec<&str> = words(text).take(EDGE_WORDS).collect();
    let mut found = edge_buckets(&words);
    let mut last: Vec<&str> = words_reversed(text).take(EDGE_WORDS).collect();
    last.reverse();
    found.extend(edge_buckets(&last));
    found.sort_unstable();
    found.dedup();
    found
}

fn edge_buckets(words: &[&str]) -> Vec<u32> {
    let single = words.iter().map(|word| bucket(&[word]));
    let pairs = words.windows(2).map(bucket);
    single.chain(pairs).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_separator).filter(|word| !word.is_empty())
}

fn words_reversed(text: &str) -> impl Iterator<Item = &str> {
    text.rsplit(is_separator).filter(|word| !word.is_empty())
}

fn is_separator(c: char) -> bool {
    !c.is_alphanumeric() && !matches!(c, '\'' | ';' | '?' | '{' | '<')
}

/// FNV-1a (64 bit) over the lower-cased words, folded to a bucket.
fn bucket(words: &[&str]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    for word in words {
        for c in word.chars().flat_map(char::to_lowercase) {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(&mut eat);
        }
        eat(0xff);
    }
    ((hash ^ (hash >> 32)) % N_BUCKETS as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_stable_and_bounded() {
        let long = "one two three four five six seven ".repeat(100);
        for text in ["", "Translate this", "日本語", &long] {
            let found = buckets(text);
            assert!(found.len() <= MAX_NGRAMS && found.iter().all(|bucket| (*bucket as usize) < N_BUCKETS));
        }
        assert_eq!(buckets("Translate this"), buckets("translate THIS!"));
        assert_eq!(buckets("Translate this"), [1_829, 8_872, 15_457], "a changed hash would break trained heads");
        assert_ne!(buckets("a b"), buckets("b a"), "pairs keep the order of words");
    }

    #[test]
    fn both_edges_are_read() {
        let text = format!("Summarise: {} in one line", "filler ".repeat(500));
        let found = buckets(&text);
        assert!(buckets("summarise").iter().chain(&buckets("one line")).all(|bucket| found.contains(bucket)));
    }
}
