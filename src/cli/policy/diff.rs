//! `pointsman policy diff`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::{Format, load};
use crate::cli::print_line;
use crate::policy::{Answer, Effect, PolicyDiff, diff};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The older document.
    old: PathBuf,
    /// The newer document.
    new: PathBuf,
    /// Which of their environments applies [default: none].
    #[arg(long, env = "POINTSMAN_ENVIRONMENT")]
    environment: Option<String>,
    /// Lines for people, or one JSON object.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Tenants that a line names before it counts the rest.
const NAMED_TENANTS: usize = 4;

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environment = args.environment.as_deref();
    let found = diff(&load(&args.old, environment)?, &load(&args.new, environment)?);
    let alike = found == PolicyDiff::default();
    print_line(&match args.format {
        Format::Text => text(&found),
        Format::Json => serde_json::to_string_pretty(&found)?,
    });
    Ok(if alike { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(found: &PolicyDiff) -> String {
    let mut out = format!("{} change(s) in the document\n", found.changes.len());
    for change in &found.changes {
        let side = |value: &Option<Value>| value.as_ref().map_or("(absent)".to_owned(), Value::to_string);
        // Writing to a String cannot fail.
        _ = writeln!(out, "  {}: {} -> {}", change.path, side(&change.from), side(&change.to));
    }
    _ = writeln!(out, "{} change(s) of what is selected, for requests that require nothing", found.effects.len());
    for Effect { tenants, role, intent, tier, from, to } in &found.effects {
        let role = if role.is_empty() { String::new() } else { format!(", role {role}") };
        _ = writeln!(out, "  {intent} {tier}{role}, {}: {} -> {}", who(tenants), answer(from), answer(to));
    }
    if found.truncated {
        out.push_str("  and perhaps more: there are more tenants and roles than are compared\n");
    }
    out.trim_end().to_owned()
}

fn who(tenants: &[String]) -> String {
    let name = |tenant: &String| if tenant.is_empty() { "no tenant".to_owned() } else { format!("tenant {tenant}") };
    let named: Vec<String> = tenants.iter().take(NAMED_TENANTS).map(name).collect();
    let rest = tenants.len() - named.len();
    if rest == 0 { named.join(", ") } else { format!("{} and {rest} more", named.join(", ")) }
}

fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Model { chain, model } => format!("{model} ({chain})"),
        Answer::NoCandidate { chain } => format!("no candidate ({chain})"),
        Answer::Refused => "refused".to_owned(),
    }
}
