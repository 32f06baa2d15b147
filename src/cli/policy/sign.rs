//! `pointsman policy keygen|sign`: keys, and signatures over documents.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::print_line;
use crate::sources::SigningKey;

#[derive(Debug, clap::Args)]
pub(super) struct KeygenArgs {
    /// File for the private key, which must not exist yet; the public key goes into the same with `.pub` behind it.
    path: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct SignArgs {
    /// The document, as it will be served: a changed byte makes the signature wrong.
    path: PathBuf,
    /// File with the private key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Add to the signatures in the file, where keys are being changed, in place of replacing them.
    #[arg(long)]
    add: bool,
}

pub(super) fn keygen(args: &KeygenArgs) -> anyhow::Result<ExitCode> {
    let key = SigningKey::generate()?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let failed = |path: &Path| format!("cannot write {}", path.display());
    let mut file = options.open(&args.path).with_context(|| failed(&args.path))?;
    writeln!(file, "{}", key.private_line()).with_context(|| failed(&args.path))?;
    let public = with_suffix(&args.path, ".pub");
    std::fs::write(&public, format!("{}\n", key.public_line())).with_context(|| failed(&public))?;
    print_line(&format!("key {}: private in {}, public in {}", key.id(), args.path.display(), public.display()));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn sign(args: &SignArgs) -> anyhow::Result<ExitCode> {
    let document = std::fs::read(&args.path).with_context(|| format!("cannot read {}", args.path.display()))?;
    let key = SigningKey::read(&args.key)?;
    let (path, mut lines) = (signature_path(&args.path), String::new());
    if args.add && path.exists() {
        lines = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    lines = format!("{}\n{}", key.sign(&document), lines);
    std::fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
    print_line(&format!("signed with key {}: {}", key.id(), path.display()));
    Ok(ExitCode::SUCCESS)
}

/// Where a document's signatures are.
pub(super) fn signature_path(document: &Path) -> PathBuf {
    with_suffix(document, ".sig")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(suffix);
    path.into()
}
