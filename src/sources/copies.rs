//! Copies of accepted documents on disk: the last good one across restarts, and those before it to go back to.
//!
//! A copy is a line of JSON about the document and then its bytes; its name is the document's SHA-256, which is checked
//! on reading. `current.json` names the one in force, those before it in order, and when the source confirmed it last,
//! so that a restart does not make an old policy look fresh. Everything here blocks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::disk;
use crate::policy::{MAX_DOCUMENT_BYTES, sha256_hex};

/// A directory of copies; each instance needs its own.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    dir: PathBuf,
}

/// A document and where it came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Copy {
    pub(super) header: Header,
    pub(super) document: Arc<[u8]>,
}

/// What a copy says about its document.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) format: Format,
    /// Kind and place of the source, as people read them.
    pub(super) kind: String,
    pub(super) place: String,
    pub(super) version: String,
    pub(super) revision: String,
    pub(super) signature: Option<String>,
    pub(super) loaded_at_unix_ms: u64,
}

/// Which copy is in force.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Current {
    pub(super) sha256: String,
    /// When the source last said that this is the current one.
    pub(super) confirmed_at_unix_ms: u64,
    /// All copies, oldest first, by SHA-256.
    pub(super) history: Vec<String>,
}

/// The layout of a copy.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Format {
    #[default]
    #[serde(rename = "pointsman.policy-copy/v1")]
    V1,
}

/// Why there is no usable copy on disk, or why none could be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The disk failed: full, read-only, gone.
    #[error("cannot use the policy copies in {}", dir.display())]
    Disk {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what was written.
    #[error("the policy copy {} is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A copy of another source's document.
    #[error("the policy copy in {} is one of {place}, which is not this policy's source", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Where the copy came from.
        place: String,
    },
    /// The copy cannot be put in force: a key was withdrawn, another classifier has other intents.
    #[error("the policy copy in {} cannot be used: {problem}", dir.display())]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The disk hangs.
    #[error("the policy copy in {} was not written in time", dir.display())]
    TimedOut {
        /// The directory.
        dir: PathBuf,
    },
}

const CURRENT: &str = "current.json";
const SUFFIX: &str = "policy";
/// A header is a few hundred bytes; signatures and a long revision may make it more.
const MAX_FILE_BYTES: usize = MAX_DOCUMENT_BYTES + 64 * 1024;

// === impl Copies ===

impl Copies {
    pub(super) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which copy was in force last; `None`: there never was one here.
    pub(super) fn current(&self) -> Result<Option<Current>, CopyError> {
        let path = self.dir.join(CURRENT);
        let Some(bytes) = self.read(&path)? else { return Ok(None) };
        let current = serde_json::from_slice(&bytes);
        current.map(Some).map_err(|error| CopyError::Damaged { path, problem: error.to_string() })
    }

    /// The copy of the document with this hash.
    pub(super) fn read_copy(&self, sha256: &str) -> Result<Copy, CopyError> {
        let path = self.path_of(sha256);
        let damaged = |problem: &str| CopyError::Damaged { path: path.clone(), problem: problem.to_owned() };
        let bytes = self.read(&path)?.ok_or_else(|| damaged("it is gone"))?;
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has no header"))?;
        let (header, document) = bytes.split_at(end);
        let document: Arc<[u8]> = document.get(1..).unwrap_or_default().into();
        if sha256_hex(&document) != sha256 {
            return Err(damaged("its bytes do not have the SHA-256 of its name"));
        }
        let header = serde_json::from_slice(header).map_err(|error| damaged(&error.to_string()))?;
        Ok(Copy { header, document })
    }

    /// Whether there is a file for a copy.
    pub(super) fn has(&self, copy: &Copy) -> bool {
        self.path_of(&sha256_hex(&copy.document)).exists()
    }

