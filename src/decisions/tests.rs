//! The log's files, and what can be replayed from a record and what cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::domain::{ClassifierRef, Query, Requirements, TextSignals, TierControl};
use crate::policy::{Assignment, Circumstances, KeyDigest, Policy, PolicyOptions, Signals, Standing, State, certain};
use crate::rules::RuleInput;
use crate::telemetry::Metrics;

const POLICY: &str = r#"
schema: pointsman.policy/v1
id: p
version: "1"
models:
  one: {provider: a, provider_model: x, price_per_million_tokens: {input_usd: 1, output_usd: 1}, context_window_tokens: 9000, ability: 0}
  two: {provider: b, provider_model: y, price_per_million_tokens: {input_usd: 2, output_usd: 2}, context_window_tokens: 9000, ability: 2}
chains: {main: [one, two], other: [two, one]}
routes: [{intent: chat, tier: complex, chain: other}, {intent: "*", tier: "*", chain: main}]
rules:
  - {name: urgent, when: {keywords: [urgent, now]}, then: {force_chain: other}}
  - {name: invoice, when: {regex: "(?i)invoice \\d+", metadata: {plan: gold}}, then: {tier: complex}}
roles: {helper: {}}
tenants: {acme: {rules: [{name: quiet, when: {keywords: [hush]}, then: {force_chain: main}}]}}
experiments:
  half: {arms: {a: {weight: 0.5}, b: {weight: 0.5, chains: {main: [two, one]}}}}
"#;

fn policy(document: &str) -> Arc<Policy> {
    Arc::new(Policy::load(document.as_bytes(), &PolicyOptions::default()).unwrap())
}

fn intents() -> Arc<[Arc<str>]> {
    Arc::from([Arc::from("chat"), Arc::from("code")])
}

fn context(policy: &Policy) -> Arc<Context> {
    let classifier = ClassifierRef { name: "c".into(), version: "1".into(), sha256: "00".into() };
    Arc::new(Context::new(policy, &classifier, &intents(), &TierControl::default()))
}

/// Decides as the router does, with `chat` and `tiers` where the classifier is needed, and keeps the record.
fn decide(policy: &Arc<Policy>, text: &str, query: &Query, tiers: [f32; 3]) -> DecisionRecord {
    let context = context(policy);
    let session = (!query.session_id.is_empty()).then(|| KeyDigest::of(&query.session_id));
    let assignment = Assignment { session, request_id: &query.request_id, metadata: &query.metadata, now_ms: 7 };
    let scope = policy.scope(&query.tenant, &query.role).unwrap().with_experiments(&assignment);
    let words = text.split_whitespace().count();
    let text_signals = TextSignals { bytes: text.len(), words, lines: 1, ..TextSignals::default() };
    let (rules, matches) = scope.rules().observe(&RuleInput {
        text,
        signals: &text_signals,
        metadata: &query.metadata,
        tenant: &query.tenant,
        role: &query.role,
    });
    let mut classification = certain("chat", crate::domain::Tier::Simple);
    classification.intent = crate::domain::Distribution::new(intents(), vec![0.7, 0.3]).unwrap();
    classification.tiers = tiers;
    let consulted = (!scope.decisive(&rules)).then_some(&classification);
    let resolved = scope.resolve(&Signals {
        classification: consulted,
        rules: &rules,
        language: None,
        degraded: false,
        requirements: &query.requirements,
        input_tokens: 10,
        output_tokens: None,
        sticky_key: "",
    });
    let kept = |key: &String| context.metadata_keys.contains(key);
    DecisionRecord {
        time_unix_ms: 7,
        decision_id: format!("d-{}", query.request_id),
        request_id: query.request_id.clone(),
        context: Arc::clone(&context.id),
        tenant: query.tenant.clone(),
        role: query.role.clone(),
        session: session.map(|digest| hex::encode(digest.0)),
        text_sha256: "00".repeat(32),
        text: None,
        input: InputRecord::new(&text_signals, 10),
        output_tokens: None,
        requirements: query.requirements.clone(),
        metadata: query.metadata.clone().into_iter().filter(|(key, _)| kept(key)).collect(),
        metadata_keys: query.metadata.keys().filter(|key| !kept(key)).cloned().collect(),
        layers: scope.origins().map(str::to_owned).collect(),
        matches,
        signals: consulted.map(Into::into),
        degraded: false,
        experiments: scope.arms().to_vec(),
        circumstances: None,
        outcome: Outcome::from(&resolved),
        shadows: Vec::new(),
    }
}

