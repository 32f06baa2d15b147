//! Ed25519 signatures over a document's exact bytes, and the keys that make and check them.
//!
//! All three files are lines of text: `ed25519 ID HEX`, where the id is the first 16 digits of the SHA-256 of the
//! public key and the last field is the public key, the private seed or the signature. Several keys may be trusted at
//! once and several signatures given at once, so that keys can be changed while everything runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::policy::sha256_hex;

/// The public keys in a file, read anew for every document, so that a key can be added without a restart.
#[derive(Clone, Debug)]
pub struct TrustedKeys {
    path: PathBuf,
}

/// A private key.
pub struct SigningKey {
    seed: [u8; SEED_BYTES],
    pair: Ed25519KeyPair,
}

/// Why a document is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Keys are configured and the document has no signature.
    #[error("the document is not signed")]
    Unsigned,
    /// What should be signatures cannot be read as such.
    #[error("the signature is not written as `ed25519 ID HEX`")]
    Malformed,
    /// Signed, but by nobody who is trusted.
    #[error("signed with key {ids}, which is not trusted")]
    UnknownKey {
        /// Who signed.
        ids: String,
    },
    /// The signature is not one of this document by this key: the document was changed, or its signature is old.
    #[error("the signature of key {id} does not fit the document")]
    Wrong {
        /// The key.
        id: String,
    },
    /// The file of keys cannot be read; nothing can be checked.
    #[error("cannot read the keys in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has a line that is no key.
    #[error("{} has no key as `ed25519 ID HEX` on line {line}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// From 1; 0: the file has no key at all.
        line: usize,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// What every line begins with.
const ALGORITHM: &str = "ed25519";
const SEED_BYTES: usize = 32;
const ID_DIGITS: usize = 16;

// === impl TrustedKeys ===

impl TrustedKeys {
    /// The keys in `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Checks that one of `signatures` is a trusted key's over `document`, and tells whose.
    ///
    /// # Errors
    /// Why the document is not trusted.
    pub fn verify(&self, document: &[u8], signatures: Option<&str>) -> Result<Arc<str>, SignatureError> {
        let keys = self.read()?;
        let signatures = lines(signatures.unwrap_or_default()).map(|(_, line)| parse(line)).collect::<Option<Vec<_>>>();
        let signatures = signatures.ok_or(SignatureError::Malformed)?;
        let mut wrong = None;
        for (id, signature) in &signatures {
            let Some(key) = keys.get(id) else { continue };
            if UnparsedPublicKey::new(&ED25519, key).verify(document, signature).is_ok() {
                return Ok(Arc::from(id.as_str()));
            }
            wrong = Some(id.clone());
        }
        Err(match wrong {
            Some(id) => SignatureError::Wrong { id },
            None if signatures.is_empty() => SignatureError::Unsigned,
            None => {
                let ids: Vec<String> = signatures.into_iter().map(|(id, _)| id).collect();
                SignatureError::UnknownKey { ids: ids.join(", ") }
            }
        })
    }

    /// The keys that are trusted now, by id; at least one.
    ///
    /// # Errors
    /// When the file cannot be read or has something else in it.
    pub fn read(&self) -> Result<BTreeMap<String, Vec<u8>>, SignatureError> {
        let keys = read_keys(&self.path)?;
        for (line, (id, key)) in &keys {
            if *id != key_id(key) {
                return Err(SignatureError::BadKey { path: self.path.clone(), line: *line });
            }
        }
        Ok(keys.into_values().collect())
    }
}

// === impl SigningKey ===

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, SignatureError> {
        let mut seed = [0; SEED_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| SignatureError::Random)?;
        Self::from_seed(seed).ok_or(SignatureError::Random)
    }

    /// The private key in a file.
    ///
    /// # Errors
    /// When it cannot be read or is no private key.
    pub fn read(path: &Path) -> Result<Self, SignatureError> {
        let bad = |line| SignatureError::BadKey { path: path.to_owned(), line };
        let (line, (id, seed)) = read_keys(path)?.into_iter().next().ok_or_else(|| bad(0))?;
        let key = seed.try_into().ok().and_then(Self::from_seed).ok_or_else(|| bad(line))?;
        // The id tells a private key from a public one, which is as long.
        if key.id() == id { Ok(key) } else { Err(bad(line)) }
    }

    fn from_seed(seed: [u8; SEED_BYTES]) -> Option<Self> {
        Some(Self { pair: Ed25519KeyPair::from_seed_unchecked(&seed).ok()?, seed })
    }

    /// The key's id.
    pub fn id(&self) -> String {
        key_id(self.pair.public_key().as_ref())
    }

    /// The line to keep secret.
    pub fn private_line(&self) -> String {
        line(&self.id(), &self.seed)
    }

    /// The line for the file of trusted keys.
    pub fn public_line(&self) -> String {
        line(&self.id(), self.pair.public_key().as_ref())
    }

    /// The signature over `document`, as the line to put beside it.
    pub fn sign(&self, document: &[u8]) -> String {
        line(&self.id(), self.pair.sign(document).as_ref())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

// === impl SignatureError ===

impl SignatureError {
    /// A stable name, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unsigned => "UNSIGNED",
            Self::UnknownKey { .. } => "UNKNOWN_KEY",
            Self::Malformed | Self::Wrong { .. } => "BAD_SIGNATURE",
            Self::Unreadable { .. } | Self::BadKey { .. } | Self::Random => "KEYS_UNREADABLE",
        }
    }
}

