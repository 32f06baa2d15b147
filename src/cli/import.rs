//! `pointsman import`: an encoder in Hugging Face layout becomes a model directory.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use candle_core::DType;
use clap::ValueEnum;

use crate::encoder::hub::{self, HubOptions, HubRepo};
use crate::offline::import::{ImportOptions, import_encoder, read_folder};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder with config.json, tokenizer.json and model.safetensors; or hub:OWNER/NAME[@REVISION] to fetch them
    /// (needs a build with --features hub).
    #[arg(long, value_name = "FOLDER|hub:OWNER/NAME[@REVISION]")]
    from: PathBuf,
    /// Model directory to write; its last part becomes the encoder's name.
    #[arg(long)]
    out: PathBuf,
    /// Number format of the written weights.
    #[arg(long, default_value = "f16")]
    dtype: WeightType,
    /// SPDX identifier of the weights' licence.
    #[arg(long)]
    license: String,
    /// Where the weights come from [default for a hub: the repository and the commit].
    #[arg(long)]
    source: Option<String>,
    /// The hub to fetch from.
    #[arg(long, env = "POINTSMAN_HUB_ENDPOINT", value_name = "URL", default_value = "https://huggingface.co")]
    hub_endpoint: String,
    /// Access token for repositories that ask for one.
    #[arg(long, env = "POINTSMAN_HUB_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    hub_token: Option<Token>,
}

/// A secret that debug output does not show.
#[derive(Clone)]
struct Token(String);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WeightType {
    F16,
    F32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (files, known_source) = match args.from.to_str().and_then(|from| from.strip_prefix("hub:")) {
        Some(repo) => {
            let repo: HubRepo = repo.parse()?;
            let options = HubOptions {
                endpoint: args.hub_endpoint.clone(),
                token: args.hub_token.as_ref().map(|token| token.0.clone()),
                progress: true,
            };
            let fetched = hub::fetch(&repo, &options)?;
            (fetched.files, Some(format!("{} at commit {} of {}", repo.id, fetched.commit, args.hub_endpoint)))
        }
        None => (read_folder(&args.from)?, None),
    };
    let source = args.source.clone().or(known_source).context("--source is needed: where do the weights come from?")?;
    let manifest = import_encoder(&ImportOptions {
        files,
        out: args.out.clone(),
        dtype: match args.dtype {
            WeightType::F16 => DType::F16,
            WeightType::F32 => DType::F32,
        },
        license: args.license.clone(),
        source,
    })?;
    for (name, entry) in &manifest.files {
        super::print_line(&format!("{} {:>11} bytes  {name}", entry.sha256, entry.bytes));
    }
    Ok(ExitCode::SUCCESS)
}

// === impl Token ===

impl std::str::FromStr for Token {
    type Err = std::convert::Infallible;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Ok(Self(value.to_owned()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
