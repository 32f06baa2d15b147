//! Training parts of the encoder, and keeping what changed beside the untouched original.
//!
//! A tuned classifier's directory holds [`CHANGES`]: for each changed tensor the difference to the base encoder, f16,
//! or for a low-rank adapter (LoRA, Hu et al. 2021, arXiv 2106.09685) its two factors. [`super::Encoder::load`] adds
//! them to the base, so a served model costs the same whether it was tuned or not.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use candle_core::safetensors::SliceSafetensors;
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::bert::{Bert, RaggedBatch};
use super::layers::Product;
use super::noise::Noise;
use super::{EncoderError, open_bert};
use crate::artifact::{Artifact, EncoderManifest};

/// File of a classifier directory that holds the changes to its encoder.
pub const CHANGES: &str = "encoder-changes.safetensors";

/// Which parts of the encoder are trained.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tuning {
    /// None: `frozen`.
    Frozen,
    /// An adapter of this rank beside every product: `lora:RANK`.
    LowRank(usize),
    /// Every tensor of the last so many layers: `top:N`, or `all`. The word table is never trained: it is half of
    /// the weights, and most of its rows would not be seen.
    Top(usize),
}

/// An encoder under training.
#[derive(Debug)]
pub struct TunableEncoder {
    bert: Bert,
    tuning: Tuning,
    device: Device,
    parameters: BTreeMap<String, Var>,
    /// Where each parameter started.
    base: BTreeMap<String, Tensor>,
}

// === impl Tuning ===

