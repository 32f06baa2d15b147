//! `pointsman route` and `pointsman classify`: the same decision as the service gives, without a server.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Config, RawConfig};
use crate::domain::{Decision, Query, Requirements};
use crate::router::{DecideError, Router, Signalled};
use crate::serve::{Loader, policy_options, router_options, start_policies};
use crate::sources::Origin;
use crate::telemetry::Metrics;

#[derive(Debug, clap::Args)]
pub(super) struct RouteArgs {
    #[command(flatten)]
    text: TextArgs,
    /// The customer the query is from.
    #[arg(long, default_value = "")]
    tenant: String,
    /// Which of the caller's jobs it belongs to.
    #[arg(long, default_value = "")]
    role: String,
    /// The model must be able to call tools.
    #[arg(long)]
    tools: bool,
    /// The model must accept images.
    #[arg(long)]
    vision: bool,
    /// Highest estimated cost of one answer in US dollars.
    #[arg(long)]
    max_cost_usd: Option<f64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct TextArgs {
    /// The query.
    query: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Policy document [default: the embedded one].
    #[arg(long, env = "POINTSMAN_POLICY")]
    policy: Option<String>,
    /// Which of the policy's environments applies [default: none].
    #[arg(long, env = "POINTSMAN_ENVIRONMENT")]
    environment: Option<String>,
    /// Classifier: a name or a directory [default: default].
    #[arg(long, env = "POINTSMAN_MODEL")]
    model: Option<String>,
    /// Where models are looked up by name.
    #[arg(long, env = "POINTSMAN_MODELS_DIR")]
    models_dir: Option<std::path::PathBuf>,
    /// cpu or cuda:N.
    #[arg(long, env = "POINTSMAN_DEVICE")]
    device: Option<String>,
}

pub(super) fn route(args: RouteArgs) -> anyhow::Result<ExitCode> {
    let RouteArgs { text, tenant, role, tools, vision, max_cost_usd } = args;
    let requirements = Requirements { tools, vision, max_cost_usd, ..Requirements::default() };
    let query = Query { tenant, role, requirements, ..new_query(&text) };
    let json = text.json;
    super::runtime(None)?.block_on(async {
        let decision = match start_router(text).await?.decide(&query, None).await {
            Ok(decision) => decision,
            Err(error) => return refuse(error),
        };
        super::print_line(&if json { serde_json::to_string_pretty(&decision)? } else { render_decision(&decision) });
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn classify(text: TextArgs) -> anyhow::Result<ExitCode> {
    let (query, json) = (new_query(&text), text.json);
    super::runtime(None)?.block_on(async {
        let signals = match start_router(text).await?.classify(&query, None).await {
            Ok(signals) => signals,
            Err(error) => return refuse(error),
        };
        super::print_line(&if json { serde_json::to_string_pretty(&signals)? } else { render_signals(&signals) });
        Ok(ExitCode::SUCCESS)
    })
}

fn new_query(text: &TextArgs) -> Query {
    Query { request_id: uuid::Uuid::now_v7().to_string(), ..Query::from_text(text.query.clone()) }
}

async fn start_router(text: TextArgs) -> anyhow::Result<Router> {
    let settings = RawConfig {
        policy: text.policy,
        environment: text.environment,
        model: text.model,
        models_dir: text.models_dir,
        device: text.device,
        decision_cache_entries: Some(0),
        ..RawConfig::default()
    };
    let config = Config::from_raw(settings, RawConfig::default())?;
    let classifier = Arc::new(Loader::start()?.load(&config).await?);
    let policies = Arc::new(start_policies(&config.policy, policy_options(&config, &classifier)).await?);
    if policies.snapshot().origin != Origin::Source {
        anyhow::bail!("cannot get the policy: {}", policies.status().last_error.unwrap_or_default());
    }
    Ok(Router::start(classifier, policies, Arc::new(Metrics::new()), router_options(&config))?)
}

/// The caller's mistakes are told as such; everything else is a failure of the program.
fn refuse(error: DecideError) -> anyhow::Result<ExitCode> {
    match error {
        DecideError::Invalid(_) | DecideError::Scope(_) | DecideError::NoCandidate(_) => {
            eprintln!("error: {:#}", anyhow::Error::from(error));
            Ok(ExitCode::from(super::EX_USAGE))
        }
        _ => Err(error.into()),
    }
}

fn render_decision(decision: &Decision) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| writeln!(out, "{name:<12}{value}");
    let selected = &decision.selected;
    let outcome = line("model", format!("{} ({}, {})", selected.model, selected.provider, selected.provider_model))
        .and_then(|()| {
            line("intent", format!("{} ({:.2})", decision.intent.label, decision.intent.probability.value()))
        })
        .and_then(|()| {
            let complexity = &decision.complexity;
            line("tier", format!("{} (difficulty {:.2})", complexity.tier, complexity.difficulty.value()))
        })
        .and_then(|()| {
            let confidence = &decision.confidence;
            line("confidence", format!("{:.2} that {}", confidence.value.value(), confidence.of.as_str()))
        })
        .and_then(|()| line("cost", format!("about ${:.6} an answer", selected.estimated_cost_usd)))
        .and_then(|()| {
            let names: Vec<&str> = decision.fallbacks.iter().map(|fallback| &*fallback.candidate.model).collect();
            line("fallbacks", if names.is_empty() { "none".into() } else { names.join(", ") })
        })
        .and_then(|()| {
            let escalation = decision.escalation.as_ref().map_or_else(
                || "none: already the strongest step".to_owned(),
                |next| format!("{} when the answer scores below {}", next.next.model, next.score_threshold.value()),
            );
            line("escalation", escalation)
        })
        .and_then(|()| {
            let policy = &decision.policy;
            line("decided by", format!("{}, policy {} {}", decision.source.as_str(), policy.id, policy.version))
        })
        .and_then(|()| {
            decision
                .reasons
                .iter()
                .try_for_each(|reason| line("", format!("{}: {}", reason.code.as_str(), reason.text)))
        });
    debug_assert!(outcome.is_ok(), "writing into a String cannot fail");
    out.trim_end().to_owned()
}

fn render_signals(signals: &Signalled) -> String {
    let classification = &signals.classification;
    let mut intents: Vec<(&str, f32)> = classification.intent.iter().map(|(label, p)| (&**label, p)).collect();
    intents.sort_by(|a, b| b.1.total_cmp(&a.1));
    let intents: Vec<String> = intents.iter().take(5).map(|(label, p)| format!("{label} {p:.3}")).collect();
    let [simple, medium, complex] = classification.tiers;
    format!(
        "intent      {}\n\
         difficulty  {:.3}\n\
         tier        {} ({:.2} that it suffices; simple {simple:.2}, medium {medium:.2}, complex {complex:.2})\n\
         scope       {:.2} out of scope\n\
         tokens      {} read, {} cut",
        intents.join(", "),
        classification.difficulty.value(),
        signals.tier.tier,
        signals.tier.suffices.value(),
        classification.out_of_scope.value(),
        classification.tokens_used,
        classification.tokens_cut,
    )
}
