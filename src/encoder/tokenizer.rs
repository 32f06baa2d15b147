//! Word pieces, cut to the sequence limit in the middle of the text.

use std::borrow::Cow;

use tokenizers::Tokenizer;

use super::EncoderError;
use super::spelling::Spelling;

/// A text as word pieces, ready for the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// Ids with the special ones at both ends; at most the sequence limit.
    pub ids: Vec<u32>,
    /// Word pieces that were cut out.
    pub n_cut: usize,
}

/// `tokenizer.json` with the sequence limit that goes with it.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    spelling: Spelling,
    cls: u32,
    sep: u32,
    max_tokens: usize,
}

/// Share of the limit that the start of an over-long text keeps. Instructions stand at the start or at the end.
const HEAD_SHARE: f64 = 0.6;

impl TextTokenizer {
    /// Parses `tokenizer.json`; its own truncation and padding are switched off.
    ///
    /// # Errors
    /// When the file is malformed or lacks the special tokens.
    pub fn from_bytes(bytes: &[u8], max_tokens: usize) -> Result<Self, EncoderError> {
        let fail = |error: tokenizers::Error| EncoderError::Tokenizer(error.to_string());
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(fail)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(fail)?;
        let special = |name: &str| {
            tokenizer.token_to_id(name).ok_or_else(|| EncoderError::Tokenizer(format!("it has no {name} token")))
        };
        let (cls, sep) = (special("[CLS]")?, special("[SEP]")?);
        let mut vocabulary: Vec<(String, u32)> = tokenizer.get_vocab(false).into_iter().collect();
        vocabulary.sort_unstable_by_key(|(_, id)| *id);
        let spelling = Spelling::new(vocabulary.iter().map(|(word, _)| word.as_str()));
        Ok(Self { tokenizer, spelling, cls, sep, max_tokens })
    }

    /// Longest sequence, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The text with typing errors repaired: an unknown word becomes the known one that is one error away.
    pub fn repair<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.spelling.repair(text)
    }

    /// The text as word pieces; a text over the limit loses its middle.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, which none is known to do.
    pub fn tokenize(&self, text: &str) -> Result<Tokens, EncoderError> {
        let encoding =
            self.tokenizer.encode_fast(text, false).map_err(|error| EncoderError::Tokenizer(error.to_string()))?;
        let pieces = encoding.get_ids();
        let room = self.max_tokens - 2;
        let n_cut = pieces.len().saturating_sub(room);
        let mut ids = Vec::with_capacity(pieces.len() - n_cut + 2);
        ids.push(self.cls);
        if n_cut == 0 {
            ids.extend_from_slice(pieces);
        } else {
            let n_head = (room as f64 * HEAD_SHARE) as usize;
            ids.extend_from_slice(&pieces[..n_head]);
            ids.extend_from_slice(&pieces[pieces.len() - (room - n_head)..]);
        }
        ids.push(self.sep);
        Ok(Tokens { ids, n_cut })
    }
}
