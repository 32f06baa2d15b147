//! What each fuzz target does with a run of bytes: everything that an outsider or an operator can hand in, through the
//! very code that reads it in the service.
//!
//! A target panics where a promise is broken. libFuzzer drives them (`fuzz_targets/`), and so does a plain test
//! (`tests/integration/robustness/fuzz.rs`), over the seeds and over changed copies of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use http_body_util::{BodyExt as _, Full};
use pointsman::access::Access;
use pointsman::batch::{BatchOptions, Engine};
use pointsman::classifier::{Classifier, Input, LoadOptions};
use pointsman::config::{Config, RawConfig};
use pointsman::domain::{Classification, Content, Distribution, Probability, Requirements, TierControl};
use pointsman::encoder::{EncoderError, Precision, open_device};
use pointsman::policy::{MAX_DOCUMENT_BYTES, Policy, PolicyOptions, Severity, Signals};
use pointsman::router::{Router, RouterOptions};
use pointsman::rpc::proto::router_server::RouterServer;
use pointsman::rpc::{Backend, Front, Peer, RouterApi};
use pointsman::rules::{ConditionSpec, EffectSpec, LengthSpec, RuleInput, RuleSet, RuleSpec, RuleStack};
use pointsman::sources::{EmbeddedSource, PolicyStore};
use pointsman::telemetry::Metrics;
use pointsman::text;

/// Panics where a promise is broken.
pub type Target = fn(&[u8]);

/// The targets by their names.
pub const TARGETS: [(&str, Target); 5] =
    [("request", request), ("policy", policy), ("rules", rules), ("tokenize", tokenize), ("config", config)];

/// Says the same of everything, at once.
#[derive(Debug)]
struct Instant(Classification);

impl Engine for Instant {
    fn classify(&self, inputs: &[&Input]) -> Result<Vec<Classification>, EncoderError> {
        Ok(vec![self.0.clone(); inputs.len()])
    }
}

fn classification(labels: &Arc<[Arc<str>]>) -> Classification {
    let share = 1.0 / labels.len() as f32;
    Classification {
        intent: Distribution::new(Arc::clone(labels), vec![share; labels.len()]).unwrap(),
        difficulty: Probability::saturating(0.4),
        tiers: [0.5, 0.3, 0.2],
        tier_control: TierControl::default(),
        out_of_scope: Probability::saturating(0.1),
        tokens_used: 9,
        tokens_cut: 0,
    }
}

fn classifier() -> &'static Arc<Classifier> {
    static CLASSIFIER: OnceLock<Arc<Classifier>> = OnceLock::new();
    CLASSIFIER.get_or_init(|| {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let options = LoadOptions {
            name: "default".into(),
            roots: vec![here.join("models"), here.join("../models")],
            max_tokens: None,
            device: open_device("cpu").unwrap(),
            precision: Precision::Auto,
            isa: None,
            threads: 1,
        };
        Arc::new(Classifier::load(&options).unwrap())
    })
}

/// A whole service but for its sockets and its forward pass.
struct Service {
    runtime: tokio::runtime::Runtime,
    front: Front,
}

fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = PolicyStore::start(Box::new(EmbeddedSource), PolicyOptions::default());
        let policies = Arc::new(runtime.block_on(store).unwrap());
        let (metrics, classifier) = (Arc::new(Metrics::new()), Arc::clone(classifier()));
        let engine = Arc::new(Instant(classification(classifier.intent_labels())));
        let max_wait = std::time::Duration::from_secs(10);
        let batch = BatchOptions { queue_entries: 100, tokens_per_pass: 512, max_wait };
        let options = RouterOptions { batch, cache_entries: 0 };
        let router = Router::start_with(engine, classifier, policies, Arc::clone(&metrics), options).unwrap();
        let backend = Backend::new(metrics, 100);
        backend.set_ready(router);
        let routes = tonic::service::Routes::new(RouterServer::new(RouterApi::new(backend.clone())));
        Service { runtime, front: Front::new(routes, backend, None) }
    })
}