fn query(id: usize) -> Query {
    let names = |names: &[&str]| names[id % names.len()].to_owned();
    let mut metadata = BTreeMap::from([("colour".to_owned(), "blue".to_owned())]);
    if id.is_multiple_of(3) {
        metadata.insert("plan".to_owned(), names(&["gold", "tin"]));
    }
    Query {
        tenant: names(&["", "acme", "nobody"]),
        role: names(&["", "helper"]),
        session_id: if id.is_multiple_of(4) { String::new() } else { format!("s{}", id / 2) },
        request_id: format!("r{id}"),
        requirements: Requirements { tools: id.is_multiple_of(17), ..Requirements::default() },
        metadata,
        ..Query::default()
    }
}

const TEXTS: [&str; 5] = ["hello there", "this is urgent", "pay invoice 77", "hush now", "write a poem about tea"];
const TIERS: [[f32; 3]; 3] = [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9]];

#[test]
fn a_decision_is_made_again_under_its_circumstances() {
    let policy = policy(POLICY);
    let mut record = decide(&policy, TEXTS[0], &query(1), TIERS[0]);
    let selected = record.outcome.model().unwrap().to_owned();
    let out = Standing { state: State::Open, why: "failed lately".to_owned(), failing: 1.0 };
    let models = [(selected.clone(), out)].into();
    record.circumstances = Some(Circumstances { models, ..Circumstances::default() });
    let line = serde_json::to_string(&record).unwrap();
    let read: DecisionRecord = serde_json::from_str(&line).unwrap();
    assert_eq!(read, record);
    let without = replay(&read, &context(&policy), &policy).unwrap();
    assert_ne!(without.model(), Some(&*selected));
    record.circumstances = None;
    assert_eq!(replay(&record, &context(&policy), &policy).unwrap().model(), Some(&*selected));
}

/// A log of `n` decisions, through its written form.
fn log_of(policy: &Arc<Policy>, n: usize) -> Lines {
    let mut lines = vec![serde_json::to_string(&Line::Context(context(policy))).unwrap()];
    for id in 0..n {
        let record = decide(policy, TEXTS[id % TEXTS.len()], &query(id), TIERS[(id / 2) % TIERS.len()]);
        lines.push(serde_json::to_string(&Line::Decision(Arc::new(record))).unwrap());
    }
    read_lines(lines.iter().map(String::as_str))
}

#[test]
fn the_same_policy_changes_nothing() {
    let policy = policy(POLICY);
    let log = log_of(&policy, 400);
    for baseline in [Baseline::Logged, Baseline::Policy(&policy)] {
        let report = simulate(&log, &policy, baseline);
        assert_eq!((report.lines.replayed, report.changed, report.changed_beside), (400, 0, 0), "{report:#?}");
        assert!(report.lines.not_replayable.is_empty());
        assert!(report.no_candidate.before > 0 && report.no_candidate.before == report.no_candidate.after);
        assert!(report.models.iter().all(|mix| mix.before == mix.after));
        assert!((report.cost_usd.0 - report.cost_usd.1).abs() < 1e-12 && report.cost_usd.0 > 0.0);
    }
}

#[test]
fn another_policy_changes_what_it_says_it_does() {
    let log = log_of(&policy(POLICY), 300);
    let off = policy(&POLICY.replace("models:\n", "providers: {b: {enabled: false}}\nmodels:\n"));
    let report = simulate(&log, &off, Baseline::Logged);
    assert_eq!(report.lines.replayed, 300);
    let two = report.models.iter().find(|mix| mix.name == "two").unwrap();
    assert!(two.before > 0 && two.after == 0 && report.changed == two.before, "{report:#?}");
    assert!(report.cost_usd.1 < report.cost_usd.0);
    let quality = &report.quality;
    assert!(quality.n > 0 && quality.after < quality.before);
    assert_eq!(report.transitions, [Transition { from: "two".into(), to: "one".into(), decisions: two.before }]);
    assert_eq!(report.changes.len() as u64, report.changed.min(200));
    assert_eq!(report.tenants.iter().map(|tenant| tenant.changed).sum::<u64>(), report.changed);
    assert!(report.changes.iter().all(|change| change.before.model() == Some("two")));
    // The other way round through the same log.
    let back = simulate(&log, &policy(POLICY), Baseline::Policy(&off));
    assert_eq!(back.changed, report.changed);
}

#[test]
fn rules_that_ask_what_was_asked_before_can_be_tried() {
    let log = log_of(&policy(POLICY), 200);
    // The same questions in other rules, negated, joined, with another effect.
    let joined = policy(&POLICY.replace(
        "  - {name: urgent, when: {keywords: [urgent, now]}, then: {force_chain: other}}",
        "  - {name: fresh, when: {any: [{keywords: [now]}, {not: {regex: \"(?i)invoice \\\\d+\"}}], role: helper}, then: {force_chain: other}}",
    ));
    let report = simulate(&log, &joined, Baseline::Logged);
    assert!(report.lines.not_replayable.keys().all(|why| why == "the classifier is needed and was not consulted then"));
    assert!(report.changed > 0 && report.lines.replayed > 100, "{report:#?}");
}

