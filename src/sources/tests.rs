//! The policy in force through edits, mistakes and outages of its source.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::policy::{DEFAULT_DOCUMENT, PolicyOptions};

/// A policy that compiles in a fraction of a millisecond.
const SMALL: &str = r#"schema: pointsman.policy/v1
id: small
version: "1"
models:
  m: {provider: p, provider_model: x, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 9000}
chains: {c: [m]}
routes: [{intent: "*", tier: "*", chain: c}]
defaults:
  intent: other
"#;

/// The default policy as version `version`, whose default intent tells which version it is.
fn document(version: usize) -> String {
    versioned(DEFAULT_DOCUMENT, version)
}

fn versioned(document: &str, version: usize) -> String {
    document
        .replace("version: \"1\"", &format!("version: \"{version}\""))
        .replace("  intent: other\n", &format!("  intent: v{version}\n"))
}

async fn store_of(path: &Path) -> PolicyStore {
    PolicyStore::start(Box::new(FileSource::new(path)), PolicyOptions::default()).await.unwrap()
}

fn version(store: &PolicyStore) -> String {
    store.snapshot().policy.version().to_string()
}

#[tokio::test]
async fn the_embedded_policy_starts_and_never_changes() {
    let store = PolicyStore::start(Box::new(EmbeddedSource), PolicyOptions::default()).await.unwrap();
    assert_eq!(store.refresh().await.unwrap(), PolicyEvent::Unchanged);
    let reference = store.snapshot().policy_ref();
    assert_eq!((&*reference.id, &*reference.version, &*reference.source), ("default", "1", "embedded"));
    assert_eq!(reference.sha256.len(), 64);
    assert_eq!(store.source().poll_interval(), None);
}

#[tokio::test]
async fn a_changed_file_is_in_force_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, document(1)).unwrap();
    let store = Arc::new(store_of(&path).await);
    let cancel = CancellationToken::new();
    let interval = store.source().poll_interval().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let (watched, token) = (Arc::clone(&store), cancel.clone());
    tasks.spawn(async move { watched.run(interval, token).await });
    for round in 2..5 {
        let mut events = store.subscribe();
        // As editors and Kubernetes do it: a new file in place of the old one.
        let next = dir.path().join("next");
        std::fs::write(&next, document(round)).unwrap();
        std::fs::rename(&next, &path).unwrap();
        let loaded = events.wait_for(|status| status.loads == round as u64);
        tokio::time::timeout(Duration::from_secs(1), loaded).await.expect("seen within a second").unwrap();
        assert_eq!(version(&store), round.to_string());
    }
    cancel.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_broken_edit_keeps_the_last_good_policy_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, document(1)).unwrap();
    let store = store_of(&path).await;

    std::fs::write(&path, document(2).replace("small: [gemini-flash-lite", "small: [gemini-flesh-lite")).unwrap();
    let error = store.refresh().await.unwrap_err();
    assert!(matches!(error, RefreshError::Invalid { .. }));
    let status = store.status();
    assert_eq!((version(&store).as_str(), status.rejections, status.last_event), ("1", 1, PolicyEvent::Rejected));
    let told = status.last_error.unwrap();
    assert!(told.contains("UNKNOWN_MODEL chains.small[0]") && told.contains("gemini-flash-lite"), "{told}");

    // The broken document is still there: not compiled again, not forgotten, and nothing is confirmed by it.
    assert_eq!(store.refresh().await.unwrap(), PolicyEvent::Unchanged);
    let status = store.status();
    assert_eq!(status.rejections, 1);
    assert!(status.last_error.is_some());

    std::fs::write(&path, document(3)).unwrap();
    assert_eq!(store.refresh().await.unwrap(), PolicyEvent::Loaded);
    let status = store.status();
    assert_eq!((version(&store).as_str(), status.loads, status.last_error), ("3", 2, None));
}

#[tokio::test]
async fn taking_a_broken_edit_back_is_a_success() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, document(1)).unwrap();
    let store = store_of(&path).await;
    let before = store.snapshot();
    std::fs::write(&path, "not a policy").unwrap();
    store.refresh().await.unwrap_err();
    std::fs::write(&path, document(1)).unwrap();
    assert_eq!(store.refresh().await.unwrap(), PolicyEvent::Unchanged);
    assert_eq!(store.status().last_error, None);
    assert!(Arc::ptr_eq(&before, &store.snapshot()), "the same bytes are not swapped");
}

#[tokio::test]
async fn a_file_that_goes_away_keeps_the_last_good_policy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, document(1)).unwrap();
    let store = store_of(&path).await;
    std::fs::remove_file(&path).unwrap();
    for failures in 1..=2 {
        assert!(matches!(store.refresh().await, Err(RefreshError::Source(_))));
        let status = store.status();
        assert_eq!(
            (status.fetch_failures, status.rejections, status.last_event),
            (failures, 0, PolicyEvent::Unavailable)
        );
        assert!(status.last_error.unwrap().contains("No such file"));
    }
    std::fs::write(&path, document(1)).unwrap();
    assert_eq!(store.refresh().await.unwrap(), PolicyEvent::Unchanged);
    assert_eq!(store.status().last_error, None);
}

#[tokio::test]
async fn without_a_first_policy_there_is_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    let start = || PolicyStore::start(Box::new(FileSource::new(&path)), PolicyOptions::default());
    assert!(matches!(start().await, Err(RefreshError::Source(SourceError::Read { .. }))));
    std::fs::write(&path, "schema: pointsman.policy/v1\nid: x\n").unwrap();
    let Err(RefreshError::Invalid { source, .. }) = start().await else { panic!("a policy without models") };
    assert!(source.findings.len() >= 4, "all findings are told: {:?}", source.findings);
    std::fs::write(&path, " ".repeat(2 * 1024 * 1024)).unwrap();
    assert!(matches!(start().await, Err(RefreshError::Source(SourceError::TooLarge { .. }))));
}