impl FromStr for Tuning {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is not one of frozen, lora:RANK, top:LAYERS, all");
        let number = |digits: &str| digits.parse::<usize>().ok().filter(|number| *number > 0).ok_or_else(wrong);
        match text.split_once(':') {
            None if text == "frozen" => Ok(Self::Frozen),
            None if text == "all" => Ok(Self::Top(usize::MAX)),
            Some(("lora", rank)) => Ok(Self::LowRank(number(rank)?)),
            Some(("top", layers)) => Ok(Self::Top(number(layers)?)),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Tuning {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<Tuning> for String {
    fn from(tuning: Tuning) -> Self {
        match tuning {
            Tuning::Frozen => "frozen".into(),
            Tuning::LowRank(rank) => format!("lora:{rank}"),
            Tuning::Top(usize::MAX) => "all".into(),
            Tuning::Top(layers) => format!("top:{layers}"),
        }
    }
}

// === impl TunableEncoder ===

impl TunableEncoder {
    /// Loads the encoder and marks what `tuning` names for training; `seed` decides how adapters start.
    ///
    /// # Errors
    /// As [`super::Encoder::load`].
    pub fn load(
        artifact: &Artifact<EncoderManifest>,
        tuning: Tuning,
        seed: u64,
        device: &Device,
    ) -> std::result::Result<Self, EncoderError> {
        let mut bert = open_bert(artifact, device)?;
        let (mut parameters, mut base) = (BTreeMap::new(), BTreeMap::new());
        match tuning {
            Tuning::Frozen => {}
            Tuning::LowRank(rank) => {
                let mut rng = StdRng::seed_from_u64(seed);
                for (name, product) in bert.products() {
                    let (n_in, n_out) = product.weight.dims2()?;
                    let bound = (3.0 / n_in as f32).sqrt();
                    let values: Vec<f32> = (0..n_in * rank).map(|_| rng.random_range(-bound..bound)).collect();
                    let down = Var::from_tensor(&Tensor::from_vec(values, (n_in, rank), device)?)?;
                    // Zero at first, so that training starts at the base encoder.
                    let up = Var::from_tensor(&Tensor::zeros((rank, n_out), DType::F32, device)?)?;
                    product.adapter = Some((down.as_tensor().clone(), up.as_tensor().clone()));
                    parameters.insert(format!("{name}.down"), down);
                    parameters.insert(format!("{name}.up"), up);
                }
            }
            Tuning::Top(layers) => {
                let first = bert.layers.len().saturating_sub(layers);
                for (name, tensor) in bert.tensors(first) {
                    let var = Var::from_tensor(tensor)?;
                    base.insert(name.clone(), std::mem::replace(tensor, var.as_tensor().clone()));
                    parameters.insert(name, var);
                }
            }
        }
        Ok(Self { bert, tuning, device: device.clone(), parameters, base })
    }

    /// What is trained, by layer, first to last; layers without any are left out.
    pub fn parameters(&self) -> Vec<Vec<Var>> {
        (0..self.bert.layers.len())
            .map(|index| {
                let prefix = format!("layers.{index}.");
                let of_layer = self.parameters.iter().filter(|(name, _)| name.starts_with(&prefix));
                of_layer.map(|(_, var)| var.clone()).collect::<Vec<_>>()
            })
            .filter(|parameters| !parameters.is_empty())
            .collect()
    }

    /// `[sequences, hidden]` f32, rows L2-normalised, in the batch's own order, with gradients to the parameters.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, batch: &RaggedBatch, noise: &mut Noise) -> Result<Tensor> {
        self.bert.forward(batch, &self.device, noise)
    }

    /// The content of [`CHANGES`].
    ///
    /// # Errors
    /// When a tensor cannot be read from the device.
    pub fn changes(&self) -> std::result::Result<Vec<u8>, EncoderError> {
        let mut tensors = BTreeMap::new();
        for (name, var) in &self.parameters {
            let change = match self.tuning {
                Tuning::Top(_) => (var.as_tensor() - &self.base[name])?,
                Tuning::Frozen | Tuning::LowRank(_) => var.as_tensor().clone(),
            };
            let values = change.to_dtype(DType::F16)?.flatten_all()?.to_vec1::<half::f16>()?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.insert(name.as_str(), (change.dims().to_vec(), bytes));
        }
        let views = tensors
            .iter()
            .map(|(name, (shape, bytes))| Ok((*name, TensorView::new(safetensors::Dtype::F16, shape.clone(), bytes)?)))
            .collect::<std::result::Result<BTreeMap<_, _>, safetensors::SafeTensorError>>()
            .map_err(candle_core::Error::wrap)?;
        Ok(safetensors::serialize(views, None).map_err(candle_core::Error::wrap)?)
    }
}

// === impl Bert ===

impl Bert {
    /// Adds the content of [`CHANGES`] to the weights.
    pub(super) fn apply_changes(&mut self, bytes: &[u8], device: &Device) -> std::result::Result<(), EncoderError> {
        let changes = SliceSafetensors::new(bytes)?;
        let mut unused: BTreeSet<String> = changes.tensors().into_iter().map(|(name, _)| name).collect();
        // One at a time: in f32 all of them take as much as the encoder.
        let mut take = |name: &str| {
            let there = unused.remove(name);
            there.then(|| changes.load(name, device)?.to_dtype(DType::F32)).transpose()
        };
        for (name, product) in self.products() {
            match (take(&format!("{name}.down"))?, take(&format!("{name}.up"))?) {
                (Some(down), Some(up)) => add(&name, &mut product.weight, &down.matmul(&up)?)?,
                (None, None) => {}
                _ => return Err(EncoderError::Unsupported(format!("{CHANGES} has half an adapter for {name}"))),
            }
        }
        for (name, tensor) in self.tensors(0) {
            if let Some(change) = take(&name)? {
                add(&name, tensor, &change)?;
            }
        }
        match unused.first() {
            None => Ok(()),
            Some(name) => Err(EncoderError::Unsupported(format!("{CHANGES} changes {name}, which is not there"))),
        }
    }

    fn products(&mut self) -> impl Iterator<Item = (String, &mut Product)> {
        self.layers.iter_mut().enumerate().flat_map(|(index, layer)| {
            [
                ("qkv", &mut layer.qkv.product),
                ("attention_out", &mut layer.attention_out),
                ("up", &mut layer.up.product),
                ("down", &mut layer.down),
            ]
            .map(|(part, product)| (format!("layers.{index}.{part}"), product))
        })
    }

    /// Every tensor of the layers from `first` on.
    fn tensors(&mut self, first: usize) -> impl Iterator<Item = (String, &mut Tensor)> {
        self.layers.iter_mut().enumerate().skip(first).flat_map(|(index, layer)| {
            [
                ("qkv.weight", &mut layer.qkv.product.weight),
                ("qkv.bias", &mut layer.qkv.bias),
                ("attention_out.weight", &mut layer.attention_out.weight),
                ("attention_norm", &mut layer.attention_norm.parameters),
                ("up.weight", &mut layer.up.product.weight),
                ("up.bias", &mut layer.up.bias),
                ("down.weight", &mut layer.down.weight),
                ("output_norm", &mut layer.output_norm.parameters),
            ]
            .map(|(part, tensor)| (format!("layers.{index}.{part}"), tensor))
        })
    }
}

fn add(name: &str, tensor: &mut Tensor, change: &Tensor) -> std::result::Result<(), EncoderError> {
    if tensor.dims() != change.dims() {
        let (found, expected) = (change.dims(), tensor.dims());
        return Err(EncoderError::Unsupported(format!("{CHANGES} has {name} as {found:?}, the encoder {expected:?}")));
    }
    if change.flatten_all()?.to_vec1::<f32>()?.iter().any(|value| !value.is_finite()) {
        return Err(EncoderError::Unsupported(format!("{CHANGES} has a number in {name} that is not finite")));
    }
    *tensor = (&*tensor + change)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::default_roots;
    use crate::encoder::EncoderOptions;
    use crate::encoder::{Encoder, Tokens};

    const ENCODER: &str = "all-MiniLM-L6-v2";

    fn artifact() -> Artifact<EncoderManifest> {
        Artifact::load(ENCODER, &default_roots(None)).unwrap()
    }

    fn texts(encoder: &Encoder) -> Vec<Tokens> {
        ["Sort a list of pairs", "Hi", "What is the boiling point of water at 2,000 m?"]
            .map(|text| encoder.tokenizer().tokenize(text).unwrap())
            .into()
    }

    #[test]
    fn names_of_tunings_round_trip() {
        for name in ["frozen", "lora:16", "top:2", "all"] {
            assert_eq!(String::from(name.parse::<Tuning>().unwrap()), name);
        }
        for wrong in ["", "lora", "lora:0", "top:x", "half"] {
            assert!(wrong.parse::<Tuning>().unwrap_err().contains("lora:RANK"), "{wrong}");
        }
    }

    /// Training changes the embedding; what is stored makes the same change in a freshly loaded encoder.
    #[test]
    fn what_was_trained_is_what_is_served() {
        let artifact = artifact();
        let base = Encoder::load(&artifact, None, &EncoderOptions::exact(&Device::Cpu, 64)).unwrap();
        let texts = texts(&base);
        let texts: Vec<&Tokens> = texts.iter().collect();
        for tuning in [Tuning::LowRank(4), Tuning::Top(1), Tuning::Top(usize::MAX)] {
            let tunable = TunableEncoder::load(&artifact, tuning, 1, &Device::Cpu).unwrap();
            let batch = RaggedBatch::new(&texts);
            let target = Tensor::randn(0.0_f32, 1.0, (3, 384), &Device::Cpu).unwrap();
            let loss = || (tunable.forward(&batch, &mut Noise::none()).unwrap() * &target).unwrap().sum_all().unwrap();
            let before = loss().to_scalar::<f32>().unwrap();
            for _ in 0..3 {
                let grads = loss().backward().unwrap();
                for (name, var) in &tunable.parameters {
                    let grad = grads.get(var).unwrap_or_else(|| panic!("{name} gets no gradient"));
                    var.set(&(var.as_tensor() - (grad * 0.02).unwrap()).unwrap()).unwrap();
                }
            }
            let after = loss().to_scalar::<f32>().unwrap();
            assert!(after < before - 0.01, "{tuning:?}: {before} to {after}");

            let served =
                Encoder::load(&artifact, Some(&tunable.changes().unwrap()), &EncoderOptions::exact(&Device::Cpu, 64))
                    .unwrap();
            let embedded = served.embed(&texts).unwrap();
            let trained = tunable.forward(&batch, &mut Noise::none()).unwrap().detach().to_vec2::<f32>().unwrap();
            for (row, &index) in trained.iter().zip(batch.order()) {
                let cosine: f32 = row.iter().zip(embedded.row(index)).map(|(a, b)| a * b).sum();
                assert!(cosine > 0.9999, "{tuning:?}: {cosine}");
            }
            assert_ne!(embedded, base.embed(&texts).unwrap());
        }
    }

    #[test]
    fn changes_that_do_not_fit_are_refused() {
        let artifact = artifact();
        let refused = |name: &str, shape: Vec<usize>, value: f32| {
            let n: usize = shape.iter().product();
            let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), n).flatten().collect();
            let view = TensorView::new(safetensors::Dtype::F32, shape, &bytes).unwrap();
            let bytes = safetensors::serialize([(name, view)], None).unwrap();
            Encoder::load(&artifact, Some(&bytes), &EncoderOptions::exact(&Device::Cpu, 64)).unwrap_err().to_string()
        };
        assert!(refused("layers.0.qkv.weight", vec![2, 2], 0.0).contains("layers.0.qkv.weight"));
        assert!(refused("layers.9.qkv.bias", vec![1_152], 0.0).contains("which is not there"));
        assert!(refused("layers.0.up.down", vec![384, 2], 0.0).contains("half an adapter"));
        assert!(refused("layers.0.up.bias", vec![1_536], f32::NAN).contains("not finite"));
        assert!(refused("layers.0.up.bias", vec![1_536], f32::INFINITY).contains("not finite"));
    }
}
