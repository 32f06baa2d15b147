//! From served decisions and reported outcomes to a candidate classifier that serves, with the real binary.

use std::fmt::Write as _;
use std::path::Path;

use pointsman::config::RawConfig;
use pointsman::rpc::proto;

use super::support::{SMALL_POLICY, Service, ask, run};

const ABILITY: f64 = 0.5;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

/// Everything goes to one model first, whatever its tier.
fn policy() -> String {
    SMALL_POLICY.replace("tier: complex, chain: strong", "tier: complex, chain: quick")
}

async fn decide(service: &Service, text: &str) -> proto::Decision {
    service.router().await.route(ask(text)).await.unwrap().into_inner().decision.unwrap()
}

/// Decisions of the shipped classifier, by id and latent difficulty; the log is in `dir`.
async fn decisions(dir: &Path) -> (Vec<(String, f64)>, String) {
    let settings = RawConfig { decision_log: Some(dir.join("decisions")), ..RawConfig::default() };
    let (service, _policy, _) = Service::with_policy(&policy(), settings);
    let subjects = ["rivers", "bridges", "the moon", "old coins", "bread", "glaciers", "trams", "violins"];
    let tasks = ["Name three facts about", "Write a poem about", "Prove a theorem on", "Explain the physics of"];
    let text = |n: usize| format!("{} {}, part {}", tasks[n % 4], subjects[n / 4 % 8], n / 32);
    let requests: Vec<proto::RouteRequest> = (0..512).map(|n| ask(text(n))).collect();
    let mut decided = Vec::new();
    for requests in requests.chunks(128) {
        let batch = proto::RouteBatchRequest { requests: requests.to_vec() };
        for result in service.router().await.route_batch(batch).await.unwrap().into_inner().results {
            let Some(proto::route_result::Result::Decision(decision)) = result.result else { panic!("{result:?}") };
            assert_eq!(decision.selected.unwrap().model, "little");
            decided.push((decision.decision_id, logit(decision.complexity.unwrap().difficulty)));
        }
    }
    service.join();
    let text = std::fs::read_to_string(dir.join("decisions/decisions.jsonl")).unwrap();
    (decided, text)
}

/// Outcomes of queries that are as hard as `truth` makes of what the classifier said.
fn outcomes(decided: &[(String, f64)], truth: impl Fn(f64) -> f64) -> String {
    let mut lines = String::new();
    for (n, (id, z)) in decided.iter().enumerate() {
        // Even shares without a generator: the golden ratio's multiples.
        let drawn = (n as f64 * 0.618_033_988_749_895).fract();
        let score = f64::from(u8::from(drawn < sigmoid(ABILITY - truth(*z))));
        let line = serde_json::json!({
            "time_unix_ms": n, "decision_id": id, "model": "little", "score": score, "tokens": 0, "cost_usd": 0.0,
            "latency_ms": 0,
        });
        writeln!(lines, "{line}").unwrap();
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_become_a_classifier_that_serves_where_it_is_better() {
    let dir = tempfile::tempdir().unwrap();
    let (decided, log) = decisions(dir.path()).await;
    assert_eq!((decided.len(), log.lines().filter(|line| line.contains("\"type\":\"decision\"")).count()), (512, 512));
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("policy.yaml"), policy()).unwrap();
    let calibrate = |outcomes: &str, more: &[&str]| {
        std::fs::write(path("outcomes.jsonl"), outcomes).unwrap();
        let (outcomes, decisions, policy) = (path("outcomes.jsonl"), path("decisions"), path("policy.yaml"));
        let arguments = ["calibrate", "--outcomes", &outcomes, "--decisions", &decisions, "--policy", &policy];
        run(&[&arguments[..], &["--resamples", "100"], more].concat())
    };
    let mean = decided.iter().map(|(_, z)| z).sum::<f64>() / 512.0;
    let spread = (decided.iter().map(|(_, z)| (z - mean).powi(2)).sum::<f64>() / 512.0).sqrt();
    println!("latent difficulties of the texts: mean {mean:.2}, standard deviation {spread:.2}");

    // Where the classifier is right it is left as it is.
    let (model, candidate) = (path("candidate"), path("candidate.yaml"));
    let (code, report, error) = calibrate(&outcomes(&decided, |z| z), &["--model-output", &model]);
    assert_eq!(code, 0, "{error}");
    assert!(report.contains("it stays as it is") && error.contains("no classifier is written"), "{report}\n{error}");
    assert!(!Path::new(&model).exists());

    // Queries lie four times as far apart as it says: it is far too unsure of itself.
    let truth = |z: f64| mean + 4.0 * (z - mean);
    let (code, report, error) =
        calibrate(&outcomes(&decided, truth), &["--model-output", &model, "--output", &candidate]);
    assert_eq!(code, 0, "{error}");
    for part in ["a classifier with it is written", "Brier score", "calibration error", "held against"] {
        assert!(report.contains(part), "{part} is not in {report}");
    }
    println!("{report}");

    // It serves, and what it says is what was found.
    let settings = RawConfig { model: Some(model.clone()), policy: Some(candidate.clone()), ..RawConfig::default() };
    let service = Service::start(settings);
    let served = decide(&service, "Prove a theorem on rivers, part 3").await;
    let before = decided[3 * 32 + 2].1; // The third task on the first subject.
    let after = logit(served.complexity.unwrap().difficulty);
    assert!((after - truth(before)).abs() < 0.2 * (1.0 + (before - mean).abs()), "{before} became {after}");
    let classifier = served.classifier.unwrap();
    assert!(classifier.version.ends_with("+outcomes"), "{classifier:?}");
    assert_eq!(served.confidence.unwrap().calibrator, "ordinal logistic");
    let info = service.info().await.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner();
    let heads: Vec<String> = info.calibrations.into_iter().map(|calibration| calibration.head).collect();
    assert_eq!(heads, ["intent", "success", "tier"]);
    service.join();
    // The candidate's trial was kept anew: its manifest is sealed.
    let manifest = std::fs::read_to_string(Path::new(&model).join("manifest.toml")).unwrap();
    assert!(manifest.contains("[[trial]]") && manifest.contains("[calibration.success]"));

    // Neither is overwritten, nor judged by what another one decided.
    let (code, _, error) = calibrate(&outcomes(&decided, truth), &["--model-output", &model]);
    assert!(code != 0 && error.contains("exists"), "{error}");
    let (code, _, error) =
        calibrate(&outcomes(&decided, truth), &["--model", &model, "--model-output", &path("another")]);
    assert!(code != 0 && error.contains("no graded answer"), "{error}");
}
