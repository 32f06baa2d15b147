//! `pointsman policy schema`.

use std::process::ExitCode;

use crate::cli::print_line;
use crate::policy::json_schema;

pub(super) fn run() -> ExitCode {
    print_line(&format!("{:#}", json_schema()));
    ExitCode::SUCCESS
}