/// A message of `Route`, `Classify` or `RouteBatch` (by the first byte), from the wire to the answer: a decision or the
/// caller's fault, never the server's.
pub fn request(bytes: &[u8]) {
    let Some((kind, message)) = bytes.split_first() else { return };
    let method = ["Route", "Classify", "RouteBatch"][usize::from(kind % 3)];
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    let request = http::Request::post(format!("http://x/pointsman.v1.Router/{method}"))
        .header("content-type", "application/grpc")
        .body(Full::from(framed))
        .unwrap();
    let Service { runtime, front } = service();
    let code = runtime.block_on(async {
        let response = front.answer(request, &Peer::default()).await;
        let of = |headers: &http::HeaderMap| headers.get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
        match of(response.headers()) {
            Some(code) => code,
            None => of(response.into_body().collect().await.unwrap().trailers().unwrap()).unwrap(),
        }
    });
    // OK, INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, OUT_OF_RANGE, and what a flag of compression gives.
    assert!(["0", "3", "5", "9", "11", "12"].contains(&code.as_str()), "{method}: {code}");
}

/// A policy document: findings with lines that exist, and decisions with candidates of the document.
pub fn policy(bytes: &[u8]) {
    let labels: Arc<[Arc<str>]> = ["chat", "code", "other"].map(Arc::from).into();
    let options = PolicyOptions { intents: Some(Arc::clone(&labels)), ..PolicyOptions::default() };
    let findings = Policy::check(bytes, &options);
    // YAML breaks lines at either.
    let lines = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).count();
    if bytes.len() <= MAX_DOCUMENT_BYTES {
        let beyond = findings.iter().find(|finding| finding.line as usize > lines + 1);
        assert!(beyond.is_none(), "line {} of {lines}", beyond.unwrap().line);
    }
    let Ok(policy) = Policy::load(bytes, &options).map(Arc::new) else {
        assert!(findings.iter().any(|finding| finding.severity == Severity::Error), "refused without a finding");
        return;
    };
    let (classification, requirements) = (classification(&labels), Requirements::default());
    for (i, text) in ["hi", "write code", "why?", "", "a\nb\nc"].iter().enumerate() {
        for tenant in ["", "known", "acme", "\u{0}"] {
            let Ok(scope) = policy.scope(tenant, "") else { continue };
            let prepared = text::prepare(&Content::Text((*text).to_owned()));
            let metadata = BTreeMap::new();
            let input =
                RuleInput { text: &prepared.text, signals: &prepared.signals, metadata: &metadata, tenant, role: "" };
            let rules = scope.rules().evaluate(&input);
            let signals = Signals {
                classification: (i % 2 == 0).then_some(&classification),
                rules: &rules,
                language: None,
                degraded: i % 2 == 1,
                requirements: &requirements,
                input_tokens: 10,
                output_tokens: None,
                sticky_key: "k",
            };
            if let Ok(resolution) = scope.resolve(&signals) {
                let models = resolution.fallbacks.iter().map(|fallback| &fallback.candidate);
                for candidate in models.chain([&resolution.selected]) {
                    assert!(candidate.estimated_cost_usd >= 0.0, "{}", candidate.estimated_cost_usd);
                }
                assert!((0.0..=1.0).contains(&resolution.difficulty.value()));
            }
        }
    }
}

/// Takes pieces off a run of bytes.
struct Pieces<'a>(&'a [u8]);

impl Pieces<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> String {
        const LETTERS: [char; 16] =
            ['a', 'b', 'A', 'é', ' ', '\n', '+', '_', '1', '.', 'ß', '中', '\u{301}', 'c', 'İ', 'x'];
        let length = usize::from(self.byte() % 6);
        (0..length).map(|_| LETTERS[usize::from(self.byte() % 16)]).collect()
    }

    fn condition(&mut self, depth: usize) -> ConditionSpec {
        let mut spec = ConditionSpec::default();
        let list = |pieces: &mut Self| (0..=pieces.byte() % 3).map(|_| pieces.word()).collect::<Vec<_>>();
        let n = usize::from(self.byte());
        match self.byte() % if depth < 4 { 6 } else { 3 } {
            0 => spec.keywords = Some(list(self)),
            1 => spec.length = Some(LengthSpec { min_words: Some(n % 7), max_bytes: Some(n), ..LengthSpec::default() }),
            2 => spec.tenant = Some(list(self)),
            3 => spec.any = Some((0..=n % 3).map(|_| self.condition(depth + 1)).collect()),
            4 => spec.all = Some((0..=n % 3).map(|_| self.condition(depth + 1)).collect()),
            _ => spec.not = Some(Box::new(self.condition(depth + 1))),
        }
        spec
    }
}