    /// Writes a copy; it is not in force before [`Self::set_current`].
    pub(super) fn write_copy(&self, copy: &Copy) -> Result<(), CopyError> {
        let failed = |source| CopyError::Disk { dir: self.dir.clone(), source };
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let mut bytes = serde_json::to_vec(&copy.header).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&copy.document);
        disk::replace(&self.path_of(&sha256_hex(&copy.document)), &bytes).map_err(failed)
    }

    /// Says which copy is in force and removes those that the history does not have.
    pub(super) fn set_current(&self, current: &Current) -> Result<(), CopyError> {
        let failed = |source| CopyError::Disk { dir: self.dir.clone(), source };
        let bytes = serde_json::to_vec(current).map_err(|error| failed(error.into()))?;
        disk::replace(&self.dir.join(CURRENT), &bytes).map_err(failed)?;
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // Only what is named as we name it: the directory may not be ours alone.
            let ours = path.extension().is_some_and(|extension| extension == SUFFIX)
                && path.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_sha256);
            let kept = current.history.iter().any(|sha256| self.path_of(sha256) == path);
            if ours && !kept {
                std::fs::remove_file(path).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn path_of(&self, sha256: &str) -> PathBuf {
        self.dir.join(format!("{sha256}.{SUFFIX}"))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, CopyError> {
        let too_long = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_FILE_BYTES as u64);
        if too_long {
            return Err(CopyError::Damaged { path: path.to_owned(), problem: "it is too long".into() });
        }
        match std::fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CopyError::Disk { dir: self.dir.clone(), source }),
        }
    }
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Time since `unix_ms` by the wall clock, which is all there is across a restart. A time in the future shows that the
/// clock was set back by at least that much; it counts as past, so that a policy never looks fresher for it.
pub(super) fn age_of(unix_ms: u64) -> Duration {
    Duration::from_millis(unix_ms_of(SystemTime::now()).abs_diff(unix_ms))
}

/// Milliseconds since 1970.
pub(super) fn unix_ms_of(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(document: &str) -> Copy {
        let header = Header {
            format: Format::V1,
            kind: "http".into(),
            place: "https://control/policy".into(),
            version: "7".into(),
            revision: "\"7\"".into(),
            signature: Some("ed25519 x y\n".into()),
            loaded_at_unix_ms: 7,
        };
        Copy { header, document: document.as_bytes().into() }
    }

    fn current(documents: &[&str]) -> Current {
        let history: Vec<String> = documents.iter().map(|document| sha256_hex(document.as_bytes())).collect();
        Current { sha256: history.last().unwrap().clone(), confirmed_at_unix_ms: 8, history }
    }

    #[test]
    fn copies_come_back_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::new(dir.path().join("made/by/us"));
        assert_eq!(copies.current().unwrap(), None);
        for (document, history) in [("a", vec!["a"]), ("b\nb", vec!["a", "b\nb"]), ("c", vec!["b\nb", "c"])] {
            copies.write_copy(&copy(document)).unwrap();
            copies.set_current(&current(&history)).unwrap();
            assert_eq!(copies.current().unwrap().unwrap(), current(&history));
            assert_eq!(copies.read_copy(&sha256_hex(document.as_bytes())).unwrap(), copy(document));
        }
        assert_eq!(std::fs::read_dir(copies.dir()).unwrap().count(), 3, "two copies and current.json");
        let foreign = copies.dir().join("insurance.policy");
        std::fs::write(&foreign, "not ours").unwrap();
        copies.set_current(&current(&["c"])).unwrap();
        assert!(foreign.exists(), "only copies are removed");
        assert_eq!(std::fs::read_dir(copies.dir()).unwrap().count(), 3, "one copy, current.json and the other file");
    }

    #[test]
    fn a_clock_that_jumped_does_not_make_a_copy_fresh() {
        let (now, hour) = (unix_ms_of(SystemTime::now()), 3_600_000);
        for then in [now - hour, now + hour] {
            let age = age_of(then).as_secs();
            assert!((3_590..=3_610).contains(&age), "{age} s");
        }
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::new(dir.path());
        let sha256 = sha256_hex(b"a");
        let path = copies.path_of(&sha256);
        copies.write_copy(&copy("a")).unwrap();
        let good = std::fs::read(&path).unwrap();
        let long = vec![b'a'; MAX_FILE_BYTES + 1];
        let header_only = good[..good.len() - 2].to_vec();
        let flipped = [&good[..good.len() - 1], b"b"].concat();
        let no_json = [b"{]\n".as_slice(), b"a"].concat();
        let other_format = String::from_utf8(good.clone()).unwrap().replace("/v1", "/v9").into_bytes();
        for damaged in [vec![], header_only, flipped, no_json, other_format, long] {
            std::fs::write(&path, &damaged).unwrap();
            assert!(matches!(copies.read_copy(&sha256), Err(CopyError::Damaged { .. })), "{} bytes", damaged.len());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(copies.read_copy(&sha256), Err(CopyError::Damaged { .. })));
        std::fs::write(dir.path().join(CURRENT), "{").unwrap();
        assert!(matches!(copies.current(), Err(CopyError::Damaged { .. })));
    }
}
