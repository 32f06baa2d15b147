//! `pointsman policy status|publish|rollback|provider`: the policy of a running service, over gRPC.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::cli::print_line;
use crate::client::{InForce, PolicyClient, PolicyState};
use crate::policy::{Policy, PolicyOptions, set_provider_enabled};
use crate::sources::SigningKey;

/// Which service.
#[derive(Debug, clap::Args)]
pub(super) struct Server {
    /// Address of the service.
    #[arg(long, env = "POINTSMAN_SERVER", default_value = "127.0.0.1:50051", value_name = "HOST:PORT")]
    server: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// The document, YAML or JSON. Signatures in the file of the same name with `.sig` behind it go with it.
    path: PathBuf,
    /// Publish only if the policy in force has this SHA-256.
    #[arg(long, value_name = "SHA256")]
    expect: Option<String>,
    /// Sign with the private key in this file.
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, clap::Args)]
pub(super) struct RollbackArgs {
    /// A version of the history [default: the one before the one in force].
    version: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, clap::Args)]
pub(super) struct ProviderArgs {
    /// The policy's name of the provider.
    provider: String,
    /// Whether its models may be used.
    switch: Switch,
    /// Where policies must be signed: edit here, sign with the private key in this file, and publish.
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Switch {
    On,
    Off,
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let state = PolicyClient::connect(&args.server.server).await?.state().await?;
        print_line(&render(&state));
        Ok(())
    })
}

pub(super) fn publish(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let document = read(&args.path)?;
    let beside = super::sign::signature_path(&args.path);
    let signature = match &args.sign_with {
        Some(key) => SigningKey::read(key)?.sign(document.as_bytes()),
        None if beside.exists() => read(&beside)?,
        None => String::new(),
    };
    block_on(async {
        let mut client = PolicyClient::connect(&args.server.server).await?;
        let in_force = client.publish(document, signature, args.expect.clone().unwrap_or_default()).await?;
        print_in_force(&in_force);
        Ok(())
    })
}

pub(super) fn rollback(args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = PolicyClient::connect(&args.server.server).await?;
        print_in_force(&client.roll_back(args.version.clone().unwrap_or_default()).await?);
        Ok(())
    })
}

pub(super) fn provider(args: &ProviderArgs) -> anyhow::Result<ExitCode> {
    let (provider, enabled) = (args.provider.as_str(), args.switch == Switch::On);
    let key = args.sign_with.as_deref().map(SigningKey::read).transpose()?;
    block_on(async {
        let mut client = PolicyClient::connect(&args.server.server).await?;
        let in_force = match key {
            None => client.set_provider_enabled(provider.to_owned(), enabled).await?,
            Some(key) => {
                let (document, sha256) = client.document().await?;
                let history = client.state().await?.history;
                let policy = Policy::load(document.as_bytes(), &PolicyOptions::default())?;
                let taken: Vec<&str> = history.iter().map(|(version, _)| version.as_str()).collect();
                match set_provider_enabled(&policy, provider, enabled, &taken)? {
                    None => client.state().await?.in_force,
                    Some(edited) => {
                        let signature = key.sign(edited.as_bytes());
                        client.publish(edited, signature, sha256).await?
                    }
                }
            }
        };
        print_in_force(&in_force);
        Ok(())
    })
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(work)?;
    Ok(ExitCode::SUCCESS)
}

fn print_in_force(policy: &InForce) {
    print_line(&format!(
        "in force: {} {} (sha256 {}, revision {})",
        policy.id, policy.version, policy.sha256, policy.revision
    ));
}

fn render(state: &PolicyState) -> String {
    let policy = &state.in_force;
    let (loads, rejections, failures) = state.counts;
    let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let stale = if state.stale { ", longer than allowed" } else { "" };
    let mut lines = vec![
        format!("policy      {} {}", policy.id, policy.version),
        format!("sha256      {}", policy.sha256),
        format!("source      {} {}, revision {}", policy.source, state.place, policy.revision),
        format!("given by    {}", state.origin),
        format!("confirmed   {} ms ago{stale}", policy.age.as_millis()),
        format!("signed by   {}", or_none(&state.signed_by)),
        format!("writable    {}", if state.writable { "yes" } else { "no" }),
        format!("since start {loads} accepted, {rejections} refused, {failures} looks failed"),
        format!("last error  {}", or_none(&state.last_error)),
        format!("copy error  {}", or_none(&state.copy_error)),
    ];
    for (version, sha256) in state.history.iter().rev() {
        let mark = if *sha256 == policy.sha256 { " (in force)" } else { "" };
        lines.push(format!("history     {version} {sha256}{mark}"));
    }
    lines.join("\n")
}
