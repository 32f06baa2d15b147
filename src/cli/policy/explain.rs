//! `pointsman policy explain`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

use super::{Format, PolicyArgs};
use crate::cli::print_line;
use crate::domain::{Content, Probability, Requirements, Tier};
use crate::policy::{
    Assignment, CandidateOutcome, Explanation, KeyDigest, Scope, Signals, Timestamp, certain, named_intents,
};
use crate::rules::{RuleInput, RuleOutcome};
use crate::text;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    policy: PolicyArgs,
    /// The customer the request is for.
    #[arg(long, default_value = "")]
    tenant: String,
    /// Which of the caller's jobs it belongs to.
    #[arg(long, default_value = "")]
    role: String,
    /// The intent, taken as certain. Without it: one line for each intent and tier.
    #[arg(long, requires = "tier")]
    intent: Option<String>,
    /// The tier, taken as certain.
    #[arg(long, requires = "intent", value_parser = tier)]
    tier: Option<Tier>,
    /// The difficulty [default: the middle of the tier's third of the scale].
    #[arg(long, requires = "intent")]
    difficulty: Option<f64>,
    /// The text, for rules that look at it [default: no rule matches].
    #[arg(long, requires = "intent")]
    text: Option<String>,
    /// Tokens of the input [default: a quarter of the text's bytes].
    #[arg(long)]
    input_tokens: Option<u32>,
    /// Tokens expected in the answer [default: the policy's].
    #[arg(long)]
    output_tokens: Option<u32>,
    /// The session, for experiments.
    #[arg(long, default_value = "")]
    session: String,
    /// The request id, for experiments.
    #[arg(long, default_value = "")]
    request_id: String,
    /// A pair that rules and experiments may read, KEY=VALUE; may be repeated.
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    metadata: Vec<(String, String)>,
    /// When the request comes, as 2026-11-21T18:00:00Z [default: now].
    #[arg(long, value_parser = timestamp, value_name = "TIME")]
    at: Option<Timestamp>,
    #[command(flatten)]
    required: Required,
    /// Lines for people, or one JSON object.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What the answering model must offer.
#[derive(Debug, clap::Args)]
struct Required {
    /// The model must be able to call tools.
    #[arg(long)]
    tools: bool,
    /// The model must accept images.
    #[arg(long)]
    vision: bool,
    /// The model must guarantee JSON.
    #[arg(long)]
    json_mode: bool,
    /// Tokens of context needed [default: input and output together].
    #[arg(long)]
    context_tokens: Option<u32>,
    /// Only this provider; may be repeated.
    #[arg(long = "allow-provider", value_name = "PROVIDER")]
    allowed_providers: Vec<String>,
    /// Only this region; may be repeated.
    #[arg(long = "region", value_name = "REGION")]
    data_regions: Vec<String>,
    /// Highest cost of one answer in US dollars.
    #[arg(long)]
    max_cost_usd: Option<f64>,
    /// Highest typical latency in milliseconds.
    #[arg(long)]
    max_latency_ms: Option<u32>,
    /// Lowest P(success).
    #[arg(long)]
    min_quality: Option<f64>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let policy = args.policy.load()?;
    let scope = policy.scope(&args.tenant, &args.role)?.with_experiments(&Assignment {
        session: (!args.session.is_empty()).then(|| KeyDigest::of(&args.session)),
        request_id: &args.request_id,
        metadata: &args.metadata.iter().cloned().collect(),
        now_ms: args.at.map_or_else(now_ms, |at| at.0),
    });
    let explained = match (&args.intent, args.tier) {
        (Some(intent), Some(tier)) => vec![args.explain(&scope, intent, tier)],
        _ => {
            let intents = named_intents(policy.spec());
            let cells = intents.iter().flat_map(|intent| Tier::ALL.map(|tier| (*intent, tier)));
            cells.map(|(intent, tier)| args.explain(&scope, intent, tier)).collect()
        }
    };
    print_line(&match (args.format, explained.as_slice()) {
        (Format::Json, [one]) if args.intent.is_some() => serde_json::to_string_pretty(&one.2)?,
        (Format::Json, all) => {
            let cells: Vec<_> = all
                .iter()
                .map(|(intent, tier, explanation)| {
                    serde_json::json!({"asked": {"intent": intent, "tier": tier}, "explanation": explanation})
                })
                .collect();
            serde_json::to_string_pretty(&cells)?
        }
        (Format::Text, [one]) if args.intent.is_some() => detail(&one.2),
        (Format::Text, all) => overview(all),
    });
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn explain(&self, scope: &Scope, intent: &str, tier: Tier) -> (String, Tier, Explanation) {
        let mut classification = certain(intent, tier);
        if let Some(difficulty) = self.difficulty {
            classification.difficulty = Probability::saturating(difficulty);
        }
        let prepared = self.text.as_ref().map(|text| text::prepare(&Content::Text(text.clone())));
        let metadata: BTreeMap<String, String> = self.metadata.iter().cloned().collect();
        let rules = prepared.as_ref().map_or_else(RuleOutcome::default, |prepared| {
            scope.rules().evaluate(&RuleInput {
                text: &prepared.text,
                signals: &prepared.signals,
                metadata: &metadata,
                tenant: &self.tenant,
                role: &self.role,
            })
        });
        let requirements = self.required.requirements();
        let estimated = self.text.as_ref().map_or(0, |text| text.len().div_ceil(4) as u32);
        let explanation = scope.explain(&Signals {
            classification: Some(&classification),
            rules: &rules,
            language: None,
            degraded: false,
            requirements: &requirements,
            input_tokens: self.input_tokens.unwrap_or(estimated),
            output_tokens: self.output_tokens,
            sticky_key: if self.session.is_empty() { &self.request_id } else { &self.session },
        });
        (intent.to_owned(), tier, explanation)
    }
}

