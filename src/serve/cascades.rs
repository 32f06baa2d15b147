//! The keys of continuations: read at the start, followed through their changes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Tasks;
use crate::cascade::{Cascades, KeyError, KeyRing};
use crate::config::Config;

/// How often the file of keys is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Continuations as `config` says.
pub(super) fn start(config: &Config, tasks: &Tasks) -> Result<Arc<Cascades>, KeyError> {
    let Some(path) = &config.continuation_keys_file else {
        tracing::warn!(
            "continuations are signed with a random key: cascades end with this process, and no other replica can \
             continue them (setting `continuation_keys_file`)"
        );
        return Ok(Arc::new(Cascades::new(KeyRing::random()?, config.continuation_ttl)));
    };
    // Read before the keys are, so that no change in between is missed.
    let seen = std::fs::read(path).ok();
    let cascades = Arc::new(Cascades::new(KeyRing::read(path)?, config.continuation_ttl));
    let (followed, path, stopping) = (Arc::clone(&cascades), path.clone(), tasks.stopping());
    tasks.spawn(async move { follow(&followed, &path, seen, stopping).await });
    Ok(cascades)
}

/// Takes over what the file says whenever it says something else. While it cannot be read, the last keys stay.
async fn follow(cascades: &Cascades, path: &Path, mut seen: Option<Vec<u8>>, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let found = tokio::fs::read(path).await.ok();
        if found == seen {
            continue;
        }
        seen = found;
        match KeyRing::read(path) {
            Ok(keys) => {
                tracing::info!(?keys, "the keys of continuations have changed");
                cascades.set_keys(keys);
            }
            Err(error) => tracing::error!(%error, "the new keys of continuations cannot be used; the old ones stay"),
        }
    }
}