/// A condition and a text, against the plainest reading of what the documentation says.
pub fn rules(bytes: &[u8]) {
    let mut pieces = Pieces(bytes);
    let when = pieces.condition(0);
    let tenant = pieces.word();
    let mut text = String::new();
    while !pieces.0.is_empty() && text.len() < 200 {
        text.push_str(&pieces.word());
        text.push([' ', 'a', '.'][usize::from(pieces.byte() % 3)]);
    }
    let effect = EffectSpec { intent: Some("other".into()), ..EffectSpec::default() };
    let rule = RuleSpec { name: "r".into(), enabled: true, when: when.clone(), then: effect, ..RuleSpec::default() };
    let Ok(set) = RuleSet::compile(&[rule]) else { return };
    let prepared = text::prepare(&Content::Text(text.clone()));
    let (mut signals, metadata) = (prepared.signals, BTreeMap::new());
    (signals.bytes, signals.words) = (text.len(), text.split_whitespace().count());
    let input = RuleInput { text: &text, signals: &signals, metadata: &metadata, tenant: &tenant, role: "" };
    let matched = !RuleStack::new([Arc::new(set)]).evaluate(&input).matched.is_empty();
    assert_eq!(matched, holds(&when, &text, &tenant), "{when:?} over {text:?} of {tenant:?}");
}

fn holds(when: &ConditionSpec, text: &str, tenant: &str) -> bool {
    let length = |length: &LengthSpec| {
        length.min_words.is_none_or(|least| text.split_whitespace().count() >= least)
            && length.max_bytes.is_none_or(|most| text.len() <= most)
    };
    when.keywords.as_ref().is_none_or(|keywords| keywords.iter().any(|keyword| has_keyword(text, keyword)))
        && when.length.as_ref().is_none_or(length)
        && when.tenant.as_ref().is_none_or(|tenants| tenants.iter().any(|named| named == tenant))
        && when.any.as_ref().is_none_or(|any| any.iter().any(|when| holds(when, text, tenant)))
        && when.all.as_ref().is_none_or(|all| all.iter().all(|when| holds(when, text, tenant)))
        && when.not.as_ref().is_none_or(|not| !holds(not, text, tenant))
}

fn has_keyword(text: &str, keyword: &str) -> bool {
    let fold = |text: &str| {
        let mut folded: Vec<char> = Vec::new();
        for c in text.chars() {
            match (c.is_whitespace(), folded.last()) {
                (true, Some(' ')) => {}
                (true, _) => folded.push(' '),
                (false, _) => folded.extend(c.to_lowercase()),
            }
        }
        folded
    };
    // Han is written without spaces, so it has no word borders.
    let joins = |c: char| c != '中' && (c.is_alphanumeric() || c == '_');
    let (text, keyword) = (fold(text), fold(keyword.trim()));
    (0..=text.len().saturating_sub(keyword.len())).any(|at| {
        let end = at + keyword.len();
        text.get(at..end) == Some(&keyword)
            && !(joins(keyword[0]) && at > 0 && joins(text[at - 1]))
            && !(joins(keyword[keyword.len() - 1]) && text.get(end).is_some_and(|c| joins(*c)))
    })
}

/// A text, as far as the encoder: within all bounds, and the same twice.
pub fn tokenize(bytes: &[u8]) {
    let content = Content::Text(String::from_utf8_lossy(bytes).into_owned());
    let (prepared, again) = (text::prepare(&content), text::prepare(&content));
    assert_eq!(prepared.text, again.text);
    assert!(prepared.text.len() <= text::MAX_USED_BYTES);
    let (input, most) = (classifier().tokenize(&prepared).unwrap(), classifier().encoder().tokenizer().max_tokens());
    assert!((2..=most).contains(&input.n_tokens()), "{} word pieces", input.n_tokens());
}

/// A configuration file and an access file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(raw) = toml::from_str::<RawConfig>(text)
        && let Ok(config) = Config::from_raw(raw, RawConfig::default())
    {
        // What can be used can be shown.
        assert!(format!("{config:?}").contains("listen"));
    }
    if let Err(error) = Access::parse(text, std::path::Path::new("access.toml")) {
        let told = error.to_string();
        assert!(told.len() < 400 + text.len(), "{} bytes of error", told.len());
    }
}
