//! `pointsman loadgen`: load on a running service, with latency percentiles.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::PositiveDuration;
use crate::loadgen::{Generator, Load, Method, Options, Prompts, Report, encode_framed};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("load").required(true))]
pub(super) struct Args {
    /// Where the service listens.
    #[arg(long, default_value = "http://127.0.0.1:50051")]
    target: String,
    /// Open loop: requests a second, sent by schedule, latency from when each was due. Several: one run each.
    #[arg(long, visible_alias = "rates", value_delimiter = ',', group = "load")]
    rate: Vec<f64>,
    /// Closed loop: callers that each wait for an answer before they send again. Several: one run each.
    #[arg(long, value_delimiter = ',', group = "load")]
    concurrency: Vec<usize>,
    /// Write the first request as a gRPC frame, for other generators, and exit.
    #[arg(long, value_name = "FILE", group = "load")]
    write_body: Option<PathBuf>,
    /// How long requests are counted.
    #[arg(long, default_value = "20s")]
    duration: PositiveDuration,
    /// How long requests are sent before they are counted.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// HTTP/2 connections that requests are spread over.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// JSON Lines with a "text" each, or one text [default: a built-in list of short prompts].
    #[arg(long, value_name = "FILE.jsonl|TEXT")]
    prompts: Option<String>,
    /// Put a number after each text, so that the decision cache cannot answer; adds about six word pieces.
    #[arg(long)]
    unique: bool,
    /// What is called.
    #[arg(long, value_enum, ignore_case = true, default_value_t = MethodArg::Route)]
    method: MethodArg,
    /// Deadline of each request.
    #[arg(long, default_value = "1s")]
    deadline: PositiveDuration,
    /// Most requests of one run, those of the warm-up included.
    #[arg(long, default_value_t = 10_000_000)]
    max_requests: u64,
    /// Let the target be another machine.
    #[arg(long)]
    allow_remote: bool,
    /// Print one JSON object a run.
    #[arg(long)]
    json: bool,
}

/// A method by its name on the wire.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
enum MethodArg {
    Route,
    Classify,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let prompts = Prompts::load(args.prompts.as_deref(), args.unique).context("cannot use --prompts")?;
    let method = match args.method {
        MethodArg::Route => Method::Route,
        MethodArg::Classify => Method::Classify,
    };
    if let Some(path) = &args.write_body {
        let frame = encode_framed(method, prompts.next());
        std::fs::write(path, frame).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options {
        target: args.target,
        allow_remote: args.allow_remote,
        connections: args.connections,
        method,
        deadline: args.deadline.0,
        warmup: args.warmup,
        duration: args.duration.0,
        max_requests: args.max_requests,
    };
    let open = args.rate.into_iter().map(|rate| Load::Open { rate });
    let closed = args.concurrency.into_iter().map(|concurrency| Load::Closed { concurrency });
    let loads: Vec<Load> = open.chain(closed).collect();
    super::runtime(None)?.block_on(run_all(options, prompts, &loads, args.json))
}

/// Success when every run had an answer.
async fn run_all(options: Options, prompts: Prompts, loads: &[Load], json: bool) -> anyhow::Result<ExitCode> {
    let generator = Generator::connect(options, prompts).await?;
    let sweep = loads.len() > 1 && !json;
    if sweep {
        super::print_line(Report::HEADER);
    }
    let mut answered = true;
    for &load in loads {
        let report = generator.run(load).await?;
        answered &= report.answered > 0;
        super::print_line(&if json {
            serde_json::to_string(&report)?
        } else if sweep {
            report.line()
        } else {
            report.to_string()
        });
    }
    Ok(if answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
