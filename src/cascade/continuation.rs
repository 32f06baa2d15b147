//! What a cascade carries from step to step, and the signed token it travels in.
//!
//! A token is base64 (for URLs, without padding) of: version, key id, expiry, tenant, the rest of the fields, and the
//! HMAC-SHA256 of all before it. It can be read by whoever has it and holds no text of the query.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::codec::{Reader, Writer};
use super::keys::{KeyRing, TAG_BYTES};
use crate::domain::{ConfidenceOf, ExperimentArm, Probability, Requirements, Source, Tier};
use crate::policy::Tried;

/// Signs and opens continuations. Shared by all requests.
#[derive(Debug)]
pub struct Cascades {
    keys: ArcSwap<KeyRing>,
    ttl_ms: u64,
}

/// All that the next step needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// When the first decision was made, Unix milliseconds.
    pub started_ms: u64,
    /// The decision that the cascade began with.
    pub first_decision: uuid::Uuid,
    /// The decision that this is the continuation of.
    pub decision: uuid::Uuid,
    /// The tenant; empty: none.
    pub tenant: String,
    /// The role; empty: none.
    pub role: String,
    /// The request's id.
    pub request_id: String,
    /// What picks endpoints.
    pub sticky: u64,
    /// What the candidate must offer.
    pub requirements: Requirements,
    /// Tokens of the whole input, estimated.
    pub input_tokens: u32,
    /// Tokens expected in the answer, where the request said.
    pub output_tokens: Option<u32>,
    /// The intent acted on.
    pub intent: Arc<str>,
    /// Its probability.
    pub intent_probability: Probability,
    /// The tier acted on.
    pub tier: Tier,
    /// The classifier's difficulty, where it was consulted.
    pub difficulty: Option<Probability>,
    /// See `confidence_of`.
    pub confidence: Probability,
    /// What `confidence` is the probability of.
    pub confidence_of: ConfidenceOf,
    /// What made the first decision.
    pub source: Source,
    /// The chain of the first decision.
    pub chain: Arc<str>,
    /// Chains that rules forbid.
    pub forbidden: Vec<Arc<str>>,
    /// What was tried, the last one being what the decision selects.
    pub tried: Vec<Tried>,
    /// How many of the last ones were asked at once.
    pub together: u32,
    /// Escalations so far.
    pub hops: u32,
    /// Tokens used so far, as far as the caller told.
    pub tokens_used: u64,
    /// US dollars spent before the answer that is waited for.
    pub cost_usd: f64,
    /// The score that the decision asks of the answer.
    pub threshold: Probability,
    /// The head of the policy's SHA-256.
    pub policy: u64,
    /// The head of the classifier's SHA-256.
    pub classifier: u64,
    /// The arms of the first decision.
    pub arms: Vec<ExperimentArm>,
}

/// Who opens a token, and when.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The tenant that the caller names.
    pub tenant: &'a str,
    /// Unix milliseconds.
    pub now_ms: u64,
}

/// What a token shows of a decision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Provenance {
    /// The decision.
    pub decision: uuid::Uuid,
    /// The tenant it was made for; empty: none.
    pub tenant: String,
}

/// Why a token is not accepted: the caller's fault, or time's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ContinuationError {
    /// There is none.
    #[error("no continuation is given")]
    Missing,
    /// It was not signed with an accepted key, or changed since.
    #[error("the continuation is not one of this service's, or was changed")]
    Forged,
    /// It belongs to a request of another tenant.
    #[error("the continuation belongs to another tenant")]
    OtherTenant,
    /// It is too old.
    #[error("the continuation has expired")]
    Expired,
    /// It is from a version of the service that writes others.
    #[error("the continuation was made by another version of the service")]
    OtherVersion,
}

/// Most bytes of a token before base64.
pub const MAX_TOKEN_BYTES: usize = 4_096;
const VERSION: u8 = 1;

// === impl Cascades ===