type NumberedKeys = BTreeMap<usize, (String, Vec<u8>)>;

fn read_keys(path: &Path) -> Result<NumberedKeys, SignatureError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| SignatureError::Unreadable { path: path.to_owned(), source })?;
    let mut keys = NumberedKeys::new();
    for (number, line) in lines(&text) {
        let key = parse(line).filter(|(_, bytes)| bytes.len() == SEED_BYTES);
        keys.insert(number, key.ok_or_else(|| SignatureError::BadKey { path: path.to_owned(), line: number })?);
    }
    if keys.is_empty() { Err(SignatureError::BadKey { path: path.to_owned(), line: 0 }) } else { Ok(keys) }
}

/// Lines that say something, numbered from 1; a header of HTTP has commas where a file has line ends.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.split(['\n', ',']).zip(1..).map(|(line, number)| (number, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn parse(line: &str) -> Option<(String, Vec<u8>)> {
    let mut fields = line.split_ascii_whitespace();
    let (algorithm, id, bytes) = (fields.next()?, fields.next()?, hex::decode(fields.next()?).ok()?);
    (algorithm == ALGORITHM && id.len() == ID_DIGITS && fields.next().is_none()).then(|| (id.to_owned(), bytes))
}

fn line(id: &str, bytes: &[u8]) -> String {
    format!("{ALGORITHM} {id} {}", hex::encode(bytes))
}

fn key_id(public_key: &[u8]) -> String {
    let mut id = sha256_hex(public_key);
    id.truncate(ID_DIGITS);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(dir: &tempfile::TempDir, keys: &[&SigningKey]) -> TrustedKeys {
        let path = dir.path().join("keys");
        let lines: Vec<String> = keys.iter().map(|key| key.public_line()).collect();
        std::fs::write(&path, format!("# who may write policies\n{}\n", lines.join("\n"))).unwrap();
        TrustedKeys::new(path)
    }

    #[test]
    fn only_a_trusted_signature_over_the_same_bytes_passes() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new, other) =
            (SigningKey::generate().unwrap(), SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let keys = trusted(&dir, &[&old, &new]);
        let document = b"id: x\n";
        for key in [&old, &new] {
            assert_eq!(*keys.verify(document, Some(&key.sign(document))).unwrap(), *key.id());
        }
        // In a change of keys a document has both; one that is trusted is enough.
        let both = format!("{}\n{}\n", other.sign(document), new.sign(document));
        assert_eq!(*keys.verify(document, Some(&both)).unwrap(), *new.id());
        assert!(keys.verify(document, Some(&both.replace('\n', ", "))).is_ok(), "as in a header");

        let reason = |signature: Option<&str>| keys.verify(document, signature).unwrap_err().reason();
        assert_eq!(reason(None), "UNSIGNED");
        assert_eq!(reason(Some(" \n# nothing\n")), "UNSIGNED");
        assert_eq!(reason(Some(&other.sign(document))), "UNKNOWN_KEY");
        assert_eq!(reason(Some(&old.sign(b"id: y\n"))), "BAD_SIGNATURE");
        assert_eq!(reason(Some("ed25519 nonsense")), "BAD_SIGNATURE");
        let cut = old.sign(document);
        assert_eq!(reason(cut.get(..cut.len() - 2)), "BAD_SIGNATURE");
        std::fs::remove_file(dir.path().join("keys")).unwrap();
        assert_eq!(reason(Some(&old.sign(document))), "KEYS_UNREADABLE", "what cannot be checked is not trusted");
    }

    #[test]
    fn keys_survive_their_files_and_do_not_show_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let (key, path) = (SigningKey::generate().unwrap(), dir.path().join("private"));
        std::fs::write(&path, key.private_line()).unwrap();
        let read = SigningKey::read(&path).unwrap();
        assert_eq!((read.id(), read.sign(b"x")), (key.id(), key.sign(b"x")));
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.id()) && !key.private_line().ends_with(&shown), "{shown}");
        assert!(!shown.contains(key.private_line().rsplit(' ').next().unwrap()), "{shown}");

        std::fs::write(&path, key.public_line()).unwrap();
        assert!(matches!(SigningKey::read(&path), Err(SignatureError::BadKey { line: 1, .. })), "a public key");
        std::fs::write(&path, "ed25519 00\n").unwrap();
        assert!(matches!(TrustedKeys::new(&path).read(), Err(SignatureError::BadKey { line: 1, .. })));
        std::fs::write(&path, key.private_line()).unwrap();
        assert!(TrustedKeys::new(&path).read().is_err(), "a private key among public ones");
        std::fs::write(&path, "# none\n").unwrap();
        assert!(matches!(TrustedKeys::new(&path).read(), Err(SignatureError::BadKey { line: 0, .. })));
    }
}
