//! The decision log of a running service, and what operators do with it and with policy documents.

use std::collections::BTreeMap;
use std::path::Path;

use pointsman::config::RawConfig;
use pointsman::rpc::proto;
use serde_json::Value;
use tonic::Code;

use super::commands::{json_of, text_of};
use super::support::{Process, SMALL_POLICY, Service, ask, channel, eventually, run};

/// The small policy with text rules, roles, experiments and an environment.
fn policy() -> String {
    SMALL_POLICY.replace(
        "defaults: {unknown_tenant: refuse}\n",
        r"defaults: {intent: open_qa, degraded: {tier: simple}}
rules:
  - {name: urgent, priority: 5, when: {keywords: [urgent]}, then: {force_chain: strong}}
  - {name: invoice, when: {regex: '(?i)invoice \d+'}, then: {raise_tier_to: complex}}
  - {name: vip, when: {metadata: {plan: gold}}, then: {raise_tier_to: complex}}
thresholds: {min_confidence: 0.6}
environments:
  production: {thresholds: {min_confidence: 0.7}}
roles:
  batch: {thresholds: {min_confidence: 0.5}}
experiments:
  half: {arms: {a: {weight: 0.5}, b: {weight: 0.5, chains: {quick: [big, little]}}}}
  beside: {kind: shadow, arms: {strong: {chain: strong}}}
",
    )
}

fn requests() -> Vec<proto::RouteRequest> {
    let texts = [
        "What is the capital of France?",
        "This is urgent, the server is down",
        "Please pay invoice 4711 today",
        "Prove that there are infinitely many prime numbers and discuss Euclid's argument",
        "Write a haiku about rain",
        "Übersetze diesen Satz bitte in die englische Sprache, vielen Dank dafür",
        "thanks",
    ];
    (0..70)
        .map(|i: usize| {
            let mut request = proto::RouteRequest {
                tenant: ["", "known", "stranger"][i % 3].to_owned(),
                role: ["", "batch"][i % 2].to_owned(),
                session_id: if i.is_multiple_of(5) { String::new() } else { format!("session-{}", i / 3) },
                request_id: format!("request-{i}"),
                ..ask(texts[i % texts.len()])
            };
            if i.is_multiple_of(4) {
                request.metadata = [("plan", "gold"), ("secret", "hunter2")].map(|(k, v)| (k.into(), v.into())).into();
            }
            if i.is_multiple_of(10) {
                let requirements = proto::Requirements { vision: true, max_cost_usd: 0.1, ..Default::default() };
                request.requirements = Some(requirements);
            }
            if i == 69 {
                // Nothing offers this.
                let requirements = proto::Requirements { data_regions: vec!["mars".into()], ..Default::default() };
                request.requirements = Some(requirements);
            }
            request
        })
        .collect()
}

/// The tenant of a request, from its id.
fn tenant_of(request_id: &str) -> String {
    requests().into_iter().find(|request| request.request_id == request_id).unwrap().tenant
}

/// Routes everything; gives the decisions by request id.
async fn route_all(service: &Service) -> BTreeMap<String, proto::Decision> {
    let mut router = service.router().await;
    let mut decisions = BTreeMap::new();
    for request in requests() {
        match router.route(request).await {
            Ok(answer) => {
                let decision = answer.into_inner().decision.unwrap();
                decisions.insert(decision.request_id.clone(), decision);
            }
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}"),
        }
    }
    assert_eq!(decisions.len(), 69);
    decisions
}

fn logging(dir: &Path) -> RawConfig {
    RawConfig { decision_log: Some(dir.join("log")), environment: Some("production".into()), ..RawConfig::default() }
}

fn written(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir.join("log")).unwrap();
    entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

