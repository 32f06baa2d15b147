//! Bytes to [`Document`].
//!
//! Every model, chain, route, rule and override is read on its own, so that one mistake hides no other. A part that
//! cannot be read is replaced by its default and remembered as broken: nothing else is reported about it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::rules::Path;

use super::decode::{decode, unknown_field};
use super::document::{Document, LayerSpec, SCHEMA, TenantSpec};
use super::experiment::{ArmSpec, ExperimentSpec};
use super::finding::{Finding, FindingCode};
use super::tree::{self, Entry, Kind, Node};

/// A document with what is needed to report on it.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) document: Document,
    pub(super) tree: Node,
    /// Parts that could not be read.
    pub(super) broken: Vec<Path>,
    pub(super) findings: Vec<Finding>,
}

/// Reads a document as far as it can be read.
///
/// # Errors
/// When it is no YAML mapping at all.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Vec<Finding>> {
    let mut findings = Vec::new();
    let tree = match tree::read(bytes, &mut findings) {
        Ok(tree) => tree,
        Err(finding) => {
            findings.push(finding);
            return Err(findings);
        }
    };
    let mut reader = DocumentReader { findings, broken: Vec::new() };
    let document = reader.document(&tree);
    let DocumentReader { findings, broken } = reader;
    Ok(Parsed { document, tree, broken, findings })
}

/// Fields of the top level that are not part of [`LayerSpec`].
const DOCUMENT_FIELDS: &[&str] =
    &["schema", "id", "version", "models", "defaults", "environments", "roles", "tenants", "experiments"];
/// Fields of the top level and of every override.
const LAYER_FIELDS: &[&str] =
    &["providers", "allowed_providers", "chains", "routes", "rules", "thresholds", "escalation", "fan_out", "chain"];
/// Fields of tenants only.
const TENANT_FIELDS: &[&str] = &["roles"];
/// Fields of experiments.
const EXPERIMENT_FIELDS: &[&str] = &["enabled", "kind", "sticky_by", "tenants", "roles", "ramp", "arms"];
/// Fields of arms only.
const ARM_FIELDS: &[&str] = &["weight"];
/// Sections without which nothing can be routed.
pub(super) const REQUIRED: &[&str] = &["schema", "id", "version", "models", "chains", "routes"];

struct DocumentReader {
    findings: Vec<Finding>,
    broken: Vec<Path>,
}

// === impl DocumentReader ===

impl DocumentReader {
    fn document(&mut self, tree: &Node) -> Document {
        let root = Path::default();
        let mut document = Document::default();
        let mut schema = String::new();
        for entry in self.entries(tree, &root) {
            let path = root.then(entry.key.as_str());
            match entry.key.as_str() {
                "schema" => schema = self.value(&entry.value, &path),
                "id" => document.id = self.value(&entry.value, &path),
                "version" => document.version = self.value(&entry.value, &path),
                "models" => document.models = self.map(&entry.value, &path),
                "defaults" if entry.value.is_null() => {}
                "defaults" => document.defaults = self.value(&entry.value, &path),
                "roles" => document.roles = self.layers(&entry.value, &path),
                "tenants" => document.tenants = self.tenants(&entry.value, &path),
                "environments" => document.environments = self.layers(&entry.value, &path),
                "experiments" => document.experiments = self.experiments(&entry.value, &path),
                _ if self.layer_field(&mut document.base, entry, &path) => {}
                _ => {
                    let known = DOCUMENT_FIELDS.iter().chain(LAYER_FIELDS).copied();
                    self.findings.push(unknown_field(&root, entry, known));
                }
            }
        }
        for field in REQUIRED.iter().filter(|field| tree.get(field).is_none()) {
            let message = format!("field `{field}` is missing");
            self.findings.push(Finding::new(FindingCode::MissingField, "", tree.line, message));
            self.broken.push(root.then(*field));
        }
        if let Some(entry) = tree.get("schema")
            && schema != SCHEMA
        {
            let message = format!("schema {schema:?} is not known to this version; write {SCHEMA:?}");
            self.findings.push(Finding::new(FindingCode::UnknownSchema, "schema", entry.line, message));
        }
        document
    }

    fn tenants(&mut self, node: &Node, at: &Path) -> BTreeMap<String, TenantSpec> {
        let mut tenants = BTreeMap::new();
        for entry in self.entries(node, at) {
            let at = at.then(entry.key.as_str());
            let mut tenant = TenantSpec::default();
            for field in self.entries(&entry.value, &at) {
                let path = at.then(field.key.as_str());
                match field.key.as_str() {
                    "roles" => tenant.roles = self.layers(&field.value, &path),
                    _ => self.override_field(&mut tenant.layer, field, &at, TENANT_FIELDS),
                }
            }
            tenants.insert(entry.key.clone(), tenant);
        }
        tenants
    }

