//! `pointsman seal`: keeps what a classifier says of a few texts in its manifest, which every load checks from then on.

use std::process::ExitCode;

use anyhow::Context as _;

use super::ModelArgs;
use crate::artifact::MANIFEST;
use crate::classifier::Classifier;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let classifier = args.model.load()?;
    let n = seal(&classifier)?;
    super::print_line(&format!("{} keeps {n} answers", classifier.dir().join(MANIFEST).display()));
    Ok(ExitCode::SUCCESS)
}

/// Writes what `classifier` says of the trial's texts into its manifest; gives how many.
pub(super) fn seal(classifier: &Classifier) -> anyhow::Result<usize> {
    let mut manifest = classifier.manifest().clone();
    manifest.trial = classifier.trial()?;
    let path = classifier.dir().join(MANIFEST);
    let new = path.with_extension("new");
    std::fs::write(&new, toml::to_string(&manifest)?).with_context(|| format!("cannot write {}", new.display()))?;
    std::fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(manifest.trial.len())
}