#[test]
fn what_the_log_does_not_hold_is_counted_and_not_guessed() {
    let original = policy(POLICY);
    let log = log_of(&original, 300);
    let with_rule = |rule: &str| policy(&POLICY.replace("rules:\n", &format!("rules:\n  - {rule}\n")));
    let lost = |candidate: &Arc<Policy>| {
        let report = simulate(&log, candidate, Baseline::Logged);
        let lost: u64 = report.lines.not_replayable.values().sum();
        assert_eq!(report.lines.replayed + lost, 300);
        (lost, report.lines.not_replayable.into_keys().collect::<Vec<_>>())
    };
    // A keyword that nobody asked for: no decision can be made again without it.
    let (n, why) = lost(&with_rule("{name: new, priority: 9, when: {keywords: [tea]}, then: {force_chain: other}}"));
    assert_eq!((n, why), (300, vec!["rule new asks something that the log does not have".to_owned()]));
    // Asked only of one tenant: the others' texts were not.
    let acme = log.records.iter().filter(|record| record.tenant == "acme").count() as u64;
    let (n, _) = lost(&with_rule("{name: new, priority: 9, when: {keywords: [hush]}, then: {force_chain: other}}"));
    assert_eq!(n, 300 - acme);
    // Where something else settles it, the text need not be known.
    let (n, _) = lost(&with_rule("{name: new, when: {keywords: [tea], role: helper}, then: {tier: simple}}"));
    assert!(n > 0 && n < 300);
    let (n, why) = lost(&with_rule("{name: new, when: {metadata: {colour: blue}}, then: {tier: simple}}"));
    assert!(n == 300 && why[0].starts_with("rule new"));
    let sticky = POLICY.replace("  half: {arms", "  half: {sticky_by: metadata.colour, arms");
    assert_eq!(lost(&policy(&sticky)), (300, vec!["metadata colour is needed and was not kept".to_owned()]));
    // Without the rule that forced the chain the classifier would have been needed.
    let without =
        POLICY.replace("  - {name: urgent, when: {keywords: [urgent, now]}, then: {force_chain: other}}\n", "");
    let (n, why) = lost(&policy(&without));
    assert_eq!(why, ["the classifier is needed and was not consulted then"]);
    assert!(n > 0 && n < 300);
    // Context lines that are missing.
    let headless = Lines { contexts: HashMap::new(), ..log.clone() };
    assert_eq!(simulate(&headless, &original, Baseline::Logged).lines.replayed, 0);
    // A role that goes is an outcome and not a failure to replay.
    let report = simulate(&log, &policy(&POLICY.replace("roles: {helper: {}}\n", "")), Baseline::Logged);
    assert_eq!(report.models.iter().find(|mix| mix.name == "(refused)").unwrap().after, 150);
}

#[test]
fn a_log_tells_its_lines_apart() {
    let policy = policy(POLICY);
    let record = serde_json::to_string(&Line::Decision(Arc::new(decide(&policy, "x", &query(1), TIERS[0])))).unwrap();
    let read = read_lines(["", &record, "{\"type\":\"decision\"", "[1]", "  ", "{\"type\":\"other\"}", &record]);
    assert_eq!((read.records.len(), read.malformed), (2, 3));
    assert!(!record.contains("\"text\"") && record.contains("\"type\":\"decision\""), "{record}");
}

fn options(dir: &Path, max_file_bytes: u64, max_total_bytes: u64) -> LogOptions {
    let dir = dir.to_owned();
    let files = FileOptions { dir, max_file_bytes, max_file_age: Duration::from_secs(3_600), max_total_bytes };
    LogOptions { recent: 3, files: Some(files), keep_text: false }
}

fn start(options: LogOptions) -> (DecisionLog, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    (DecisionLog::start(options, Arc::clone(&metrics)).unwrap(), metrics)
}

