//! Who changes policies and models during a run, and what goes wrong on the way.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pointsman::rpc::proto;
use pointsman::rpc::proto::policy_service_client::PolicyServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::super::super::control_plane_support::{Mode, Plane};
use super::super::model_reload::edit;
use super::checker::SLACK;
use super::document::{Doc, MODELS, PROVIDERS, sha256};
use super::history::{Install, Spec};
use super::workload::Dice;

/// The operator of one run.
pub(super) struct Operator {
    pub(super) spec: Spec,
    pub(super) policies: PolicyServiceClient<Channel>,
    pub(super) source: Source,
    pub(super) models_dir: Option<PathBuf>,
    pub(super) dice: Dice,
    pub(super) installs: Vec<Install>,
    pub(super) models: Vec<(String, Instant)>,
    pub(super) number: usize,
}

/// Where the policy comes from.
pub(super) enum Source {
    File(PathBuf),
    Http(Plane),
}

/// Within which time a change has to be in force.
pub(super) const FILE_TTL: Duration = Duration::from_millis(300);
pub(super) const HTTP_TTL: Duration = Duration::from_millis(200);
const GARBAGE: [&str; 4] =
    ["", "schema: pointsman.policy/v1\nid: [", "schema: pointsman.policy/v9\n", "\u{0}\u{0}\u{0}"];

// === impl Doc ===

impl Doc {
    pub(super) fn first() -> Self {
        Self {
            version: "1".into(),
            number: 1,
            off: [].into(),
            chains: [vec![0, 1, 3], vec![1, 2, 0], vec![3, 2]],
            max_hops: 2,
        }
    }

    /// Turns a provider off or on; seldom more than one is off. Whether it is on then.
    fn switch(&mut self, provider: &'static str, dice: &mut Dice) -> bool {
        let on = self.off.remove(provider);
        if !on && (self.off.is_empty() || dice.percent(30)) {
            self.off.insert(provider);
            return false;
        }
        true
    }

    /// Another one, which differs in what can be seen.
    fn next(&self, number: usize, dice: &mut Dice) -> Self {
        let mut next = Self { version: number.to_string(), number, ..self.clone() };
        next.switch(PROVIDERS[dice.below(PROVIDERS.len())], dice);
        for chain in &mut next.chains {
            if dice.percent(50) {
                let mut models: Vec<usize> = (0..MODELS.len()).collect();
                (1..models.len()).rev().for_each(|i| models.swap(i, dice.below(i + 1)));
                models.truncate(2 + dice.below(3));
                *chain = models;
            }
        }
        next.max_hops = 1 + dice.below(3) as u32;
        next
    }
}

// === impl Operator ===

impl Operator {
    pub(super) async fn run(&mut self) {
        let end = Instant::now() + self.spec.length;
        while Instant::now() < end {
            if self.models_dir.is_some() && self.dice.percent(15) {
                self.change_model();
            }
            match &self.source {
                Source::File(path) => {
                    let path = path.clone();
                    self.change_file(&path).await;
                }
                Source::Http(_) => self.change_over_http().await,
            }
            tokio::time::sleep(self.dice.millis(5, 60)).await;
        }
    }

    fn current(&self) -> Doc {
        self.installs[self.installs.len() - 1].doc.clone()
    }

    fn next_doc(&mut self) -> Doc {
        self.number += 1;
        self.current().next(self.number, &mut self.dice)
    }

    async fn change_file(&mut self, path: &Path) {
        match self.dice.below(10) {
            0..2 => {
                let doc = self.next_doc();
                self.publish(doc).await;
            }
            2..5 => self.switch_provider().await,
            5 => self.roll_back().await,
            6..8 => {
                // By an editor, and nobody touches it until it has to be in force.
                let doc = self.next_doc();
                let from = Instant::now();
                replace(path, &doc.text(self.spec.terms));
                let by = Instant::now() + FILE_TTL + SLACK;
                self.install(doc, from, Some(by));
                tokio::time::sleep_until((by + Duration::from_millis(80)).into()).await;
            }
            8 => {
                replace(path, GARBAGE[self.dice.below(GARBAGE.len())]);
                tokio::time::sleep(self.dice.millis(0, 350)).await;
                // An edit of what is not in force is refused; what is good goes over it.
                let doc = self.next_doc();
                self.publish(doc).await;
            }
            _ => self.publish_what_is_refused().await,
        }
    }

