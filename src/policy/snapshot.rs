//! A policy ready to decide with: immutable, shared, every name resolved once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::domain::Tier;
use crate::rules::{Atom, RuleSet};

use super::assign::Experiment;
use super::document::{
    Capability, DefaultsSpec, Document, LayerSpec, ModelSpec, PriceSpec, ScorerSpec, ThresholdsSpec,
};
use super::economy::Scorer;
use super::finding::{Finding, Severity};
use super::isolate::{refused_tenants, restrictions};
use super::parse::{Parsed, parse};
use super::select::name_hash;
use super::validate::validate;

/// A policy in the form that decides.
#[derive(Debug)]
pub struct Policy {
    id: Arc<str>,
    version: Arc<str>,
    sha256: Arc<str>,
    document: Arc<str>,
    spec: Document,
    findings: Vec<Finding>,
    pub(super) models: Vec<Model>,
    pub(super) base: Arc<Layer>,
    pub(super) environment: Option<Arc<Layer>>,
    environment_name: Option<String>,
    pub(super) roles: BTreeMap<String, Arc<Layer>>,
    pub(super) tenants: BTreeMap<String, Tenant>,
    pub(super) experiments: Vec<Experiment>,
    pub(super) defaults: Defaults,
}

/// What is known outside the document that its validation may use.
#[derive(Clone, Debug, Default)]
pub struct PolicyOptions {
    /// The classifier's intents. `None`: not known, so intents named in the policy are not checked.
    pub intents: Option<Arc<[Arc<str>]>>,
    /// Which of the document's environments applies; `None`: none.
    pub environment: Option<String>,
}

/// A document was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the policy document has {} error(s); the first: {}", self.errors(), self.first())]
pub struct InvalidPolicy {
    /// Everything found, warnings included, in document order.
    pub findings: Vec<Finding>,
}

/// A model with what the filters look at.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: Arc<str>,
    /// Of its name; what cascades and endpoints know it by.
    pub(super) hash: u64,
    pub(super) provider: Arc<str>,
    /// What the provider calls it.
    pub(super) name_there: Arc<str>,
    pub(super) access_path: &'static str,
    pub(super) price: PriceSpec,
    pub(super) context_window_tokens: u32,
    pub(super) tools: bool,
    pub(super) vision: bool,
    pub(super) json_mode: bool,
    pub(super) typical_latency_ms: Option<u32>,
    pub(super) regions: Vec<String>,
    pub(super) ability: Option<f64>,
    pub(super) parameters: Arc<BTreeMap<String, String>>,
    /// Names and weights, in name order; weights sum to 1.
    pub(super) endpoints: Vec<(String, f64)>,
}

/// [`LayerSpec`] with every name resolved.
#[derive(Debug)]
pub(super) struct Layer {
    /// For reasons: "the policy", "role x".
    pub(super) origin: String,
    /// As it is written.
    pub(super) spec: LayerSpec,
    pub(super) disabled: HashSet<String>,
    pub(super) allowed: Option<HashSet<String>>,
    pub(super) chains: HashMap<Arc<str>, Chain>,
    pub(super) routes: Vec<Route>,
    pub(super) rules: Arc<RuleSet>,
    pub(super) thresholds: ThresholdsSpec,
    pub(super) ladder: Option<Vec<usize>>,
    pub(super) max_hops: Option<u32>,
    pub(super) score_threshold: Option<crate::domain::Probability>,
    pub(super) scorer: Option<Scorer>,
    pub(super) chain: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) name: Arc<str>,
    /// Indices into [`Policy::models`].
    pub(super) models: Arc<[usize]>,
}

#[derive(Debug)]
pub(super) struct Route {
    /// Position in its list, from 0.
    pub(super) position: usize,
    /// `None`: any.
    pub(super) intents: Option<Vec<String>>,
    pub(super) tiers: [bool; Tier::ALL.len()],
    pub(super) chain: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) layer: Arc<Layer>,
    pub(super) roles: BTreeMap<String, Arc<Layer>>,
    /// Its part of the document has errors, so that only what it forbids is kept.
    pub(super) refused: bool,
}

#[derive(Debug)]
pub(super) struct Defaults {
    pub(super) spec: DefaultsSpec,
    pub(super) intent: Arc<str>,
}

// === impl Policy ===

