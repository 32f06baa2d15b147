//! The wire side of the hub: one request for what the files are, then the files.

use std::collections::BTreeMap;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use sha1::{Digest as _, Sha1};

use super::{HubError, HubFiles, HubOptions, HubRepo};
use crate::artifact::sha256_hex;
use crate::encoder::{CONFIG, TOKENIZER, WEIGHTS};

/// Times that a broken download goes on where it stopped.
const RETRIES: usize = 3;

/// What the API says of a repository at a revision, as far as it is used.
#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    siblings: Vec<RepoFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RepoFile {
    rfilename: String,
    size: Option<u64>,
    /// Git's name of the content, for files that are in the repository itself.
    blob_id: Option<String>,
    /// For files that it only points to.
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: String,
}

/// Fetches an encoder's three files and checks them against what the hub says of them.
///
/// # Errors
/// When the hub cannot be asked, the repository lacks a file, or a file is not what the hub says.
pub fn fetch(repo: &HubRepo, options: &HubOptions) -> Result<HubFiles, HubError> {
    let endpoint = options.endpoint.trim_end_matches('/').to_owned();
    let failed = |what: &str, source: Box<dyn std::error::Error + Send + Sync>| HubError::Request {
        what: what.to_owned(),
        endpoint: endpoint.clone(),
        source,
    };
    let api_failed = |what: &str, error: ApiError| failed(what, error.into());
    let folder = tempfile::tempdir()?;
    // A folder below it: the library looks for a token beside its cache, and finds none here.
    let api = ApiBuilder::from_cache(Cache::new(folder.path().join("cache")))
        .with_endpoint(endpoint.clone())
        .with_token(options.token.clone())
        .with_retries(RETRIES)
        .with_progress(options.progress)
        .build()
        .map_err(|error| api_failed(&repo.id, error))?;
    let at = |revision: &str| api.repo(Repo::with_revision(repo.id.clone(), RepoType::Model, revision.to_owned()));

    let what = format!("{}@{}", repo.id, repo.revision);
    let request = at(&repo.revision).info_request().query("blobs", "true");
    let answer = request.call().map_err(|error| failed(&what, error.into()))?;
    let info: RepoInfo = answer.into_json().map_err(|error| failed(&what, error.into()))?;
    let mut files = BTreeMap::new();
    for file in [CONFIG, TOKENIZER, WEIGHTS] {
        let expected = info.siblings.iter().find(|sibling| sibling.rfilename == file);
        let expected = expected.ok_or_else(|| HubError::Missing { repo: what.clone(), file })?;
        if expected.lfs.is_none() && expected.blob_id.is_none() {
            return Err(HubError::Unverifiable { file });
        }
        // The commit, not the revision: a branch may move between two files.
        let path = at(&info.sha).download(file).map_err(|error| api_failed(&format!("{what}/{file}"), error))?;
        let bytes = std::fs::read(path)?;
        check(file, &bytes, expected)?;
        files.insert(file, bytes);
    }
    Ok(HubFiles { files, commit: info.sha })
}

fn check(file: &'static str, bytes: &[u8], expected: &RepoFile) -> Result<(), HubError> {
    let same = |what, found: String, expected: &str| {
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(HubError::Mismatch { file, what, found, expected: expected.to_owned() })
    };
    if let Some(size) = expected.size {
        same("bytes", bytes.len().to_string(), &size.to_string())?;
    }
    match (&expected.lfs, &expected.blob_id) {
        (Some(large), _) => same("sha256", sha256_hex(bytes), &large.sha256),
        (None, Some(blob)) => same("git blob id", git_blob_id(bytes), blob),
        (None, None) => Err(HubError::Unverifiable { file }),
    }
}

/// The id that git gives a content.
fn git_blob_id(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex::encode(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_ids_are_gits() {
        assert_eq!(git_blob_id(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(git_blob_id(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
