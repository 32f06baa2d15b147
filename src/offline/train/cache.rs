//! Embeddings kept between runs: embedding is minutes of work, training heads is seconds.
//!
//! A file of records, each the SHA-256 of a prepared text and its embedding as little-endian f32. The file's name
//! holds the encoder's fingerprint and the sequence limit, so that embeddings of different encoders cannot mix.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use ndarray::Array2;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::TrainError;
use crate::classifier::{Input, embed};
use crate::encoder::{Encoder, EncoderError};
use crate::text::Prepared;

/// Most word pieces of one forward pass.
const TOKENS_PER_PASS: usize = 4_096;

type Key = [u8; 32];

/// Embeddings of texts, computed once.
#[derive(Debug)]
pub struct EmbeddingCache {
    known: HashMap<Key, Vec<f32>>,
    file: Option<(PathBuf, File)>,
}

impl EmbeddingCache {
    /// Opens the cache of `encoder` in `dir`, or one that lasts as long as the process.
    ///
    /// # Errors
    /// When the folder or file cannot be used.
    pub fn open(dir: Option<&Path>, encoder: &Encoder) -> Result<Self, TrainError> {
        let Some(dir) = dir else { return Ok(Self { known: HashMap::new(), file: None }) };
        let path = dir.join(format!("{}-{}.embeddings", encoder.fingerprint(), encoder.tokenizer().max_tokens()));
        let io_error = |source| TrainError::Io { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(io_error)?;
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(io_error)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error)?;
        let record = 32 + 4 * encoder.hidden_size();
        // A run that was killed can leave a partial record at the end: drop it.
        file.set_len((bytes.len() - bytes.len() % record) as u64).map_err(io_error)?;
        let known = bytes
            .chunks_exact(record)
            .filter_map(|chunk| {
                let (key, values) = chunk.split_first_chunk::<32>()?;
                let (numbers, _) = values.as_chunks::<4>();
                Some((*key, numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()))
            })
            .collect();
        Ok(Self { known, file: Some((path.clone(), file)) })
    }

    /// Embeddings of `texts`, `[texts, hidden]`; `progress` is told how many texts are done.
    ///
    /// # Errors
    /// When the encoder fails or the file cannot be written.
    pub fn embed(
        &mut self,
        encoder: &Encoder,
        texts: &[Prepared],
        progress: &dyn Fn(usize),
    ) -> Result<Array2<f32>, TrainError> {
        let keys: Vec<Key> = texts.iter().map(|text| Sha256::digest(text.task.text.as_bytes()).into()).collect();
        let mut missing = keys
            .par_iter()
            .zip(texts)
            .filter(|(key, _)| !self.known.contains_key(*key))
            .map(|(key, text)| Ok((*key, Input::new(encoder.tokenizer(), text)?)))
            .collect::<Result<Vec<(Key, Input)>, EncoderError>>()?;
        // Equal lengths share their attention products.
        missing.sort_by_key(|(_, input)| input.n_tokens());
        let mut passes = Vec::new();
        let mut rest = missing.as_slice();
        while !rest.is_empty() {
            let longest = rest.iter().map(|(_, input)| input.n_tokens()).take(TOKENS_PER_PASS / 256).max();
            let n = (TOKENS_PER_PASS / longest.unwrap_or(1).max(1)).clamp(1, rest.len());
            let (pass, later) = rest.split_at(n);
            passes.push(pass);
            rest = later;
        }
        let mut done = texts.len() - missing.len();
        progress(done);
        // A pass for each core at a time: the steps between the matrix products keep only one core busy.
        for some in passes.chunks(rayon::current_num_threads()) {
            let embeddings = some.par_iter().map(|pass| embed_pass(encoder, pass)).collect::<Result<Vec<_>, _>>()?;
            for (pass, embeddings) in some.iter().zip(embeddings) {
                self.keep(pass, &embeddings)?;
                done += pass.len();
            }
            progress(done);
        }
        let mut embeddings = Array2::zeros((texts.len(), encoder.hidden_size()));
        for (mut row, key) in embeddings.outer_iter_mut().zip(&keys) {
            if let Some(embedding) = self.known.get(key) {
                row.assign(&ndarray::ArrayView1::from(embedding.as_slice()));
            }
        }
        Ok(embeddings)
    }

    fn keep(&mut self, pass: &[(Key, Input)], embeddings: &Array2<f32>) -> Result<(), TrainError> {
        let mut record = Vec::new();
        for ((key, _), row) in pass.iter().zip(embeddings.outer_iter()) {
            record.extend_from_slice(key);
            record.extend(row.iter().flat_map(|value| value.to_le_bytes()));
            self.known.insert(*key, row.to_vec());
        }
        if let Some((path, file)) = &mut self.file {
            file.write_all(&record).map_err(|source| TrainError::Io { path: path.clone(), source })?;
        }
        Ok(())
    }
}

fn embed_pass(encoder: &Encoder, pass: &[(Key, Input)]) -> Result<Array2<f32>, EncoderError> {
    embed(encoder, &pass.iter().map(|(_, input)| input).collect::<Vec<_>>())
}
