//! Structured logs on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log filter is not valid.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?} is not valid; write for example info or pointsman=debug,warn")]
pub struct BadFilter {
    /// What was given.
    pub filter: String,
    /// What is wrong with it.
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// Sends logs of the whole process to standard error. Later calls in one process change nothing.
///
/// # Errors
/// When `filter` is not a valid filter.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), BadFilter> {
    let parsed = parse_filter(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let outcome = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if outcome.is_err() {
        tracing::debug!("logs were set up before");
    }
    Ok(())
}

/// Whether [`init_logs`] would take `filter`.
///
/// # Errors
/// When it is not a valid filter.
pub fn check_log_filter(filter: &str) -> Result<(), BadFilter> {
    parse_filter(filter).map(|_| ())
}

fn parse_filter(filter: &str) -> Result<EnvFilter, BadFilter> {
    EnvFilter::try_new(filter).map_err(|source| BadFilter { filter: filter.to_owned(), source })
}
