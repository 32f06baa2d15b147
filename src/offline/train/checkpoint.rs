//! The state of an encoder's training between two passes, so that a run that was cut off goes on where it was.
//!
//! One safetensors file with the parameters, the best ones so far and the optimizer's moments; the counters are its
//! metadata. It is written beside its name and renamed, so a file that is there is whole.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::TrainError;
use super::optimizer::AdamW;
use super::recipe::Recipe;
use crate::artifact::sha256_hex;
use crate::encoder::Encoder;

/// Where the training is.
pub(super) struct Progress {
    /// Passes done.
    pub(super) epoch: usize,
    /// Lowest held-out loss so far.
    pub(super) best_loss: f64,
    /// Passes since then.
    pub(super) stale: usize,
    /// The parameters that had the lowest loss.
    pub(super) best: Vec<Tensor>,
}

/// Where checkpoints of one run go.
pub(super) struct Checkpoint {
    path: PathBuf,
    fingerprint: String,
}

const FILE: &str = "checkpoint.safetensors";

// === impl Progress ===

impl Progress {
    pub(super) fn start() -> Self {
        Self { epoch: 0, best_loss: f64::INFINITY, stale: 0, best: Vec::new() }
    }
}

// === impl Checkpoint ===

impl Checkpoint {
    pub(super) fn open(dir: &Path, fingerprint: String) -> Result<Self, TrainError> {
        std::fs::create_dir_all(dir).map_err(|source| TrainError::Io { path: dir.to_owned(), source })?;
        Ok(Self { path: dir.join(FILE), fingerprint })
    }

    /// Writes the state of `optimizer`'s parameters and of the run.
    pub(super) fn save(&self, optimizer: &AdamW, progress: &Progress) -> Result<(), TrainError> {
        let (moments, n_steps) = optimizer.state();
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for (index, ((parameter, best), moments)) in optimizer.parameters().zip(&progress.best).zip(moments).enumerate()
        {
            tensors.insert(format!("{index}.now"), parameter.as_tensor().to_device(&Device::Cpu)?);
            tensors.insert(format!("{index}.best"), best.to_device(&Device::Cpu)?);
            for (name, moment) in ["first", "second"].into_iter().zip(moments) {
                tensors.insert(format!("{index}.{name}"), Tensor::new(moment.as_slice(), &Device::Cpu)?);
            }
        }
        let metadata = HashMap::from([
            ("run".to_owned(), self.fingerprint.clone()),
            ("epoch".to_owned(), progress.epoch.to_string()),
            ("best_loss".to_owned(), progress.best_loss.to_string()),
            ("stale".to_owned(), progress.stale.to_string()),
            ("steps".to_owned(), n_steps.to_string()),
        ]);
        let partial = self.path.with_extension("partial");
        safetensors::serialize_to_file(&tensors, Some(metadata), &partial)
            .map_err(|error| self.refuse(error.to_string()))?;
        std::fs::rename(&partial, &self.path).map_err(|source| TrainError::Io { path: self.path.clone(), source })
    }

    /// Takes up the state of a run, if one was saved: sets the parameters and moments, returns the counters.
    pub(super) fn load(&self, optimizer: &mut AdamW) -> Result<Option<Progress>, TrainError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TrainError::Io { path: self.path.clone(), source }),
        };
        let (_, header) =
            safetensors::SafeTensors::read_metadata(&bytes).map_err(|error| self.refuse(error.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |name: &str| metadata.get(name).map(String::as_str).unwrap_or_default();
        if entry("run") != self.fingerprint {
            return Err(self.refuse("it is of a run with another recipe, other data or another encoder".into()));
        }
        let damaged = || self.refuse("its counters cannot be read".into());
        let count = |name: &str| entry(name).parse::<usize>().map_err(|_| damaged());
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let tensor = |index: usize, name: &str| {
            tensors.get(&format!("{index}.{name}")).ok_or_else(|| self.refuse(format!("it has no {index}.{name}")))
        };
        let (mut best, mut moments) = (Vec::new(), Vec::new());
        for (index, parameter) in optimizer.parameters().enumerate() {
            parameter.set(&tensor(index, "now")?.to_device(parameter.device())?)?;
            best.push(tensor(index, "best")?.to_device(parameter.device())?);
            moments.push([tensor(index, "first")?.to_vec1::<f32>()?, tensor(index, "second")?.to_vec1::<f32>()?]);
        }
        optimizer.restore(moments, count("steps")? as u32);
        let best_loss = entry("best_loss").parse().map_err(|_| damaged())?;
        Ok(Some(Progress { epoch: count("epoch")?, best_loss, stale: count("stale")?, best }))
    }

    fn refuse(&self, reason: String) -> TrainError {
        TrainError::Checkpoint { path: self.path.clone(), reason }
    }
}

/// What two runs must share to be one: recipe, number of rows, encoder.
pub(super) fn fingerprint(recipe: &Recipe, n_rows: usize, encoder: &Encoder) -> String {
    sha256_hex(format!("{recipe:?} {n_rows} {}", encoder.fingerprint()).as_bytes())
}
