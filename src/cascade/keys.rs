//! The keys that continuations are signed with: one signs, all are accepted, so that keys can be changed while
//! everything runs.
//!
//! A file has a key a line, `hmac-sha256 ID HEX`, the first being the one that signs; empty lines and those after `#`
//! say nothing.

use std::path::{Path, PathBuf};

use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

/// Keys of HMAC-SHA256 by their ids.
#[derive(Clone)]
pub struct KeyRing {
    /// The first one signs; there is at least one.
    keys: Vec<(String, hmac::Key)>,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the keys of continuations in {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file has a line that is no key.
    #[error("{} has no key as `hmac-sha256 ID HEX` of at least {MIN_KEY_BYTES} bytes on line {line}", .path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// From 1; 0: the file has no key at all.
        line: usize,
    },
    /// Two keys have one id.
    #[error("{} has two keys with id {id}", .path.display())]
    DuplicateId {
        /// The file.
        path: PathBuf,
        /// The id.
        id: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// What every line begins with.
const ALGORITHM: &str = "hmac-sha256";
/// As long as the hash: a longer key adds nothing, a shorter one takes away.
const MIN_KEY_BYTES: usize = 32;
const MAX_ID_BYTES: usize = 16;
/// Bytes of a signature.
pub(super) const TAG_BYTES: usize = 32;

// === impl KeyRing ===

impl KeyRing {
    /// A key of this process alone: no other replica accepts what it signs, nor does this one after a restart.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = [0; MIN_KEY_BYTES];
        let mut id = [0; 4];
        let random = SystemRandom::new();
        random.fill(&mut bytes).and_then(|()| random.fill(&mut id)).map_err(|_| KeyError::Random)?;
        Ok(Self { keys: vec![(hex::encode(id), hmac::Key::new(hmac::HMAC_SHA256, &bytes))] })
    }

    /// The keys in a file.
    ///
    /// # Errors
    /// When it cannot be read, has no key, or a line that is none.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| KeyError::Unreadable { path: path.to_owned(), source })?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let mut keys: Vec<(String, hmac::Key)> = Vec::new();
        for (number, line) in (1..).zip(lines).filter(|(_, line)| !line.is_empty()) {
            let Some((id, key)) = parse(line) else {
                return Err(KeyError::BadKey { path: path.to_owned(), line: number });
            };
            if keys.iter().any(|(known, _)| *known == id) {
                return Err(KeyError::DuplicateId { path: path.to_owned(), id });
            }
            keys.push((id, key));
        }
        if keys.is_empty() {
            return Err(KeyError::BadKey { path: path.to_owned(), line: 0 });
        }
        Ok(Self { keys })
    }

    /// The ids, the one that signs first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(id, _)| id.as_str())
    }

    /// The id of the key that signs.
    pub(super) fn signing_id(&self) -> &str {
        self.ids().next().unwrap_or_default()
    }

    /// The signature of the key that signs.
    pub(super) fn sign(&self, message: &[u8]) -> Option<[u8; TAG_BYTES]> {
        let (_, key) = self.keys.first()?;
        hmac::sign(key, message).as_ref().try_into().ok()
    }

    /// Whether `tag` is the signature of key `id`; takes as long whatever differs.
    pub(super) fn verify(&self, id: &str, message: &[u8], tag: &[u8]) -> bool {
        let key = self.keys.iter().find(|(known, _)| known == id);
        key.is_some_and(|(_, key)| hmac::verify(key, message, tag).is_ok())
    }
}

/// Keys are secret.
impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

fn parse(line: &str) -> Option<(String, hmac::Key)> {
    let mut fields = line.split_whitespace();
    let (algorithm, id, key) = (fields.next()?, fields.next()?, fields.next()?);
    let bytes = hex::decode(key).ok()?;
    let whole = algorithm == ALGORITHM && fields.next().is_none() && bytes.len() >= MIN_KEY_BYTES;
    let named = id.len() <= MAX_ID_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic());
    (whole && named).then(|| (id.to_owned(), hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
}
