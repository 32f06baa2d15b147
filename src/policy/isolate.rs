//! Keeps one tenant's mistake from the others: which errors concern one tenant, and what is left of its part.
//!
//! What a tenant forbids outlives its mistakes. A tenant that may only use some providers must not be served by others
//! because a chain of its is misspelt; where not even that can be read, nothing may serve it.

use std::collections::{BTreeMap, BTreeSet};

use crate::rules::Path;

use super::document::LayerSpec;
use super::finding::{Finding, FindingCode, Severity};
use super::parse::Parsed;
use super::tree::Kind;

/// Says of each error whether it concerns one tenant only.
pub(super) fn isolate(parsed: &Parsed, findings: &mut [Finding]) {
    let section = Path::default().then("tenants");
    let Some(Kind::Map(tenants)) = parsed.tree.get("tenants").map(|entry| &entry.value.kind) else { return };
    let prefixes: Vec<(String, &str)> =
        tenants.iter().map(|entry| (section.then(entry.key.as_str()).to_string(), entry.key.as_str())).collect();
    for finding in findings.iter_mut().filter(|finding| finding.severity == Severity::Error) {
        let inside = |prefix: &str| {
            finding.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        finding.tenant = prefixes.iter().find(|(prefix, _)| inside(prefix)).map(|(_, name)| (*name).to_owned());
    }
}

/// The tenants whose part has errors, and whether what they forbid could be read.
pub(super) fn refused_tenants(parsed: &Parsed, findings: &[Finding]) -> BTreeMap<String, bool> {
    let names: BTreeSet<&str> = findings.iter().filter_map(|finding| finding.tenant.as_deref()).collect();
    let section = Path::default().then("tenants");
    let readable = |name: &str| {
        let at = section.then(name);
        // A part that could not be read and might have forbidden something.
        let lost = |path: &Path| {
            let Some(rest) = path.0.get(at.0.len()..).filter(|_| path.starts_with(&at)) else { return false };
            // After the tenant itself: nothing, `roles`, or a role, or one of the two fields in either.
            let own = !matches!(rest.first(), Some(step) if *step == "roles".into());
            let inner = if own { rest } else { rest.get(2..).unwrap_or_default() };
            inner
                .first()
                .is_none_or(|field| ["providers", "allowed_providers"].iter().any(|name| *field == (*name).into()))
        };
        // A misspelt field that might have been one of the two.
        let misspelt = |finding: &Finding| {
            finding.tenant.as_deref() == Some(name)
                && matches!(finding.code, FindingCode::UnknownField | FindingCode::DuplicateKey)
                && finding.path.rsplit('.').next().is_some_and(|field| field.contains("provider"))
        };
        !parsed.broken.iter().any(lost) && !findings.iter().any(misspelt)
    };
    names.into_iter().map(|name| (name.to_owned(), readable(name))).collect()
}

/// What is left of a refused override: what it forbids.
pub(super) fn restrictions(spec: &LayerSpec, readable: bool) -> LayerSpec {
    let allowed = if readable { spec.allowed_providers.clone() } else { Some(Vec::new()) };
    LayerSpec {
        providers: spec.providers.clone(),
        allowed_providers: allowed,
        limits: spec.limits.clone(),
        ..LayerSpec::default()
    }
}