impl Required {
    fn requirements(&self) -> Requirements {
        Requirements {
            tools: self.tools,
            vision: self.vision,
            json_mode: self.json_mode,
            context_tokens: self.context_tokens,
            allowed_providers: self.allowed_providers.clone(),
            data_regions: self.data_regions.clone(),
            max_cost_usd: self.max_cost_usd,
            max_latency_ms: self.max_latency_ms,
            min_quality: self.min_quality,
        }
    }
}

fn detail(explanation: &Explanation) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    _ = writeln!(out, "applies     {}", explanation.layers.join(" < "));
    for arm in &explanation.arms {
        let share = 100.0 * arm.propensity.value();
        _ = writeln!(out, "experiment  {}: arm {}, given to {share:.1} %", arm.experiment, arm.arm);
    }
    let named = |text: &str| if text.is_empty() { "none" } else { text }.to_owned();
    _ = writeln!(out, "intent      {}\ntier        {}", explanation.intent, explanation.tier);
    _ = writeln!(out, "chain       {}", named(&explanation.chain));
    for candidate in &explanation.candidates {
        let outcome = match candidate.outcome {
            CandidateOutcome::Selected => "selected",
            CandidateOutcome::Fallback => "fallback",
            CandidateOutcome::Removed => "removed",
        };
        let success = candidate.success_probability.map_or(String::new(), |p| format!(", P(success) {:.2}", p.value()));
        _ = writeln!(
            out,
            "{outcome:<12}{} ({}), about ${:.6}{success}",
            candidate.model, candidate.provider, candidate.estimated_cost_usd
        );
        for verdict in &candidate.filters {
            if let Some(reason) = &verdict.removes {
                _ = writeln!(out, "            {}: {} {}", verdict.filter, reason.code.as_str(), reason.text);
            }
        }
    }
    _ = writeln!(out, "escalation  {}", named(explanation.escalation.as_deref().unwrap_or_default()));
    for reason in &explanation.reasons {
        _ = writeln!(out, "            {}: {}", reason.code.as_str(), reason.text);
    }
    out.trim_end().to_owned()
}

fn overview(explained: &[(String, Tier, Explanation)]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "intent",
        "tier",
        "chain",
        "selected",
        "fallbacks",
        "escalation",
    ]);
    for (intent, tier, explanation) in explained {
        let with = |outcome: CandidateOutcome| -> String {
            let models = explanation.candidates.iter().filter(|candidate| candidate.outcome == outcome);
            models.map(|candidate| candidate.model.as_str()).collect::<Vec<_>>().join(", ")
        };
        let (acted, on) = (&explanation.intent, explanation.tier);
        let as_asked = acted == intent && on == *tier;
        let acted = if as_asked { tier.to_string() } else { format!("{tier} (acts on {acted}, {on})") };
        let escalation = explanation.escalation.clone().unwrap_or_default();
        table.add_row([
            intent.clone(),
            acted,
            explanation.chain.clone(),
            with(CandidateOutcome::Selected),
            with(CandidateOutcome::Fallback),
            escalation,
        ]);
    }
    table.to_string()
}

fn tier(name: &str) -> Result<Tier, String> {
    Tier::parse(name).ok_or_else(|| format!("{name:?} is none of simple, medium, complex"))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    Timestamp::try_from(text.to_owned())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