    fn experiments(&mut self, node: &Node, at: &Path) -> BTreeMap<String, ExperimentSpec> {
        let mut experiments = BTreeMap::new();
        for entry in self.entries(node, at) {
            let at = at.then(entry.key.as_str());
            let mut experiment = ExperimentSpec::default();
            for field in self.entries(&entry.value, &at) {
                let path = at.then(field.key.as_str());
                match field.key.as_str() {
                    "enabled" => experiment.enabled = self.value(&field.value, &path),
                    "kind" => experiment.kind = self.value(&field.value, &path),
                    "sticky_by" => experiment.sticky_by = self.value(&field.value, &path),
                    "tenants" => experiment.tenants = self.value(&field.value, &path),
                    "roles" => experiment.roles = self.value(&field.value, &path),
                    "ramp" => experiment.ramp = self.value(&field.value, &path),
                    "arms" => experiment.arms = self.arms(&field.value, &path),
                    _ => self.findings.push(unknown_field(&at, field, EXPERIMENT_FIELDS.iter().copied())),
                }
            }
            if entry.value.get("arms").is_none() {
                let message = "field `arms` is missing";
                self.findings.push(Finding::new(FindingCode::MissingField, &at, entry.line, message));
                self.broken.push(at.then("arms"));
            }
            experiments.insert(entry.key.clone(), experiment);
        }
        experiments
    }

    fn arms(&mut self, node: &Node, at: &Path) -> BTreeMap<String, ArmSpec> {
        let mut arms = BTreeMap::new();
        for entry in self.entries(node, at) {
            let at = at.then(entry.key.as_str());
            let mut arm = ArmSpec::default();
            for field in self.entries(&entry.value, &at) {
                match field.key.as_str() {
                    "weight" => arm.weight = self.value(&field.value, &at.then("weight")),
                    _ => self.override_field(&mut arm.layer, field, &at, ARM_FIELDS),
                }
            }
            arms.insert(entry.key.clone(), arm);
        }
        arms
    }

    fn layers(&mut self, node: &Node, at: &Path) -> BTreeMap<String, LayerSpec> {
        let mut layers = BTreeMap::new();
        for entry in self.entries(node, at) {
            let at = at.then(entry.key.as_str());
            let mut layer = LayerSpec::default();
            for field in self.entries(&entry.value, &at) {
                self.override_field(&mut layer, field, &at, &[]);
            }
            layers.insert(entry.key.clone(), layer);
        }
        layers
    }

    fn override_field(&mut self, layer: &mut LayerSpec, entry: &Entry, at: &Path, also_known: &[&str]) {
        let path = at.then(entry.key.as_str());
        if !self.layer_field(layer, entry, &path) {
            let known = LAYER_FIELDS.iter().chain(also_known).copied();
            self.findings.push(unknown_field(at, entry, known));
        }
    }

    /// Reads a field that the top level shares with overrides; false: it is none.
    fn layer_field(&mut self, layer: &mut LayerSpec, entry: &Entry, path: &Path) -> bool {
        match entry.key.as_str() {
            "thresholds" | "escalation" if entry.value.is_null() => {}
            "allowed_providers" => layer.allowed_providers = self.value(&entry.value, path),
            "chain" => layer.chain = self.value(&entry.value, path),
            "providers" => layer.providers = self.map(&entry.value, path),
            "chains" => layer.chains = self.map(&entry.value, path),
            "routes" => layer.routes = self.list(&entry.value, path),
            "rules" => layer.rules = self.list(&entry.value, path),
            "thresholds" => layer.thresholds = self.value(&entry.value, path),
            "escalation" => layer.escalation = self.value(&entry.value, path),
            "fan_out" => layer.fan_out = self.list(&entry.value, path),
            _ => return false,
        }
        true
    }

    fn value<T: DeserializeOwned + Default>(&mut self, node: &Node, at: &Path) -> T {
        match decode(node, at, &mut self.findings) {
            Ok(value) => value,
            Err(finding) => {
                self.findings.push(finding);
                self.broken.push(at.clone());
                T::default()
            }
        }
    }

    fn map<T: DeserializeOwned + Default>(&mut self, node: &Node, at: &Path) -> BTreeMap<String, T> {
        let entries = self.entries(node, at);
        entries
            .iter()
            .map(|entry| (entry.key.clone(), self.value(&entry.value, &at.then(entry.key.as_str()))))
            .collect()
    }

    fn list<T: DeserializeOwned + Default>(&mut self, node: &Node, at: &Path) -> Vec<T> {
        match &node.kind {
            Kind::List(nodes) => {
                nodes.iter().enumerate().map(|(index, node)| self.value(node, &at.then(index))).collect()
            }
            Kind::Map(_) | Kind::Scalar { .. } if !node.is_null() => {
                self.wrong_kind(node, at, "a list");
                Vec::new()
            }
            Kind::Map(_) | Kind::Scalar { .. } => Vec::new(),
        }
    }

    /// The entries of a mapping; a section left empty has none.
    fn entries<'a>(&mut self, node: &'a Node, at: &Path) -> &'a [Entry] {
        match &node.kind {
            Kind::Map(entries) => entries,
            Kind::List(_) | Kind::Scalar { .. } if !node.is_null() => {
                self.wrong_kind(node, at, "a mapping of names to values");
                &[]
            }
            Kind::List(_) | Kind::Scalar { .. } => &[],
        }
    }

    fn wrong_kind(&mut self, node: &Node, at: &Path, expected: &str) {
        let message = format!("{expected} is expected here");
        self.findings.push(Finding::new(FindingCode::InvalidValue, at, node.line, message));
        self.broken.push(at.clone());
    }
}
