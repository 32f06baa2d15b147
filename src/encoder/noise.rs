//! Dropout in the encoder while it is trained (Srivastava et al. 2014, JMLR 15), as BERT's authors had it: after the
//! embeddings, after attention and after the inner layer.

use candle_core::{Result, Tensor};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// The masks of one pass. candle's own dropout cannot be seeded.
#[derive(Debug)]
pub struct Noise {
    /// A number is dropped when its random byte is below this.
    threshold: u8,
    rng: StdRng,
}

impl Noise {
    /// Drops each number with a probability of `share`, to the nearest 256th; the same ones for the same seed.
    pub fn new(share: f32, seed: u64) -> Self {
        Self { threshold: (share * 256.0).round() as u8, rng: StdRng::seed_from_u64(seed) }
    }

    /// Drops nothing.
    pub fn none() -> Self {
        Self::new(0.0, 0)
    }

    /// `x` with some numbers zeroed and the rest scaled up.
    pub(super) fn apply(&mut self, x: Tensor) -> Result<Tensor> {
        if self.threshold == 0 {
            return Ok(x);
        }
        let kept = 256.0 / (256.0 - f32::from(self.threshold));
        let mut mask = Vec::with_capacity(x.elem_count().next_multiple_of(8));
        while mask.len() < x.elem_count() {
            let bytes = self.rng.random::<u64>().to_le_bytes();
            mask.extend(bytes.map(|byte| if byte < self.threshold { 0.0 } else { kept }));
        }
        mask.truncate(x.elem_count());
        &x * Tensor::from_vec(mask, x.shape(), x.device())?
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn drops_the_asked_share_and_keeps_the_mean() {
        let ones = Tensor::ones((100, 101), DType::F32, &Device::Cpu).unwrap();
        let noisy = |seed| Noise::new(0.1, seed).apply(ones.clone()).unwrap();
        let values = noisy(1).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let dropped = values.iter().filter(|value| **value == 0.0).count() as f32 / values.len() as f32;
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((dropped - 0.1).abs() < 0.01 && (mean - 1.0).abs() < 0.01, "{dropped} {mean}");
        assert_eq!(values, noisy(1).flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_ne!(values, noisy(2).flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
}
