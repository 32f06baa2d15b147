//! `pointsman policy show`.

use std::process::ExitCode;

use crate::cli::print_line;
use crate::policy::DEFAULT_DOCUMENT;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The embedded default document.
    #[arg(long, required = true)]
    default: bool,
}

pub(super) fn run(_: &Args) -> ExitCode {
    print_line(DEFAULT_DOCUMENT.trim_end());
    ExitCode::SUCCESS
}