#[tokio::test]
async fn what_was_served_replays_to_what_was_served() {
    let dir = tempfile::tempdir().unwrap();
    let (service, policies, path) = Service::with_policy(&policy(), logging(dir.path()));
    let served = route_all(&service).await;
    service.join();

    let log = written(dir.path());
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["type"], "context");
    assert_eq!(lines.len(), 71, "a context and a line for each decision, that without a candidate included");
    for secret in ["capital of France", "hunter2", "session-3", "Euclid", "urgent,"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    for line in &lines[1..] {
        let Some(decision) = served.get(line["request_id"].as_str().unwrap()) else {
            assert_eq!(line["outcome"]["kind"], "no_candidate");
            continue;
        };
        assert_eq!(line["decision_id"], decision.decision_id.as_str());
        assert_eq!(line["outcome"]["model"], decision.selected.as_ref().unwrap().model.as_str());
        assert_eq!(line["experiments"][0]["arm"], decision.experiments[0].arm.as_str());
        assert_eq!(line["shadows"][0]["experiment"], "beside");
    }

    let folder = dir.path().join("log");
    let simulate = |candidate: &Path, more: &[&str]| {
        let arguments = ["policy", "simulate", "--format", "json", "--log", text_of(&folder), "--candidate"];
        json_of(&[&arguments, &[text_of(candidate)][..], more].concat())
    };
    let same = simulate(&path, &[]);
    assert_eq!(same["lines"]["replayed"], 70, "{same:#}");
    assert_eq!((&same["changed"], &same["changed_beside"]), (&0.into(), &0.into()), "{same:#}");
    assert_eq!(simulate(&path, &["--current", text_of(&path)])["changed_beside"], 0);
    // The environment of the decisions is taken from the log; another one decides otherwise.
    let other = policies.path().join("other.yaml");
    std::fs::write(&other, policy().replace("zenith: {enabled: true}", "zenith: {enabled: false}")).unwrap();
    let page = policies.path().join("report.html");
    let changed = simulate(&other, &["--html", text_of(&page)]);
    assert!(changed["changed"].as_u64().unwrap() > 10, "{changed:#}");
    assert!(changed["no_candidate"]["after"].as_u64() > changed["no_candidate"]["before"].as_u64());
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("Most affected tenants"));

    let (code, out, err) = run(&["policy", "simulate", "--log", text_of(&folder), "--candidate", text_of(&other)]);
    assert!(code == 0 && out.contains("70 of 70 logged decisions replayed exactly"), "{out}{err}");
}