    async fn change_over_http(&mut self) {
        let doc = self.next_doc();
        let text = doc.text(self.spec.terms);
        let fault = match self.dice.below(8) {
            0..3 => None,
            3 => Some(Mode::Status(500)),
            4 => Some(Mode::Closed),
            5 => Some(Mode::Half),
            6 => Some(Mode::Body(GARBAGE[self.dice.below(GARBAGE.len())].to_owned())),
            _ => Some(Mode::Gone),
        };
        let away = self.dice.millis(20, 250);
        let wait = self.dice.percent(60);
        let Source::Http(plane) = &self.source else { return };
        let from = Instant::now();
        let by = match fault {
            None => {
                plane.publish(&text);
                Instant::now() + HTTP_TTL + SLACK
            }
            Some(mode) => {
                plane.set(mode).await;
                plane.publish(&text);
                tokio::time::sleep(away).await;
                plane.set(Mode::Good).await;
                // What has failed is asked again within twice the TTL.
                Instant::now() + HTTP_TTL * 3 + SLACK
            }
        };
        self.install(doc, from, wait.then_some(by));
        if wait {
            tokio::time::sleep_until((by + Duration::from_millis(80)).into()).await;
        }
    }

    fn change_model(&mut self) {
        let Some(dir) = &self.models_dir else { return };
        let version = format!("m{}", self.models.len());
        self.models.push((version.clone(), Instant::now()));
        edit(dir, |manifest| manifest["version"] = version.into());
    }

    async fn publish(&mut self, doc: Doc) {
        let request = proto::PublishPolicyRequest { document: doc.text(self.spec.terms), ..Default::default() };
        let from = Instant::now();
        let answer = self.policies.publish_policy(request).await;
        self.changed(answer.map(|answer| answer.into_inner().policy), doc, from);
    }

    async fn switch_provider(&mut self) {
        let provider = PROVIDERS[self.dice.below(PROVIDERS.len())];
        let mut doc = self.current();
        let enabled = doc.switch(provider, &mut self.dice);
        let request = proto::SetProviderEnabledRequest { provider: provider.into(), enabled };
        let from = Instant::now();
        let answer = self.policies.set_provider_enabled(request).await;
        self.changed(answer.map(|answer| answer.into_inner().policy), doc, from);
    }

    async fn roll_back(&mut self) {
        let back = 1 + self.dice.below(4);
        let Some(earlier) = self.installs.len().checked_sub(1 + back) else { return };
        let doc = self.installs[earlier].doc.clone();
        let request = proto::RollbackPolicyRequest { version: doc.version.clone() };
        let from = Instant::now();
        let answer = self.policies.rollback_policy(request).await;
        self.changed(answer.map(|answer| answer.into_inner().policy), doc, from);
    }

    /// Documents that must not come into force: what they would decide is in no history.
    async fn publish_what_is_refused(&mut self) {
        self.number += 1;
        let doc = self.current().next(self.number, &mut self.dice);
        let good = doc.text(self.spec.terms);
        let (document, expected_sha256) = match self.dice.below(3) {
            0 => (good.replace("chains:", "chainz:"), String::new()),
            1 => (good.replace("c0: [", "c0: [nobody, "), String::new()),
            _ => (good, "0".repeat(64)),
        };
        let request = proto::PublishPolicyRequest { document, expected_sha256, ..Default::default() };
        let refused = self.policies.publish_policy(request).await.unwrap_err();
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::FailedPrecondition), "{refused:?}");
    }

    fn changed(&mut self, answer: Result<Option<proto::PolicyRef>, Status>, mut doc: Doc, from: Instant) {
        match answer {
            Ok(policy) => {
                let policy = policy.unwrap();
                doc.version = policy.version;
                let by = Some(Instant::now());
                self.installs.push(Install { doc, sha256: policy.sha256, from, by });
            }
            Err(refused) => {
                let known = [Code::FailedPrecondition, Code::NotFound, Code::InvalidArgument];
                assert!(known.contains(&refused.code()), "{refused:?}");
            }
        }
    }

    fn install(&mut self, doc: Doc, from: Instant, by: Option<Instant>) {
        let sha256 = sha256(&doc.text(self.spec.terms));
        self.installs.push(Install { doc, sha256, from, by });
    }
}

pub(super) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}
