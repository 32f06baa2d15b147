//! From settings to a policy store.

use crate::classifier::Classifier;
use crate::config::{Config, PolicyConfig, PolicyPlace, WhenStale};
use crate::policy::PolicyOptions;
use crate::sources::{
    self, DEFAULT_TTL, EmbeddedSource, EtcdPlace, EtcdSource, FileSource, HttpSource, PolicySource, PolicyStore,
    Staleness, StoreSettings, TlsError, TlsFiles, TrustedKeys,
};

use super::ServeError;

/// The store with its first policy, as `config` says.
///
/// # Errors
/// When certificates or keys cannot be used, or a local source has no usable document.
pub async fn start_policies(config: &PolicyConfig, options: PolicyOptions) -> Result<PolicyStore, ServeError> {
    let keys = config.keys_file.as_ref().map(TrustedKeys::new);
    if let Some(keys) = &keys {
        // A file that cannot be read now would refuse every document later.
        keys.read()?;
    }
    let settings = StoreSettings {
        copies: config.copies_dir.clone(),
        keys,
        history: config.history,
        staleness: Staleness { max: config.max_staleness, then: when_stale(config.when_stale) },
    };
    Ok(PolicyStore::start_with(policy_source(config)?, options, settings).await?)
}

/// What a policy is checked against.
///
/// One that an operator names must fit the classifier: a misspelt intent is an error. The embedded one is written for
/// the default classifier's intents; under other labels its wildcard routes answer.
pub fn policy_options(config: &Config, classifier: &Classifier) -> PolicyOptions {
    let named = config.policy.place != PolicyPlace::Embedded;
    let intents = named.then(|| classifier.intent_labels().clone());
    PolicyOptions { intents, environment: config.environment.clone() }
}

fn policy_source(config: &PolicyConfig) -> Result<Box<dyn PolicySource>, TlsError> {
    let (secret, ttl) = (config.auth_file.clone(), config.poll_interval.unwrap_or(DEFAULT_TTL));
    let tls = TlsFiles { authorities: config.ca_file.clone(), identity: config.client_identity.clone() };
    Ok(match &config.place {
        PolicyPlace::Embedded => Box::new(EmbeddedSource),
        PolicyPlace::File(path) => Box::new(FileSource::new(path)),
        PolicyPlace::Http(uri) => Box::new(HttpSource::new(uri.clone(), secret, &tls, ttl)?),
        PolicyPlace::Etcd { members, key, tls: over_tls } => {
            let place = EtcdPlace { members: members.clone(), key: key.clone(), tls: over_tls.then_some(tls) };
            Box::new(EtcdSource::new(place, secret, ttl)?)
        }
    })
}

fn when_stale(configured: WhenStale) -> sources::WhenStale {
    match configured {
        WhenStale::Serve => sources::WhenStale::Serve,
        WhenStale::MarkDegraded => sources::WhenStale::MarkDegraded,
        WhenStale::Refuse => sources::WhenStale::Refuse,
    }
}