#[tokio::test]
async fn arms_are_told_and_are_the_same_on_another_instance() {
    let (one, _dir, _) = Service::with_policy(&policy(), RawConfig::default());
    let (other, _dir, _) = Service::with_policy(&policy(), RawConfig::default());
    let (first, second) = (route_all(&one).await, route_all(&other).await);
    let mut seen = BTreeMap::<String, u32>::new();
    for (id, decision) in &first {
        let arm = &decision.experiments[0];
        assert_eq!((arm.experiment.as_str(), arm.propensity), ("half", 0.5));
        assert_eq!(decision.experiment.as_ref(), Some(arm));
        assert_eq!(decision.experiments, second[id].experiments, "{id}");
        assert_eq!(decision.selected, second[id].selected, "{id}");
        assert!(decision.reasons.iter().any(|reason| reason.code == "EXPERIMENT_ARM"));
        *seen.entry(arm.arm.clone()).or_default() += 1;
    }
    assert!(seen["a"] > 15 && seen["b"] > 15, "{seen:?}");
    let page = super::support::get(one.admin, "/metrics").body;
    for (arm, n) in seen {
        let line = format!("pointsman_experiment_decisions_total{{experiment=\"half\",arm=\"{arm}\"}} {n}");
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn a_shadow_is_counted_and_serves_nobody() {
    let with = policy();
    let without = with.replace("  beside: {kind: shadow, arms: {strong: {chain: strong}}}\n", "");
    let (one, _dir, _) = Service::with_policy(&with, RawConfig::default());
    let (other, _dir, _) = Service::with_policy(&without, RawConfig::default());
    let (first, second) = (route_all(&one).await, route_all(&other).await);
    for (id, decision) in &first {
        assert_eq!(decision.selected, second[id].selected, "{id}");
        assert_eq!(decision.experiments.len(), 1, "a shadow serves nobody");
    }
    let page = super::support::get(one.admin, "/metrics").body;
    let shadows: f64 = page
        .lines()
        .filter(|line| line.starts_with("pointsman_shadow_decisions_total{experiment=\"beside\",arm=\"strong\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(shadows, 70.0);
    // Blended cost by tenant; made-up tenants share the empty name.
    for tenant in ["", "known"] {
        let own = first.iter().filter(|(id, _)| (tenant_of(id) == "known") == (tenant == "known"));
        let expected: f64 = own.map(|(_, decision)| decision.estimated_cost_usd).sum();
        let name = format!("pointsman_decision_cost_usd_total{{tenant=\"{tenant}\"}} ");
        let told: f64 = page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap();
        assert!((told - expected).abs() < 1e-9 && told > 0.0, "{tenant}: {told} for {expected}");
    }
    assert!(!page.contains("stranger"));
}

#[tokio::test]
async fn a_policy_is_simulated_over_what_the_server_remembers() {
    let (service, _dir, _) = Service::with_policy(&policy(), RawConfig::default());
    route_all(&service).await;
    let mut policies = service.policy().await;
    let mut simulate = async |request| policies.simulate_policy(request).await.map(tonic::Response::into_inner);
    let same = simulate(proto::SimulatePolicyRequest { document: policy(), ..Default::default() }).await.unwrap();
    assert_eq!((same.decisions, same.changed, same.not_replayable), (70, 0, 0), "{}", same.report_json);
    let off = policy().replace("zenith: {enabled: true}", "zenith: {enabled: false}");
    let request = proto::SimulatePolicyRequest { document: off.clone(), ..Default::default() };
    let changed = simulate(request).await.unwrap();
    assert!(changed.changed > 10);
    let report: Value = serde_json::from_str(&changed.report_json).unwrap();
    assert_eq!(report["changes"].as_array().unwrap().len() as u64, changed.changed);
    let back = proto::SimulatePolicyRequest { document: policy(), from_document: off, ..Default::default() };
    assert_eq!(simulate(back).await.unwrap().changed, changed.changed);
    let nothing = proto::SimulatePolicyRequest {
        document: policy(),
        decision_log_lines: vec!["not a line".into()],
        ..Default::default()
    };
    assert_eq!(simulate(nothing).await.unwrap().decisions, 0);
    let bad = proto::SimulatePolicyRequest { document: "schema: x".into(), ..Default::default() };
    let status = simulate(bad).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("UNKNOWN_SCHEMA"), "{status:?}");

    // A server that remembers nothing says so.
    let silent = RawConfig { decision_log_recent: Some(0), ..RawConfig::default() };
    let (service, _dir, _) = Service::with_policy(&policy(), silent);
    let request = proto::SimulatePolicyRequest { document: policy(), ..Default::default() };
    let status = service.policy().await.simulate_policy(request).await.unwrap_err();
    assert!(status.message().contains("keeps no decisions"), "{status:?}");
}

#[tokio::test]
async fn documents_are_compared_by_path_and_by_effect() {
    let (service, dir, path) = Service::with_policy(&policy(), RawConfig::default());
    let off = policy().replace("acme: {enabled: true}", "acme: {enabled: false}");
    let mut policies = service.policy().await;
    let request = proto::DiffPolicyRequest { to_document: off.clone(), ..Default::default() };
    let found = policies.diff_policy(request).await.unwrap().into_inner();
    let change = &found.changes[0];
    assert_eq!(found.changes.len(), 1);
    assert_eq!(
        (change.path.as_str(), change.from_json.as_str(), change.to_json.as_str()),
        ("providers.acme.enabled", "true", "false")
    );
    let effect = &found.effects[0];
    assert_eq!(
        (effect.from.as_ref().unwrap().model.as_str(), effect.to.as_ref().unwrap().model.as_str()),
        ("little", "big")
    );
    assert_eq!(effect.tenants, [""], "tenant `known` never had the other provider");
    let bad = proto::DiffPolicyRequest { from_document: "{".into(), to_document: off.clone() };
    let status = policies.diff_policy(bad).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().starts_with("from_document"), "{status:?}");

    let newer = dir.path().join("newer.yaml");
    std::fs::write(&newer, off).unwrap();
    let (code, out, _) = run(&["policy", "diff", text_of(&path), text_of(&newer)]);
    assert!(
        code == 1
            && out.contains("providers.acme.enabled: true -> false")
            && out.contains("little (quick) -> big (quick)"),
        "{out}"
    );
    let (code, out, _) = run(&["policy", "diff", text_of(&path), text_of(&path)]);
    assert!(code == 0 && out.starts_with("0 change(s)"), "{out}");
}

#[test]
fn operators_can_look_at_a_policy_from_every_side() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, policy()).unwrap();
    let path = text_of(&path);

    let (code, out, err) =
        run(&["policy", "explain", path, "--tenant", "known", "--intent", "code", "--tier", "simple"]);
    assert_eq!(code, 0, "{err}");
    for part in [
        "applies     ",
        "tenant known",
        "removed     little (acme)",
        "PROVIDER_NOT_ALLOWED",
        "selected    big (zenith)",
    ] {
        assert!(out.contains(part), "{part} in\n{out}");
    }
    let (code, out, _) = run(&["policy", "explain", path]);
    assert!(code == 0 && out.contains("complex") && out.contains("strong"), "{out}");
    let arguments =
        ["policy", "explain", path, "--intent", "code", "--tier", "simple", "--text", "urgent!", "--format", "json"];
    let forced = json_of(&arguments);
    assert_eq!((&forced["chain"], &forced["source"]), (&"strong".into(), &"rule".into()), "{forced:#}");

    let shown =
        json_of(&["policy", "show", path, "--environment", "production", "--role", "batch", "--format", "json"]);
    assert_eq!(shown["thresholds"]["min_confidence"], 0.5);
    assert!(shown.get("roles").is_none() && shown.get("environments").is_none());
    let (code, _, err) = run(&["policy", "show", path, "--role", "gone"]);
    assert!(code == 1 && err.contains("known roles: batch"), "{err}");

    let schema = json_of(&["policy", "schema"]);
    assert_eq!(schema["title"], "Pointsman policy");

    std::fs::write(path, policy().replace("allowed_providers: [zenith]", "chain: gone")).unwrap();
    let (code, out, _) = run(&["policy", "validate", path, "--format", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["valid"], &report["usable"]), (1, &false.into(), &true.into()), "{report:#}");
    assert_eq!(report["findings"][0]["tenant"], "known");
    let (_, out, _) = run(&["policy", "validate", path]);
    assert!(out.contains("1 error, 0 warnings; only what tenant known overrides is refused"), "{out}");
}