impl Cascades {
    /// Signs with the first of `keys`; what it signs is accepted for `ttl` after the cascade's last step.
    pub fn new(keys: KeyRing, ttl: std::time::Duration) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Self { keys: ArcSwap::from_pointee(keys), ttl_ms }
    }

    /// From now on signs and accepts with `keys`.
    pub fn set_keys(&self, keys: KeyRing) {
        self.keys.store(Arc::new(keys));
    }

    /// The keys in use.
    pub fn keys(&self) -> Arc<KeyRing> {
        self.keys.load_full()
    }

    /// The token of `continuation`; `None`: it would be longer than [`MAX_TOKEN_BYTES`].
    pub fn seal(&self, continuation: &Continuation, now_ms: u64) -> Option<String> {
        let keys = self.keys.load();
        let mut writer = Writer::default();
        writer.byte(VERSION);
        writer.text(keys.signing_id());
        writer.number(now_ms.saturating_add(self.ttl_ms) / 1_000);
        continuation.write(&mut writer);
        let tag = keys.sign(writer.bytes())?;
        writer.raw(&tag);
        let bytes = writer.into_bytes();
        (bytes.len() <= MAX_TOKEN_BYTES).then(|| URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What `token` carries.
    ///
    /// # Errors
    /// When it is not one of this service's for this tenant and time.
    pub fn open(&self, token: &str, opening: Opening<'_>) -> Result<Continuation, ContinuationError> {
        let (continuation, expires_s) = self.read(token)?;
        if continuation.tenant != opening.tenant {
            return Err(ContinuationError::OtherTenant);
        }
        if expires_s < opening.now_ms / 1_000 {
            return Err(ContinuationError::Expired);
        }
        Ok(continuation)
    }

    /// What `token` shows of its decision, however old it is; `None`: it is not one of this service's.
    pub fn provenance(&self, token: &str) -> Option<Provenance> {
        let (Continuation { decision, tenant, .. }, _) = self.read(token).ok()?;
        Some(Provenance { decision, tenant })
    }

    /// What `token` carries, and when it expires.
    fn read(&self, token: &str) -> Result<(Continuation, u64), ContinuationError> {
        if token.is_empty() {
            return Err(ContinuationError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES.div_ceil(3) * 4 {
            return Err(ContinuationError::Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| ContinuationError::Forged)?;
        let at = bytes.len().checked_sub(TAG_BYTES).ok_or(ContinuationError::Forged)?;
        let (signed, tag) = bytes.split_at(at);
        let mut reader = Reader::new(signed);
        let version = reader.byte().ok_or(ContinuationError::Forged)?;
        let id = reader.text().ok_or(ContinuationError::Forged)?;
        if !self.keys.load().verify(id, signed, tag) {
            return Err(ContinuationError::Forged);
        }
        // From here on the bytes are what a replica wrote.
        if version != VERSION {
            return Err(ContinuationError::OtherVersion);
        }
        let expires_s = reader.number().ok_or(ContinuationError::OtherVersion)?;
        let continuation = Continuation::read(&mut reader).filter(|_| reader.at_end());
        Ok((continuation.ok_or(ContinuationError::OtherVersion)?, expires_s))
    }
}

// === impl Continuation ===

impl Continuation {
    /// The head of a SHA-256 in hexadecimal, which tells documents apart.
    pub fn head(sha256: &str) -> u64 {
        sha256.get(..16).and_then(|head| u64::from_str_radix(head, 16).ok()).unwrap_or_default()
    }

    fn write(&self, w: &mut Writer) {
        w.text(&self.tenant);
        w.number(self.started_ms);
        w.raw(self.first_decision.as_bytes());
        w.option((self.decision != self.first_decision).then_some(self.decision), |w, id| w.raw(id.as_bytes()));
        w.text(&self.role);
        // Ids that the service makes are shorter as bytes.
        let made = uuid::Uuid::parse_str(&self.request_id).ok().filter(|id| id.to_string() == self.request_id);
        w.option(made, |w, id| w.raw(id.as_bytes()));
        if made.is_none() {
            w.text(&self.request_id);
        }
        w.hash(self.sticky);
        write_requirements(w, &self.requirements);
        w.number(self.input_tokens.into());
        w.option(self.output_tokens, |w, tokens| w.number(tokens.into()));
        w.text(&self.intent);
        w.float(self.intent_probability.value());
        w.byte(self.tier.index() as u8);
        w.option(self.difficulty, |w, difficulty| w.float(difficulty.value()));
        w.float(self.confidence.value());
        w.byte(position(&CONFIDENCES, self.confidence_of));
        w.byte(position(&SOURCES, self.source));
        w.text(&self.chain);
        w.list(self.forbidden.iter(), |w, chain| w.text(chain));
        w.list(self.tried.iter(), |w, tried| {
            w.hash(tried.model);
            w.byte(u8::from(tried.answered));
            w.option(tried.ability, Writer::float);
            w.float(tried.price_usd);
            w.float(tried.cost_usd);
        });
        w.number(self.together.into());
        w.number(self.hops.into());
        w.number(self.tokens_used);
        w.float(self.cost_usd);
        w.float(self.threshold.value());
        w.hash(self.policy);
        w.hash(self.classifier);
        w.list(self.arms.iter(), |w, arm| {
            w.text(&arm.experiment);
            w.text(&arm.arm);
            w.float(arm.propensity.value());
        });
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let tenant = r.text()?.to_owned();
        let started_ms = r.number()?;
        let first_decision = uuid::Uuid::from_bytes(r.array()?);
        let decision = r.option(Reader::array)?.map_or(first_decision, uuid::Uuid::from_bytes);
        Some(Self {
            started_ms,
            first_decision,
            decision,
            tenant,
            role: r.text()?.to_owned(),
            request_id: match r.option(Reader::array)? {
                Some(made) => uuid::Uuid::from_bytes(made).to_string(),
                None => r.text()?.to_owned(),
            },
            sticky: r.hash()?,
            requirements: read_requirements(r)?,
            input_tokens: r.small()?,
            output_tokens: r.option(Reader::small)?,
            intent: Arc::from(r.text()?),
            intent_probability: probability(r)?,
            tier: Tier::ALL.get(usize::from(r.byte()?)).copied()?,
            difficulty: r.option(probability)?,
            confidence: probability(r)?,
            confidence_of: CONFIDENCES.get(usize::from(r.byte()?)).copied()?,
            source: SOURCES.get(usize::from(r.byte()?)).copied()?,
            chain: Arc::from(r.text()?),
            forbidden: r.list(|r| r.text().map(Arc::from))?,
            tried: r.list(|r| {
                Some(Tried {
                    model: r.hash()?,
                    answered: r.byte()? != 0,
                    ability: r.option(Reader::float)?,
                    price_usd: r.float()?,
                    cost_usd: r.float()?,
                })
            })?,
            together: r.small()?,
            hops: r.small()?,
            tokens_used: r.number()?,
            cost_usd: r.float()?,
            threshold: probability(r)?,
            policy: r.hash()?,
            classifier: r.hash()?,
            arms: r.list(|r| {
                Some(ExperimentArm {
                    experiment: Arc::from(r.text()?),
                    arm: Arc::from(r.text()?),
                    propensity: probability(r)?,
                })
            })?,
        })
    }
}

const CONFIDENCES: [ConfidenceOf; 3] = [ConfidenceOf::TierSuffices, ConfidenceOf::Rule, ConfidenceOf::None];
const SOURCES: [Source; 5] = [Source::Rule, Source::Classifier, Source::Cache, Source::Override, Source::Degraded];

fn position<T: PartialEq>(list: &[T], value: T) -> u8 {
    list.iter().position(|known| *known == value).unwrap_or_default() as u8
}

fn probability(r: &mut Reader<'_>) -> Option<Probability> {
    Probability::new(r.float()?).ok()
}

fn write_requirements(w: &mut Writer, asked: &Requirements) {
    w.byte(u8::from(asked.tools) | u8::from(asked.vision) << 1 | u8::from(asked.json_mode) << 2);
    w.option(asked.context_tokens, |w, tokens| w.number(tokens.into()));
    w.list(asked.allowed_providers.iter(), |w, name| w.text(name));
    w.list(asked.data_regions.iter(), |w, name| w.text(name));
    w.option(asked.max_cost_usd, Writer::float);
    w.option(asked.max_latency_ms, |w, latency| w.number(latency.into()));
    w.option(asked.min_quality, Writer::float);
}

fn read_requirements(r: &mut Reader<'_>) -> Option<Requirements> {
    let flags = r.byte()?;
    Some(Requirements {
        tools: flags & 1 != 0,
        vision: flags & 2 != 0,
        json_mode: flags & 4 != 0,
        context_tokens: r.option(Reader::small)?,
        allowed_providers: r.list(|r| r.text().map(str::to_owned))?,
        data_regions: r.list(|r| r.text().map(str::to_owned))?,
        max_cost_usd: r.option(Reader::float)?,
        max_latency_ms: r.option(Reader::small)?,
        min_quality: r.option(Reader::float)?,
    })
}
