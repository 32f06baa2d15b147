//! The access file as it is now, followed through its changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::{Access, AccessError};

/// The access file in force.
///
/// A file that becomes unusable leaves the last good one in force for a minute, so that a half-written edit does not
/// turn everybody away. After that nobody is let in: whom the file no longer vouches for must not stay by its absence.
#[derive(Debug)]
pub struct AccessStore {
    path: PathBuf,
    access: ArcSwap<Access>,
    /// Since when the file cannot be used.
    broken: Mutex<Option<Instant>>,
}

/// How long an unusable file is put up with.
const GRACE: Duration = Duration::from_secs(60);

impl AccessStore {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(path: &Path) -> Result<Self, AccessError> {
        let access = Access::load(path)?;
        Ok(Self { path: path.to_owned(), access: ArcSwap::from_pointee(access), broken: Mutex::default() })
    }

    /// Who may call what now.
    pub fn now(&self) -> Arc<Access> {
        self.access.load_full()
    }

    /// Reads the file and its token files again; true when they have changed.
    ///
    /// # Errors
    /// When they cannot be used; after a minute of that nobody may call.
    pub fn refresh(&self, now: Instant) -> Result<bool, AccessError> {
        let read = Access::load(&self.path);
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(access) => {
                *broken = None;
                let changed = access.fingerprint != self.access.load().fingerprint;
                self.access.store(Arc::new(access));
                Ok(changed)
            }
            Err(error) => {
                let since = *broken.get_or_insert(now);
                if now.saturating_duration_since(since) >= GRACE {
                    self.access.store(Arc::new(Access::default()));
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Right, Shown};
    use super::*;

    #[test]
    fn a_file_that_stays_broken_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        let good = "[[caller]]\nname = 'a'\ncertificate_names = ['a']\nrights = ['route']";
        std::fs::write(&path, good).unwrap();
        let (store, start) = (AccessStore::open(&path).unwrap(), Instant::now());
        let names = ["a".to_owned()];
        let let_in = || {
            let shown = Shown { authorization: None, certificate_names: &names };
            store.now().authorise(shown, Some(Right::Route)).is_ok()
        };
        std::fs::write(&path, "[[caller").unwrap();
        assert!(store.refresh(start).is_err() && let_in());
        assert!(store.refresh(start + GRACE / 2).is_err() && let_in());
        std::fs::write(&path, good).unwrap();
        assert!(store.refresh(start + GRACE).is_ok() && let_in(), "mended in time");
        std::fs::remove_file(&path).unwrap();
        assert!(store.refresh(start + 2 * GRACE).is_err() && let_in());
        assert!(store.refresh(start + 3 * GRACE).is_err() && !let_in());
        std::fs::write(&path, good).unwrap();
        assert!(store.refresh(start + 4 * GRACE).is_ok() && let_in());
        std::fs::write(&path, "").unwrap();
        assert!(store.refresh(start + 4 * GRACE).is_ok() && !let_in(), "revoked at once");
    }
}
