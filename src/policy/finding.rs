//! What is wrong, or probably not meant, in a policy document.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Whether the document is refused for it.
    pub severity: Severity,
    /// Stable; scripts may depend on it.
    pub code: FindingCode,
    /// Where, for example `chains.cheap[1]`; empty: the whole document.
    pub path: String,
    /// The line, from 1; 0: unknown.
    pub line: u32,
    /// What is wrong and what to do.
    pub message: String,
    /// The tenant that an error concerns; the rest of the document can be used. `None`: all of it is concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document is accepted; this is probably not what was meant.
    Warning,
}

macro_rules! finding_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $severity:ident $name:literal,)+) => {
        /// The stable codes. `docs/policy.md` lists them; a test compares the two.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum FindingCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl FindingCode {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code on the wire and in logs.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Whether it refuses the document.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$variant => Severity::$severity,)+
                }
            }
        }
    };
}

finding_codes! {
    /// The document is larger than the limit.
    DocumentTooLarge = Error "DOCUMENT_TOO_LARGE",
    /// The document is not YAML, or not UTF-8.
    Syntax = Error "SYNTAX",
    /// Lists and mappings are nested too deep.
    TooDeep = Error "TOO_DEEP",
    /// Anchors, aliases and tags are not accepted: what is written is what is meant.
    AliasOrTag = Error "ALIAS_OR_TAG",
    /// A key is given twice in one mapping.
    DuplicateKey = Error "DUPLICATE_KEY",
    /// No such field exists.
    UnknownField = Error "UNKNOWN_FIELD",
    /// A required field or section is missing.
    MissingField = Error "MISSING_FIELD",
    /// A value has the wrong type or is none of the allowed ones.
    InvalidValue = Error "INVALID_VALUE",
    /// The document is of a schema this version does not know.
    UnknownSchema = Error "UNKNOWN_SCHEMA",
    /// A model is named that `models` does not have.
    UnknownModel = Error "UNKNOWN_MODEL",
    /// A chain is named that `chains` does not have.
    UnknownChain = Error "UNKNOWN_CHAIN",
    /// A provider is allowed that no model has.
    UnknownProvider = Error "UNKNOWN_PROVIDER",
    /// An intent is named that the classifier does not have.
    UnknownIntent = Error "UNKNOWN_INTENT",
    /// A chain has no model.
    EmptyChain = Error "EMPTY_CHAIN",
    /// A chain names a model twice.
    DuplicateModel = Error "DUPLICATE_MODEL",
    /// A number is outside what makes sense.
    OutOfRange = Error "OUT_OF_RANGE",
    /// Weights of endpoints or arms are negative or do not sum to 1.
    BadWeights = Error "BAD_WEIGHTS",
    /// The ladder names a model twice: escalation would go in circles.
    LadderCycle = Error "LADDER_CYCLE",
    /// A step of the ladder is weaker than, or as weak as, the one before.
    EscalationToWeaker = Error "ESCALATION_TO_WEAKER",
    /// A step of the ladder is cheaper than the one before.
    EscalationToCheaper = Error "ESCALATION_TO_CHEAPER",
    /// No route takes every intent and tier.
    NoDefaultRoute = Error "NO_DEFAULT_ROUTE",
    /// A rule has the name of another.
    DuplicateRule = Error "DUPLICATE_RULE",
    /// A rule's regular expression does not compile.
    BadRegex = Error "BAD_REGEX",
    /// A rule is wrong in another way; the message says how.
    BadRule = Error "BAD_RULE",
    /// An experiment is not of the form its kind asks for; the message says how.
    BadExperiment = Error "BAD_EXPERIMENT",
    /// A rule can never have an effect: one before it stops whenever it would match.
    ShadowedRule = Warning "SHADOWED_RULE",
    /// No request can reach a route: those before it take everything it would.
    UnreachableRoute = Warning "UNREACHABLE_ROUTE",
    /// All models of a chain have one provider: its outage empties the chain.
    SingleProviderChain = Warning "SINGLE_PROVIDER_CHAIN",
    /// The default route's chain starts with the dearest model of the policy.
    DearestDefault = Warning "DEAREST_DEFAULT",
    /// Nothing names a chain.
    UnusedChain = Warning "UNUSED_CHAIN",
    /// No chain or ladder names a model.
    UnusedModel = Warning "UNUSED_MODEL",
    /// Every provider of a chain is disabled.
    ChainDisabled = Warning "CHAIN_DISABLED",
    /// A model's provider is not listed in `providers`.
    ProviderNotListed = Warning "PROVIDER_NOT_LISTED",
    /// A listed provider has no model.
    ProviderWithoutModels = Warning "PROVIDER_WITHOUT_MODELS",
    /// An override enables a provider that a more general part disables; it stays disabled.
    ProviderStaysDisabled = Warning "PROVIDER_STAYS_DISABLED",
    /// A rule or experiment asks for a role that the policy does not have; such requests are refused, so it never applies.
    UnknownRole = Warning "UNKNOWN_ROLE",
    /// The service is started with an environment that the policy does not have; no overlay applies.
    UnknownEnvironment = Warning "UNKNOWN_ENVIRONMENT",
    /// No arm of an experiment changes anything.
    ExperimentWithoutEffect = Warning "EXPERIMENT_WITHOUT_EFFECT",
    /// Two experiments change the same thing for the same requests; the first by name wins.
    ExperimentOverlap = Warning "EXPERIMENT_OVERLAP",
}