fn counted(metrics: &Metrics, fate: &str) -> u64 {
    let text = metrics.encode(None).unwrap();
    let name = format!("pointsman_decision_log_lines_total{{fate=\"{fate}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |value| value.parse().unwrap())
}

/// Names and contents of the log's files, by name.
fn files_of(dir: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
        .collect()
}

#[test]
fn every_file_stands_alone_and_all_together_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let policy = policy(POLICY);
    let (log, metrics) = start(options(dir.path(), 8_000, 40_000));
    for id in 0..300 {
        log.record(decide(&policy, "hello", &query(id), TIERS[0]), context(&policy));
    }
    assert_eq!(log.recent().records.len(), 3, "the last ones stay in memory");
    log.close();
    assert_eq!(counted(&metrics, "Written"), 300);
    let files = files_of(dir.path());
    let total: usize = files.values().map(String::len).sum();
    assert!(files.len() > 2 && total <= 40_000, "{total} bytes in {} files", files.len());
    let mut ids = BTreeSet::new();
    for (name, text) in &files {
        assert!(text.len() <= 9_500, "{name} has {} bytes", text.len());
        let lines = read_lines(text.lines());
        assert_eq!(lines.malformed, 0);
        let report = simulate(&lines, &policy, Baseline::Logged);
        assert_eq!(report.lines.replayed, lines.records.len() as u64, "{name} needs another file");
        ids.extend(
            lines.records.iter().map(|record| record.request_id.trim_start_matches('r').parse::<usize>().unwrap()),
        );
    }
    assert_eq!(ids.last(), Some(&299), "the oldest were deleted, not the latest");
    assert!(ids.len() < 300 && ids.iter().copied().eq(*ids.first().unwrap()..300), "no gap");
    // Once closed, nothing waits and nothing is written.
    log.record(decide(&policy, "hello", &query(1), TIERS[0]), context(&policy));
    assert_eq!(counted(&metrics, "Closed"), 1);
}

#[test]
fn a_new_process_puts_the_old_file_aside() {
    let dir = tempfile::tempdir().unwrap();
    let policy = policy(POLICY);
    for id in 0..3 {
        let (log, _) = start(options(dir.path(), 1 << 20, 1 << 22));
        log.record(decide(&policy, "hello", &query(id), TIERS[0]), context(&policy));
        drop(log);
    }
    let files = files_of(dir.path());
    assert_eq!(files.len(), 3, "{:?}", files.keys());
    assert!(files.values().all(|text| text.lines().count() == 2));
}

#[test]
fn old_files_are_put_aside_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let policy = policy(POLICY);
    let mut options = options(dir.path(), 1 << 20, 1 << 22);
    options.files.as_mut().unwrap().max_file_age = Duration::ZERO;
    let (log, _) = start(options);
    for id in 0..4 {
        log.record(decide(&policy, "hello", &query(id), TIERS[0]), context(&policy));
    }
    log.close();
    assert_eq!(files_of(dir.path()).len(), 4);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let policy = policy(POLICY);
    let current = dir.path().join("decisions.jsonl");
    // Every write to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", &current).unwrap();
    let (log, metrics) = start(options(dir.path(), 1 << 20, 1 << 22));
    let wait_for = |what: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < deadline, "not in time");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    log.record(decide(&policy, "hello", &query(1), TIERS[0]), context(&policy));
    wait_for(&|| counted(&metrics, "Failed") >= 1);
    assert_eq!(counted(&metrics, "Written"), 0);
    // Room again: the next try after a second writes, with its context line.
    std::fs::remove_file(&current).unwrap();
    wait_for(&|| {
        log.record(decide(&policy, "hello", &query(2), TIERS[0]), context(&policy));
        counted(&metrics, "Written") >= 1
    });
    log.close();
    let lines = read_lines(files_of(dir.path())["decisions.jsonl"].lines());
    assert_eq!((lines.malformed, lines.contexts.len()), (0, 1));
    assert_eq!(lines.records.len() as u64, counted(&metrics, "Written"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_stands_still_makes_nobody_wait() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("decisions.jsonl");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no mkfifo here");
        return;
    }
    // A reader that does not read until it is told to: writes stop when the pipe is full.
    let (go, told) = std::sync::mpsc::channel::<()>();
    let path = pipe.clone();
    let reader = std::thread::spawn(move || {
        let mut pipe = std::fs::File::open(path).unwrap();
        told.recv().unwrap();
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    });
    let policy = policy(POLICY);
    let (log, metrics) = start(options(dir.path(), 1 << 30, 1 << 31));
    let (record, context) = (decide(&policy, "hello", &query(1), TIERS[0]), context(&policy));
    let started = Instant::now();
    for _ in 0..10_000 {
        log.record(record.clone(), Arc::clone(&context));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?} for 10,000", started.elapsed());
    let dropped = counted(&metrics, "QueueFull");
    assert!(dropped > 1_000, "{dropped} of 10,000 dropped");
    go.send(()).unwrap();
    log.close();
    drop(log);
    let lines = read_lines(reader.join().unwrap().lines());
    assert_eq!(lines.records.len() as u64 + dropped, 10_000, "written or counted as dropped, each of them");
    assert_eq!(lines.malformed, 0);
}
