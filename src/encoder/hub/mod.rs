//! An encoder's files from a Hugging Face style hub, by repository id.
//!
//! A revision is resolved to a commit once and every file is fetched at that commit. Length and hash of each file are
//! compared with what the hub's API says of it, so that a truncated or altered download is refused. The endpoint
//! itself is trusted: it is the operator who names it. Needs the feature `hub`.

#[cfg(feature = "hub")]
mod fetch;

use std::collections::BTreeMap;

#[cfg(feature = "hub")]
pub use fetch::fetch;

/// A repository of a hub at a revision, written `OWNER/NAME` or `OWNER/NAME@REVISION`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HubRepo {
    /// `OWNER/NAME`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
}

/// Where the hub is and who asks.
#[derive(Clone)]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// What private repositories ask for.
    pub token: Option<String>,
    /// Whether downloads show progress bars on standard error.
    pub progress: bool,
}

/// Files that are as the hub says.
#[derive(Clone, Debug)]
pub struct HubFiles {
    /// `config.json`, `tokenizer.json`, `model.safetensors`.
    pub files: BTreeMap<&'static str, Vec<u8>>,
    /// The commit they are from.
    pub commit: String,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not `OWNER/NAME[@REVISION]`.
    #[error("{0:?} is not a repository; write OWNER/NAME or OWNER/NAME@REVISION")]
    BadName(String),
    /// The feature is off.
    #[error("this build cannot fetch from a hub; build with --features hub, or import from a folder")]
    NotBuilt,
    /// The hub does not answer, or not as a hub does.
    #[error("cannot fetch {what} from {endpoint}")]
    Request {
        /// The repository or file.
        what: String,
        /// The hub.
        endpoint: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The repository lacks a file.
    #[error("{repo} has no {file}; an encoder needs config.json, tokenizer.json and model.safetensors")]
    Missing {
        /// The repository.
        repo: String,
        /// The file.
        file: &'static str,
    },
    /// The hub does not say what the weights should be.
    #[error("the hub does not tell the hash of {file}, so it cannot be checked; download it and import from a folder")]
    Unverifiable {
        /// The file.
        file: &'static str,
    },
    /// A file is not what the hub says.
    #[error("{file} has {what} {found}, the hub says {expected}")]
    Mismatch {
        /// The file.
        file: &'static str,
        /// What of it: bytes, sha256, git blob id.
        what: &'static str,
        /// What arrived.
        found: String,
        /// What should have.
        expected: String,
    },
    /// A temporary folder or a downloaded file cannot be used.
    #[error("cannot keep the download")]
    Io(#[from] std::io::Error),
}

/// Refuses: this build has no client for it.
///
/// # Errors
/// Always.
#[cfg(not(feature = "hub"))]
pub fn fetch(_: &HubRepo, _: &HubOptions) -> Result<HubFiles, HubError> {
    Err(HubError::NotBuilt)
}

// === impl HubRepo ===

impl std::str::FromStr for HubRepo {
    type Err = HubError;

    fn from_str(value: &str) -> Result<Self, HubError> {
        let (id, revision) = value.split_once('@').unwrap_or((value, "main"));
        let plain = |part: &str| {
            // Names become parts of addresses and paths.
            !part.is_empty()
                && !part.starts_with('.')
                && part.len() <= 128
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let named = id.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name));
        if !named || !revision.split('/').all(plain) {
            return Err(HubError::BadName(value.to_owned()));
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }
}

// === impl HubOptions ===

/// Without the token.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("HubOptions").field("endpoint", &self.endpoint).field("token", &token).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_as_on_the_hub() {
        let repo = |value: &str| value.parse::<HubRepo>().map(|repo| (repo.id, repo.revision)).ok();
        let is = |id: &str, revision: &str| Some((id.to_owned(), revision.to_owned()));
        assert_eq!(repo("org/name-v2.0"), is("org/name-v2.0", "main"));
        assert_eq!(repo("org/name@refs/pr/1"), is("org/name", "refs/pr/1"));
        for bad in ["", "name", "/name", "org/", "a/b/c", "org/../x", "org/n@", "org/n@../x", "org/n ame", "org/n?x=1"]
        {
            assert_eq!(repo(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn tokens_are_not_printed() {
        let options = HubOptions { endpoint: "http://x".into(), token: Some("secret".into()), progress: false };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
