//! The thread that models are loaded by.
//!
//! A load frees more than it keeps. The C library holds what was freed ready for the thread that freed it; threads that
//! come and go, as tokio's do, would each leave their part where the next load does not look, and every reload would
//! make the process larger (`tests/integration/robustness/soak.rs` shows it).

use std::sync::Arc;

use super::ServeError;
use crate::artifact::default_roots;
use crate::classifier::{Classifier, LoadOptions};
use crate::config::Config;
use crate::encoder::{available_threads, open_device};

/// Loads models, one at a time. Copies share the thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Loader(Arc<rayon::ThreadPool>);

// === impl Loader ===

impl Loader {
    /// # Errors
    /// When the system has no thread for it.
    pub fn start() -> Result<Self, ServeError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "pointsman-load".to_owned());
        Ok(Self(Arc::new(pool.build().map_err(|error| ServeError::Thread(std::io::Error::other(error)))?)))
    }

    /// Loads the classifier that `config` names, away from the request threads.
    ///
    /// # Errors
    /// When the device or a file of the model cannot be used.
    pub async fn load(&self, config: &Config) -> Result<Classifier, ServeError> {
        let options = LoadOptions {
            name: config.model.clone(),
            roots: default_roots(config.models_dir.as_deref()),
            max_tokens: config.max_tokens,
            device: open_device(&config.device)?,
            precision: config.precision.parse()?,
            isa: config.isa.as_deref().map(str::parse).transpose()?,
            threads: config.threads.unwrap_or_else(available_threads),
        };
        let pool = Arc::clone(&self.0);
        Ok(tokio::task::spawn_blocking(move || pool.install(|| Classifier::load(&options))).await??)
    }
}