impl Policy {
    /// Reads, checks and compiles a document.
    ///
    /// Errors within one tenant's part refuse that part alone: its requests get the rest of the policy, less what the
    /// tenant forbids.
    ///
    /// # Errors
    /// When any other part has an error; every finding is told, warnings included.
    pub fn load(bytes: &[u8], options: &PolicyOptions) -> Result<Self, InvalidPolicy> {
        let parsed = parse(bytes).map_err(|findings| InvalidPolicy { findings })?;
        let findings = validate(&parsed, options);
        if findings.iter().any(Finding::refuses_document) {
            return Err(InvalidPolicy { findings });
        }
        Ok(Self::compile(parsed, bytes, findings, options))
    }

    /// Everything found in a document, in document order; empty: nothing to complain about.
    pub fn check(bytes: &[u8], options: &PolicyOptions) -> Vec<Finding> {
        parse(bytes).map_or_else(|findings| findings, |parsed| validate(&parsed, options))
    }

    /// Builds the snapshot of a document whose shared parts have no errors.
    fn compile(parsed: Parsed, bytes: &[u8], findings: Vec<Finding>, options: &PolicyOptions) -> Self {
        let refused = refused_tenants(&parsed, &findings);
        let document = parsed.document;
        let models: Vec<Model> = document.models.iter().map(|(name, spec)| Model::new(name, spec)).collect();
        let compiler =
            Compiler { models: document.models.keys().zip(0..).map(|(name, id)| (name.as_str(), id)).collect() };
        let tenants = document.tenants.iter().map(|(name, spec)| {
            let refused = refused.get(name).copied();
            let layer = |spec: &LayerSpec, origin: String| {
                refused.map_or_else(
                    || compiler.layer(spec, origin.clone()),
                    |readable| compiler.layer(&restrictions(spec, readable), origin.clone()),
                )
            };
            let roles = spec
                .roles
                .iter()
                .map(|(role, spec)| (role.clone(), layer(spec, format!("role {role} of tenant {name}"))));
            let layer = layer(&spec.layer, format!("tenant {name}"));
            (name.clone(), Tenant { layer, roles: roles.collect(), refused: refused.is_some() })
        });
        let tenants: BTreeMap<String, Tenant> = tenants.collect();
        let roles = document.roles.iter();
        let roles = roles.map(|(name, spec)| (name.clone(), compiler.layer(spec, format!("role {name}"))));
        let environment = options.environment.as_ref().and_then(|name| {
            document.environments.get(name).map(|spec| compiler.layer(spec, format!("environment {name}")))
        });
        let experiments = document.experiments.iter().filter(|(_, spec)| spec.enabled);
        let experiments = experiments.map(|(name, spec)| {
            Experiment::new(name, spec, |arm| {
                let layer = spec.arms.get(arm).map(|arm| &arm.layer).filter(|layer| **layer != LayerSpec::default());
                layer.map(|layer| compiler.layer(layer, format!("arm {arm} of experiment {name}")))
            })
        });
        Self {
            id: Arc::from(document.id.as_str()),
            version: Arc::from(document.version.as_str()),
            sha256: Arc::from(sha256_hex(bytes)),
            document: Arc::from(String::from_utf8_lossy(bytes)),
            findings,
            base: compiler.layer(&document.base, "the policy".to_owned()),
            environment,
            environment_name: options.environment.clone(),
            roles: roles.collect(),
            tenants,
            experiments: experiments.collect(),
            defaults: Defaults::new(&document),
            models,
            spec: document,
        }
    }

    /// The document's id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The document's version.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// SHA-256 of the document's bytes, lower-case hexadecimal.
    pub fn sha256(&self) -> &Arc<str> {
        &self.sha256
    }

    /// The document as it was loaded.
    pub fn document(&self) -> &Arc<str> {
        &self.document
    }

    /// The document as typed values.
    pub fn spec(&self) -> &Document {
        &self.spec
    }

    /// What validation found: warnings, and errors that concern one tenant each.
    pub fn warnings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether any experiment is running, so that assigning arms is worth a request's while.
    pub fn has_experiments(&self) -> bool {
        !self.experiments.is_empty()
    }

    /// What rules ask of texts, by the part of the policy they are in, as [`Scope::origins`](super::Scope) names it.
    pub fn asked(&self) -> BTreeMap<String, Vec<Atom>> {
        let asking = self.layers().filter(|layer| layer.rules.atoms().next().is_some());
        asking.map(|layer| (layer.origin.clone(), layer.rules.atoms().collect())).collect()
    }

    /// Metadata keys that rules or experiments read.
    pub fn metadata_keys(&self) -> BTreeSet<String> {
        let of_rules = self.layers().flat_map(|layer| layer.rules.metadata_keys().iter().map(String::as_str));
        of_rules.chain(self.experiment_keys()).map(str::to_owned).collect()
    }

