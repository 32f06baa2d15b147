//! `pointsman serve`: the service.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::config::{Config, RawConfig};
use crate::serve::{Drained, Running, Server};
use crate::telemetry::{LogFormat, Traces, check_log_filter, init_logs};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file (TOML); flags and environment win over it.
    #[arg(long, env = "POINTSMAN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Validate the configuration and exit: 0 when it can be used, 64 when not. Binds nothing.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    settings: RawConfig,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match read_config(args.config, args.settings) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(super::EX_USAGE));
        }
    };
    if args.check_config {
        super::print_line(&format!("{config:#?}"));
        return Ok(ExitCode::SUCCESS);
    }
    let format = if config.log_format == "json" { LogFormat::Json } else { LogFormat::Text };
    init_logs(format, &config.log_filter)?;
    log_panics();
    let runtime = super::runtime(config.threads)?;
    let code = runtime.block_on(serve(config));
    // Whatever still runs is not worth waiting for: a drain has given it its time.
    runtime.shutdown_background();
    code
}

/// Says where a panic was and not what it says: that may quote a caller's text.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(place, thread = thread.name().unwrap_or_default(), "panicked");
    }));
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let server = Server::bind(config).await?;
    let running: Running = tokio::select! {
        started = server.start() => started?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    eprintln!("{}", running.summary);
    signals.next().await;
    tracing::info!("stopping: waiting for requests in flight");
    tokio::select! {
        drained = running.drain() => match drained {
            Drained::Completely => tracing::info!("stopped"),
            Drained::TimedOut => tracing::warn!("stopped with connections still open"),
        },
        () = signals.next() => tracing::warn!("second signal: stopped at once"),
    }
    Ok(ExitCode::SUCCESS)
}

fn read_config(file: Option<PathBuf>, flags: RawConfig) -> anyhow::Result<Config> {
    let file = file.map_or_else(|| Ok(RawConfig::default()), |path| Config::read_file(&path))?;
    let config = Config::from_raw(flags, file)?;
    check_log_filter(&config.log_filter).context("log_filter")?;
    if config.traces.is_some() {
        Traces::check_built().context("otlp_endpoint")?;
    }
    Ok(config)
}

/// Ctrl-C and, on Unix, SIGTERM.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .context("cannot listen for SIGTERM")?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