#[tokio::test]
async fn one_tenants_broken_edit_is_loaded_without_it() {
    let (service, _dir, path) = Service::with_policy(SMALL_POLICY, RawConfig::default());
    let broken = SMALL_POLICY
        .replace("known: {allowed_providers: [zenith]}", "known: {allowed_providers: [zenith], chain: gone}");
    std::fs::write(path, broken.replace("version: \"1\"", "version: \"2\"")).unwrap();
    let mut router = service.router().await;
    let decision = eventually("the new version", async || {
        let request = proto::RouteRequest { tenant: "known".into(), ..ask("What is the capital of France?") };
        let decision = router.route(request).await.unwrap().into_inner().decision.unwrap();
        (decision.policy.as_ref().unwrap().version == "2").then_some(decision)
    })
    .await;
    assert_eq!(decision.selected.unwrap().provider, "zenith", "what the tenant forbids stays forbidden");
    assert!(decision.reasons.iter().any(|reason| reason.code == "TENANT_OVERRIDE_REFUSED"));
    let status = service.policy().await.get_policy_status(proto::GetPolicyStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.warnings.iter().find(|finding| finding.tenant == "known").unwrap().code, "UNKNOWN_CHAIN");
}

/// A disk that stands still costs lines and a bounded while at the end, no request and no hanging process.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_that_stands_still_does_not_hold_a_drain() {
    use std::time::{Duration, Instant};

    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("decisions.jsonl");
    if !std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no mkfifo here");
        return;
    }
    // Opened for reading and never read: writes stop when the pipe's 64 KiB are full.
    let reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let process = Process::serve(&["--decision-log", text_of(dir.path())]);
    let mut router = proto::router_client::RouterClient::new(channel(process.grpc).await);
    for _ in 0..200 {
        router.route(ask("thanks a lot!")).await.unwrap();
    }
    let stopping = Instant::now();
    process.signal("-TERM");
    let (status, log) = process.wait(Duration::from_secs(20));
    assert!(status.success(), "{log}");
    assert!(log.contains("could not be finished in time"), "{log}");
    assert!(stopping.elapsed() < Duration::from_secs(15), "{:?}", stopping.elapsed());
    drop(reader);
}