// === impl Finding ===

impl Finding {
    /// A finding at a place.
    pub fn new(code: FindingCode, path: impl std::fmt::Display, line: u32, message: impl Into<String>) -> Self {
        Self { severity: code.severity(), code, path: format!("{path}"), line, message: message.into(), tenant: None }
    }

    /// Whether the document cannot be used because of it.
    pub fn refuses_document(&self) -> bool {
        self.severity == Severity::Error && self.tenant.is_none()
    }
}

impl Serialize for FindingCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The findings as text for a terminal, in the form compilers use; `name` is the document's.
///
/// ```text
/// policy.yaml:12: error[UNKNOWN_MODEL]: model "gtp-5" is not in `models`; did you mean "gpt-5"?
///     at chains.cheap[1]
/// 1 error, 0 warnings
/// ```
pub fn render_findings(findings: &[Finding], name: &str) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let line = if finding.line == 0 { String::new() } else { format!(":{}", finding.line) };
        // Writing to a String cannot fail.
        _ = writeln!(text, "{name}{line}: {severity}[{}]: {}", finding.code.as_str(), finding.message);
        if !finding.path.is_empty() {
            _ = writeln!(text, "    at {}", finding.path);
        }
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let mut tenants: Vec<&str> = findings.iter().filter_map(|finding| finding.tenant.as_deref()).collect();
    tenants.dedup();
    _ = write!(text, "{}, {}", count(errors, "error"), count(findings.len() - errors, "warning"));
    if errors > 0 && !findings.iter().any(Finding::refuses_document) {
        _ = write!(text, "; only what tenant {} overrides is refused", tenants.join(", "));
    }
    text.push('\n');
    text
}

/// The entry of `known` most like `name`, as the tail of a message; empty when none is near.
pub(super) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|known| (distance(name, known), known)).min();
    match near {
        Some((distance, known)) if distance <= 1 + name.chars().count() / 4 => format!("; did you mean {known:?}?"),
        _ => String::new(),
    }
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (to, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = (diagonal + usize::from(from != *to)).min(*above + 1).min(left + 1);
            diagonal = *above;
            *above = cost;
            left = cost;
        }
    }
    row.last().copied().unwrap_or(0)
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_like_a_compiler() {
        let findings = [
            Finding::new(FindingCode::UnknownModel, "chains.cheap[1]", 12, "model \"x\" is not in `models`"),
            Finding::new(FindingCode::UnusedChain, "", 0, "nothing names it"),
        ];
        let text = render_findings(&findings, "policy.yaml");
        assert_eq!(
            text,
            "policy.yaml:12: error[UNKNOWN_MODEL]: model \"x\" is not in `models`\n    at chains.cheap[1]\n\
             policy.yaml: warning[UNUSED_CHAIN]: nothing names it\n1 error, 1 warning\n"
        );
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(did_you_mean("gtp-5", ["gpt-5", "claude"]), "; did you mean \"gpt-5\"?");
        assert_eq!(did_you_mean("cheap", ["frontier"]), "");
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
