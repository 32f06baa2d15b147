//! The `pointsman` binary: parses the command line and runs one subcommand.

fn main() -> std::process::ExitCode {
    pointsman::cli::main()
}
