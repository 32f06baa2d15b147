//! The control plane at work, with traffic on: a flipped switch takes effect everywhere, and nothing fails meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman::config::RawConfig;
use pointsman::domain::Query;
use pointsman::policy::PolicyOptions;
use pointsman::router::{Router, RouterOptions};
use pointsman::rpc::proto;
use pointsman::sources::{DEFAULT_TTL, Fetch, Fetched, HttpSource, PolicySource, PolicyStore, TlsFiles};
use tokio_util::sync::CancellationToken;

use super::control_plane_etcd::Etcd;
use super::control_plane_support::{Answered, POLICY, Plane, TEXTS, Traffic, await_version, status, version};
use super::support::{PATIENCE, Service, config};

const KEY: &str = "/pointsman/test/policy";

fn from(url: String) -> RawConfig {
    RawConfig { policy: Some(url), ..RawConfig::default() }
}

fn without_anthropic() -> String {
    POLICY
        .replace("version: \"1\"", "version: \"2\"")
        .replace("anthropic: {enabled: true}", "anthropic: {enabled: false}")
}

/// Checks what instances answered around a switch of anthropic at `flipped`; gives the time until the last decision
/// that named it.
fn check_flip(answers: &[Answered], flipped: Instant) -> Duration {
    let mut before: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for answered in answers.iter().filter(|answered| answered.answered < flipped) {
        let known = before.entry(answered.text).or_insert_with(|| answered.chain());
        assert_eq!(*known, answered.chain(), "{} was decided two ways before the switch", answered.text);
    }
    assert_eq!(before.len(), TEXTS.len());
    assert!(before.values().any(|chain| chain[0] == "sonnet"), "nothing selected anthropic before: {before:?}");
    let (with, without): (Vec<_>, Vec<_>) = answers
        .iter()
        .filter(|answered| answered.sent > flipped)
        .partition(|answered| answered.providers().contains(&"anthropic"));
    assert!(without.len() >= TEXTS.len(), "{} decisions after the switch", without.len());
    for answered in &without {
        let expected: Vec<&str> =
            before[answered.text].iter().copied().filter(|model| !["haiku", "sonnet"].contains(model)).collect();
        assert_eq!(answered.chain(), expected, "{}: the others are to stay as they are", answered.text);
    }
    with.iter().map(|answered| answered.answered - flipped).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_turned_off_over_http_is_gone_everywhere_within_the_ttl() {
    let plane = Plane::start(POLICY).await;
    let services = [Service::start(from(plane.url())), Service::start(from(plane.url()))];
    let traffic = [Traffic::on(&services[0]).await, Traffic::on(&services[1]).await];
    let flipped = Instant::now();
    plane.publish(&without_anthropic());
    for service in &services {
        await_version(service, "2").await;
    }
    for traffic in traffic {
        traffic.goes_on().await;
        let took = check_flip(&traffic.stop().await, flipped);
        println!("polled with the default TTL: in effect after {took:?}");
        assert!(took <= DEFAULT_TTL, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_turned_off_in_etcd_is_gone_everywhere_at_once() {
    let Some(etcd) = Etcd::start().await else { return };
    etcd.put(KEY, POLICY, None).await;
    let services = [Service::start(from(etcd.url(KEY))), Service::start(from(etcd.url(KEY)))];
    // The watch begins after the start; a look by schedule is up to 5 s away.
    etcd.put(KEY, &format!("{POLICY}# touched\n"), None).await;
    let touched = async |service: &Service| {
        super::support::eventually("the watch", async || (status(service).await.loads == 2).then_some(())).await;
    };
    touched(&services[0]).await;
    touched(&services[1]).await;
    let mut took = Vec::new();
    // By the operator at etcd, then through one of the instances; the other follows.
    for through_pointsman in [false, true] {
        let traffic = [Traffic::on(&services[0]).await, Traffic::on(&services[1]).await];
        let flipped = Instant::now();
        let wanted = if through_pointsman {
            let request = proto::SetProviderEnabledRequest { provider: "anthropic".into(), enabled: false };
            let answer = services[0].policy().await.set_provider_enabled(request).await.unwrap().into_inner();
            answer.policy.unwrap().version
        } else {
            etcd.put(KEY, &without_anthropic(), None).await;
            "2".to_owned()
        };
        for service in &services {
            await_version(service, &wanted).await;
        }
        for traffic in traffic {
            traffic.goes_on().await;
            took.push(check_flip(&traffic.stop().await, flipped));
        }
        // And on again, for the next round.
        let request = proto::SetProviderEnabledRequest { provider: "anthropic".into(), enabled: true };
        let answer = services[1].policy().await.set_provider_enabled(request).await.unwrap().into_inner();
        let policy = answer.policy.unwrap();
        assert!(policy.version.starts_with(&wanted) || policy.version.starts_with("2+"), "{}", policy.version);
        await_version(&services[0], &policy.version).await;
    }
    println!("by watch: in effect after {took:?}");
    took.sort();
    // The machine of a test may be busy: the middle is held to the figure, the worst to a TTL.
    assert!(took[took.len() / 2] <= Duration::from_millis(200), "{took:?}");
    assert!(took[took.len() - 1] <= DEFAULT_TTL, "{took:?}");
    // The operator's comments are still there.
    let document =
        services[0].policy().await.get_policy(proto::GetPolicyRequest {}).await.unwrap().into_inner().document;
    assert!(document.contains("# Kept by the platform team.") && document.contains("# the switch"), "{document}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pollers_that_start_together_do_not_look_together() {
    let plane = Plane::start(POLICY).await;
    let ttl = Duration::from_secs(1);
    let (cancel, mut pollers) = (CancellationToken::new(), tokio::task::JoinSet::new());
    for _ in 0..50 {
        let (url, cancel) = (plane.url(), cancel.clone());
        pollers.spawn(async move {
            let source = HttpSource::new(url.parse().unwrap(), None, &TlsFiles::default(), ttl).unwrap();
            let store = PolicyStore::start(Box::new(source), PolicyOptions::default()).await.unwrap();
            store.run(ttl, cancel).await;
            assert_eq!(store.status().fetch_failures, 0);
        });
    }
    tokio::time::sleep(ttl * 4).await;
    cancel.cancel();
    while let Some(ended) = tokio::time::timeout(PATIENCE, pollers.join_next()).await.unwrap() {
        ended.unwrap();
    }
    let arrivals = plane.arrivals();
    let end = arrivals[arrivals.len() - 1];
    for back in 0..3_u32 {
        let window: Vec<Duration> = arrivals
            .iter()
            .map(|arrival| end - *arrival)
            .filter(|ago| (ttl * back..ttl * (back + 1)).contains(ago))
            .collect();
        let (first, last) = (window.iter().min().unwrap(), window.iter().max().unwrap());
        assert!(
            last.saturating_sub(*first) >= ttl / 5,
            "{} looks within {:?}",
            window.len(),
            last.saturating_sub(*first)
        );
        let densest = window
            .iter()
            .map(|from| window.iter().filter(|ago| (*from..*from + ttl / 20).contains(*ago)).count())
            .max()
            .unwrap();
        assert!(densest <= window.len() / 3, "{densest} of {} looks within a twentieth of the TTL", window.len());
    }
}

/// Versions that decide differently: other names at the provider, another order, other thresholds.
fn varied(number: usize) -> String {
    let mut document = version(number);
    if number.is_multiple_of(2) {
        document = document.replace("quick: [little, haiku, big]", "quick: [haiku, little, big]");
    }
    if number.is_multiple_of(3) {
        document = document.replace("anthropic: {enabled: true}", "anthropic: {enabled: false}");
    }
    let confidence = [0.55, 0.75, 0.95][number / 6 % 3];
    document.replace("escalation:", &format!("thresholds: {{min_confidence: {confidence}}}\nescalation:"))
}

/// A source that has the version it is told.
#[derive(Clone, Debug)]
struct Versions(Arc<std::sync::atomic::AtomicUsize>);

impl PolicySource for Versions {
    fn kind(&self) -> &'static str {
        "versions"
    }

    fn place(&self) -> String {
        "versions".to_owned()
    }

    fn poll_interval(&self) -> Option<Duration> {
        Some(DEFAULT_TTL)
    }

    fn fetch<'a>(&'a self, _: Option<&'a str>) -> Fetch<'a> {
        let number = self.0.load(std::sync::atomic::Ordering::SeqCst);
        let (bytes, revision) = (varied(number).into_bytes(), number.to_string());
        Box::pin(std::future::ready(Ok(Fetched::Document { bytes, signature: None, revision })))
    }
}

/// Decides again under the version that each answer names, and compares all that a policy determines.
async fn check_explained(answers: &[Answered]) -> usize {
    let config = config(RawConfig::default());
    let classifier = Arc::new(pointsman::serve::Loader::start().unwrap().load(&config).await.unwrap());
    let number = Arc::new(std::sync::atomic::AtomicUsize::new(1));
    let store = PolicyStore::start(Box::new(Versions(Arc::clone(&number))), PolicyOptions::default()).await.unwrap();
    let store = Arc::new(store);
    let options = RouterOptions { cache_entries: 100, ..pointsman::serve::router_options(&config) };
    let metrics = Arc::new(pointsman::telemetry::Metrics::new());
    let router = Router::start(classifier, Arc::clone(&store), metrics, options).unwrap();
    let mut expected: BTreeMap<(String, &str), (String, String)> = BTreeMap::new();
    let mut versions = std::collections::BTreeSet::new();
    for answered in answers {
        let (policy, served) = (answered.decision.policy.as_ref().unwrap(), &answered.decision);
        versions.insert(policy.version.clone());
        let key = (policy.version.clone(), answered.text);
        if !expected.contains_key(&key) {
            number.store(policy.version.parse().unwrap(), std::sync::atomic::Ordering::SeqCst);
            store.refresh().await.unwrap();
            let decision = router.decide(&Query::from_text(answered.text), None).await.unwrap();
            let names: Vec<&str> = std::iter::once(&decision.selected)
                .chain(decision.fallbacks.iter().map(|fallback| &fallback.candidate))
                .chain(decision.escalation.iter().map(|escalation| &escalation.next))
                .map(|candidate| &*candidate.provider_model)
                .collect();
            let tier = decision.complexity.tier.as_str();
            let explained = format!("{} {tier} {}", decision.intent.label, names.join(" "));
            expected.insert(key.clone(), (decision.policy.sha256.to_string(), explained));
        }
        let names: Vec<&str> = std::iter::once(served.selected.as_ref().unwrap())
            .chain(served.fallbacks.iter().map(|fallback| fallback.candidate.as_ref().unwrap()))
            .chain(served.escalation.iter().map(|escalation| escalation.next.as_ref().unwrap()))
            .map(|candidate| candidate.provider_model.as_str())
            .collect();
        let tier = &served.complexity.as_ref().unwrap().tier;
        let explained = format!("{} {tier} {}", served.intent.as_ref().unwrap().label, names.join(" "));
        assert_eq!(expected[&key], (policy.sha256.clone(), explained), "{key:?}");
    }
    versions.len()
}

fn p99(answers: &[Answered]) -> Duration {
    let mut times: Vec<Duration> = answers.iter().map(|answered| answered.answered - answered.sent).collect();
    times.sort();
    times[times.len() * 99 / 100]
}

/// Swaps `n_swaps` times, every `pause`; each answer has to be what the version that it names decides.
async fn swap_under_load(n_swaps: usize, pause: Duration, clients: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (path, new) = (dir.path().join("policy.yaml"), dir.path().join("new"));
    std::fs::write(&path, varied(1)).unwrap();
    let settings = RawConfig { policy_poll_interval: Some("5ms".parse().unwrap()), ..from(path.display().to_string()) };
    let service = Service::start(settings);
    let without_swaps = async || {
        let calm = Traffic::with(&service, clients, Duration::from_millis(2)).await;
        tokio::time::sleep((pause * n_swaps as u32 / 4).max(Duration::from_secs(1))).await;
        calm.stop().await
    };
    // The first texts are classified and cached before anything is measured; the rest of the machine's noise is
    // taken before and after.
    Traffic::on(&service).await.stop().await;
    let mut calm = without_swaps().await;
    let traffic = Traffic::with(&service, clients, Duration::from_millis(2)).await;
    for number in 2..n_swaps + 2 {
        std::fs::write(&new, varied(number)).unwrap();
        std::fs::rename(&new, &path).unwrap();
        tokio::time::sleep(pause).await;
    }
    await_version(&service, &(n_swaps + 1).to_string()).await;
    let swaps = status(&service).await.loads - 1;
    let answers = traffic.stop().await;
    calm.extend(without_swaps().await);
    let versions = check_explained(&answers).await;
    println!(
        "{swaps} swaps, {} answers under {versions} versions, none failed; p99 {:?} without swaps, {:?} with",
        answers.len(),
        p99(&calm),
        p99(&answers)
    );
    assert!(swaps as usize > n_swaps * 9 / 10 && versions > n_swaps / 2, "{swaps} swaps, {versions} versions seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_is_explained_by_the_one_version_it_names() {
    swap_under_load(150, Duration::from_millis(20), 2).await;
}

/// `cargo test --release --test integration a_thousand_swaps -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 100 s; measures the p99 with and without swaps"]
async fn a_thousand_swaps_in_a_minute() {
    swap_under_load(1_000, Duration::from_millis(60), 4).await;
}
