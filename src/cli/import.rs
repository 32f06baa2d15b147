//! `pointsman import`: an encoder in Hugging Face layout becomes a model directory.

use std::path::PathBuf;
use std::process::ExitCode;

use candle_core::DType;
use clap::ValueEnum;

use crate::offline::import::{ImportOptions, import_encoder};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder with config.json, tokenizer.json and model.safetensors.
    #[arg(long)]
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
    /// Where the weights come from.
    #[arg(long)]
    source: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WeightType {
    F16,
    F32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let manifest = import_encoder(&ImportOptions {
        from: args.from.clone(),
        out: args.out.clone(),
        dtype: match args.dtype {
            WeightType::F16 => DType::F16,
            WeightType::F32 => DType::F32,
        },
        license: args.license.clone(),
        source: args.source.clone(),
    })?;
    for (name, entry) in &manifest.files {
        super::print_line(&format!("{} {:>11} bytes  {name}", entry.sha256, entry.bytes));
    }
    Ok(ExitCode::SUCCESS)
}
