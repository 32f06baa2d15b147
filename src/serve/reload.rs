//! What is read again while the service runs: certificates, the access file, the model directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Loader, ServeError, Tasks};
use crate::artifact::{MANIFEST, sha256_hex};
use crate::config::Config;
use crate::router::{Router, Unfit};
use crate::rpc::Backend;
use crate::telemetry::{Metrics, Reload};

/// How often certificates and the access file are looked at.
pub(super) const FILES_EVERY: Duration = Duration::from_secs(1);
/// A model that was refused is tried again after this many times as long as before, as its files may be on their way.
const BACK_OFF: u32 = 2;
const MOST_BACK_OFF: Duration = Duration::from_secs(300);

/// Why there is no other model.
#[derive(Debug, thiserror::Error)]
enum NoSwap {
    #[error(transparent)]
    Load(#[from] ServeError),
    #[error("the new model is worse than none")]
    Unfit(#[from] Unfit),
}

/// Calls `look` again and again, off the request threads, until `stopping`. It tells whether there was a change.
pub(super) async fn follow<E: std::error::Error + Send + 'static>(
    what: Reload,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
    look: impl Fn() -> Result<bool, E> + Send + Sync + 'static,
) {
    let look = Arc::new(look);
    let mut failing: Option<String> = None;
    while wait(FILES_EVERY, &stopping).await {
        let look = Arc::clone(&look);
        let Ok(looked) = tokio::task::spawn_blocking(move || look()).await else { continue };
        match looked {
            Ok(changed) => {
                if changed || failing.take().is_some() {
                    tracing::info!(?what, "read again");
                    metrics.transport().record_reload(what, true);
                }
            }
            Err(error) => {
                // Once a fault, not once a second.
                let text = chain(&error);
                if failing.as_ref() != Some(&text) {
                    tracing::error!(?what, error = text, "cannot be read again");
                    metrics.transport().record_reload(what, false);
                    failing = Some(text);
                }
            }
        }
    }
}

/// Follows the model directory: another manifest there means another model.
pub(super) async fn follow_model(config: Config, loader: Loader, backend: Backend, tasks: Tasks) {
    let stopping = tasks.stopping();
    let Some(ready) = backend.ready() else { return };
    let manifest = ready.router.classifier().dir().join(MANIFEST);
    // The manifest that was refused last, and when and after what pause to try it again.
    let mut refused: Option<(String, Instant, Duration)> = None;
    while wait(config.model_poll_interval, &stopping).await {
        let Some(found) = hash(manifest.clone()).await else { continue };
        if *found == *ready.router.classifier().reference().sha256 {
            refused = None;
            continue;
        }
        refused = refused.filter(|(hash, ..)| *hash == found);
        if refused.as_ref().is_some_and(|(_, again, _)| Instant::now() < *again) {
            continue;
        }
        let swapped = swap((&config, &loader), &ready.router, &tasks).await;
        backend.metrics().transport().record_reload(Reload::Model, swapped.is_ok());
        match swapped {
            Ok(()) => refused = None,
            Err(error) => {
                let pause = refused.map_or(config.model_poll_interval, |(_, _, pause)| pause) * BACK_OFF;
                let pause = pause.min(MOST_BACK_OFF);
                tracing::error!(error = chain(&error), again_s = pause.as_secs(), "the model in use stays");
                refused = Some((found, Instant::now() + pause, pause));
            }
        }
    }
}

async fn swap((config, loader): (&Config, &Loader), router: &Router, tasks: &Tasks) -> Result<(), NoSwap> {
    let fresh = router.try_out(Arc::new(loader.load(config).await?)).await?;
    let reference = fresh.classifier().reference().clone();
    let retired = router.adopt(fresh);
    tasks.spawn(retired.finish());
    tracing::info!(name = %reference.name, version = %reference.version, sha256 = %reference.sha256, "another model");
    Ok(())
}

async fn hash(path: PathBuf) -> Option<String> {
    tokio::task::spawn_blocking(move || std::fs::read(path).ok().map(|bytes| sha256_hex(&bytes))).await.ok()?
}

/// False when it is time to end.
async fn wait(interval: Duration, stopping: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(interval) => true,
        () = stopping.cancelled() => false,
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