/// A caller of `PublishPolicy` may hang up at any moment.
#[tokio::test]
async fn a_look_that_is_given_up_makes_no_document_look_known() {
    let document = Given(Arc::new(std::sync::Mutex::new(versioned(SMALL, 1))));
    let store = PolicyStore::start(Box::new(document.clone()), PolicyOptions::default()).await.unwrap();
    *document.0.lock().unwrap() = versioned(SMALL, 2);
    let mut look = Box::pin(store.refresh());
    tokio::select! {
        biased;
        outcome = &mut look => panic!("compiling takes another thread: {outcome:?}"),
        () = std::future::ready(()) => {}
    }
    drop(look);
    assert_eq!(version(&store), "1");
    assert_eq!(store.refresh().await.unwrap(), PolicyEvent::Loaded);
    assert_eq!(version(&store), "2");
}

#[tokio::test(start_paused = true)]
async fn age_is_the_time_since_the_source_confirmed() {
    // Fetches in turn: the document, then whatever each step of the test needs.
    let script = Script::default();
    let store = PolicyStore::start(Box::new(script.clone()), PolicyOptions::default()).await.unwrap();
    let age = || store.snapshot().age().as_secs();
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(age(), 7);
    store.refresh().await.unwrap();
    assert_eq!(age(), 0, "unchanged is a confirmation");
    script.fails.store(true, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(9)).await;
    store.refresh().await.unwrap_err();
    assert_eq!(age(), 9, "a failed fetch confirms nothing");
    assert_eq!(store.snapshot().policy_ref().age_ms, 9_000);
}

#[tokio::test(start_paused = true)]
async fn polls_are_spread_by_jitter_and_stop_when_cancelled() {
    let script = Script::default();
    let store = Arc::new(PolicyStore::start(Box::new(script.clone()), PolicyOptions::default()).await.unwrap());
    let cancel = CancellationToken::new();
    let (running, token) = (Arc::clone(&store), cancel.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { running.run(Duration::from_secs(5), token).await });
    tokio::time::sleep(Duration::from_secs(100)).await;
    let polls = script.fetches.load(Ordering::SeqCst) - 1;
    assert!((21..=31).contains(&polls), "{polls} polls in 100 s, 3.3 to 4.5 s apart");
    cancel.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_only_whole_snapshots_through_a_thousand_swaps() {
    let script = Script { counts: true, ..Script::default() };
    let store = Arc::new(PolicyStore::start(Box::new(script), PolicyOptions::default()).await.unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (store, done) = (Arc::clone(&store), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut reads = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let active = store.snapshot();
                    let policy = &active.policy;
                    // The version, the document and what is decided belong together.
                    assert!(policy.document().contains(&format!("version: \"{}\"", policy.version())));
                    let scope = policy.scope("", "").unwrap();
                    let (rules, requirements) = Default::default();
                    let resolution = scope.resolve(&crate::policy::Signals {
                        classification: None,
                        rules: &rules,
                        language: None,
                        degraded: true,
                        requirements: &requirements,
                        input_tokens: 10,
                        output_tokens: None,
                        sticky_key: "",
                    });
                    assert_eq!(*resolution.unwrap().intent, format!("v{}", policy.version()));
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for _ in 0..1_000 {
        assert_eq!(store.refresh().await.unwrap(), PolicyEvent::Loaded);
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
    assert_eq!((version(&store).as_str(), store.status().loads), ("1001", 1_001));
}

/// A source that has what the test puts there, and never says that it is unchanged.
#[derive(Clone, Debug)]
struct Given(Arc<std::sync::Mutex<String>>);

impl PolicySource for Given {
    fn kind(&self) -> &'static str {
        "given"
    }

    fn place(&self) -> String {
        "given".to_owned()
    }

    fn poll_interval(&self) -> Option<Duration> {
        Some(DEFAULT_TTL)
    }

    fn fetch<'a>(&'a self, _: Option<&'a str>) -> Fetch<'a> {
        let bytes = self.0.lock().unwrap().clone().into_bytes();
        Box::pin(std::future::ready(Ok(Fetched::Document { bytes, signature: None, revision: "r".into() })))
    }
}

/// A source that does as the test says.
#[derive(Clone, Debug, Default)]
struct Script {
    /// A new version on every fetch; else the first stays.
    counts: bool,
    fails: Arc<AtomicBool>,
    fetches: Arc<AtomicUsize>,
}

impl PolicySource for Script {
    fn kind(&self) -> &'static str {
        "script"
    }

    fn place(&self) -> String {
        "script".to_owned()
    }

    fn poll_interval(&self) -> Option<Duration> {
        Some(DEFAULT_TTL)
    }

    fn fetch<'a>(&'a self, seen: Option<&'a str>) -> Fetch<'a> {
        let fetch = self.fetches.fetch_add(1, Ordering::SeqCst) + 1;
        let fetched = if self.fails.load(Ordering::SeqCst) {
            Err(SourceError::Read { path: self.place(), source: std::io::Error::other("down") })
        } else if self.counts || seen.is_none() {
            Ok(Fetched::Document {
                bytes: versioned(SMALL, fetch).into_bytes(),
                signature: None,
                revision: fetch.to_string(),
            })
        } else {
            Ok(Fetched::Unchanged)
        };
        Box::pin(std::future::ready(fetched))
    }
}