    /// Metadata keys that experiments stick to.
    pub fn experiment_keys(&self) -> impl Iterator<Item = &str> {
        self.experiments.iter().filter_map(Experiment::metadata_key)
    }

    /// The environment that was asked for; the document need not have it.
    pub fn environment(&self) -> Option<&str> {
        self.environment_name.as_deref()
    }

    /// Every part that rules can come from.
    fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        let tenants = self.tenants.values().flat_map(|tenant| tenant.roles.values().chain([&tenant.layer]));
        let arms = self.experiments.iter().flat_map(|experiment| &experiment.arms);
        let arms = arms.filter_map(|arm| arm.layer.as_ref());
        [&self.base].into_iter().chain(&self.environment).chain(self.roles.values()).chain(tenants).chain(arms)
    }
}

/// SHA-256 as lower-case hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// Resolves names. The document has no errors, so none is missing; if one were, it would be left out.
struct Compiler<'a> {
    models: HashMap<&'a str, usize>,
}

// === impl Compiler ===

impl Compiler<'_> {
    fn layer(&self, spec: &LayerSpec, origin: String) -> Arc<Layer> {
        let disabled = spec.providers.iter().filter(|(_, provider)| !provider.enabled);
        let chains = spec.chains.iter().map(|(name, models)| {
            let name: Arc<str> = Arc::from(name.as_str());
            (Arc::clone(&name), Chain { name, models: self.models(models).into() })
        });
        let routes = spec.routes.iter().enumerate().map(|(position, route)| Route {
            position,
            intents: (!route.intent.iter().any(|intent| intent == "*")).then(|| route.intent.clone()),
            tiers: Tier::ALL.map(|tier| route.tier.iter().any(|pattern| pattern.takes(tier))),
            chain: Arc::from(route.chain.as_str()),
        });
        Arc::new(Layer {
            origin,
            spec: spec.clone(),
            disabled: disabled.map(|(name, _)| name.clone()).collect(),
            allowed: spec.allowed_providers.as_ref().map(|names| names.iter().cloned().collect()),
            chains: chains.collect(),
            routes: routes.collect(),
            rules: Arc::new(RuleSet::compile(&spec.rules).unwrap_or_default()),
            thresholds: spec.thresholds.clone(),
            ladder: spec.escalation.ladder.as_ref().map(|ladder| self.models(ladder)),
            max_hops: spec.escalation.max_hops,
            score_threshold: spec.escalation.score_threshold,
            scorer: spec.escalation.scorer.as_ref().map(ScorerSpec::compile),
            chain: spec.chain.as_deref().map(Arc::from),
        })
    }

    fn models(&self, names: &[String]) -> Vec<usize> {
        names.iter().filter_map(|name| self.models.get(name.as_str()).copied()).collect()
    }
}

// === impl Model ===

impl Model {
    fn new(name: &str, spec: &ModelSpec) -> Self {
        let offers = |capability| spec.capabilities.contains(&capability);
        let parameters = spec.parameters.iter().map(|(key, value)| (key.clone(), value.to_string()));
        Self {
            name: Arc::from(name),
            hash: name_hash(name),
            provider: Arc::from(spec.provider.as_str()),
            name_there: Arc::from(spec.provider_model.as_str()),
            access_path: spec.access_path.as_str(),
            price: spec.price_per_million_tokens,
            context_window_tokens: spec.context_window_tokens,
            tools: offers(Capability::Tools),
            vision: offers(Capability::Vision),
            json_mode: offers(Capability::JsonMode),
            typical_latency_ms: spec.typical_latency_ms,
            regions: spec.regions.clone(),
            ability: spec.ability,
            parameters: Arc::new(parameters.collect()),
            endpoints: spec.endpoints.iter().map(|(name, weight)| (name.clone(), *weight)).collect(),
        }
    }
}

// === impl Defaults ===

impl Defaults {
    fn new(document: &Document) -> Self {
        Self { intent: Arc::from(document.defaults.intent.as_str()), spec: document.defaults.clone() }
    }
}

// === impl InvalidPolicy ===

impl InvalidPolicy {
    fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    fn first(&self) -> String {
        let first = self.findings.iter().find(|finding| finding.refuses_document());
        first.map_or_else(String::new, |finding| {
            format!("line {}: {} {}: {}", finding.line, finding.code.as_str(), finding.path, finding.message)
        })
    }
}
