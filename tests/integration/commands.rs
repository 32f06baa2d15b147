//! The command line: what operators and engineers run, with the real binary.

use std::path::Path;

use pointsman::policy::DEFAULT_DOCUMENT;
use serde_json::{Value, json};

use super::support::{Service, ask, command, root, run};

pub(super) fn json_of(arguments: &[&str]) -> Value {
    let (code, out, err) = run(arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{out}"))
}

pub(super) fn write_lines(path: &Path, rows: impl IntoIterator<Item = Value>) {
    let lines: Vec<String> = rows.into_iter().map(|row| row.to_string()).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

pub(super) fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn policy_show_round_trips_through_policy_validate() {
    let (code, shown, _) = run(&["policy", "show", "--default"]);
    assert_eq!((code, shown.trim_end()), (0, DEFAULT_DOCUMENT.trim_end()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, &shown).unwrap();
    let (code, out, _) = run(&["policy", "validate", text_of(&path)]);
    assert_eq!((code, out.trim_end()), (0, "0 errors, 0 warnings"));

    std::fs::write(&path, shown.replace("gpt-5-nano, mistral-small]", "gpt-5-pico, mistral-small]")).unwrap();
    let (code, out, _) = run(&["policy", "validate", text_of(&path)]);
    let line = shown.lines().position(|line| line.starts_with("  small: ")).unwrap() + 1;
    assert_eq!(code, 1);
    assert!(out.contains(&format!("policy.yaml:{line}")) && out.contains("gpt-5-pico"), "{out}");
    assert!(out.contains("\n1 error, "), "{out}");

    let (code, _, err) = run(&["policy", "validate", "/nowhere.yaml"]);
    assert!(code == 1 && err.contains("/nowhere.yaml"), "{err}");
}

#[tokio::test]
async fn route_gives_the_decision_that_the_service_gives() {
    let text = "Write a function that merges two sorted lists";
    let local = json_of(&["route", "--json", text]);
    let mut router = Service::shared().router().await;
    let served = router.route(ask(text)).await.unwrap().into_inner().decision.unwrap();
    let (selected, complexity) = (served.selected.unwrap(), served.complexity.unwrap());
    assert_eq!(local["selected"]["model"], selected.model.as_str());
    assert_eq!(local["intent"]["label"], served.intent.unwrap().label.as_str());
    assert_eq!(local["complexity"]["tier"], complexity.tier.as_str());
    assert_eq!(local["policy"]["sha256"], served.policy.unwrap().sha256.as_str());
    let difference = local["complexity"]["difficulty"].as_f64().unwrap() - complexity.difficulty;
    assert!(difference.abs() < 1e-4, "{difference}");
    for field in ["decision_id", "fallbacks", "escalation", "confidence", "source", "reasons", "input", "timings"] {
        assert!(!local[field].is_null(), "{field} is not in {local}");
    }
}

#[test]
fn route_and_classify_are_readable_and_refuse_what_is_not_valid() {
    let (code, out, _) = run(&["route", "hello"]);
    assert_eq!(code, 0);
    for part in ["model       ", "tier        simple", "intent      chat", "decided by  rule", "RULE_MATCHED: "] {
        assert!(out.to_lowercase().contains(&part.to_lowercase()), "{part:?} is not in\n{out}");
    }
    let mistral = json_of(&["route", "--json", "--tenant", "example-eu", "--tools", "How do plants grow?"]);
    assert!(["mistral", "google"].contains(&mistral["selected"]["provider"].as_str().unwrap()), "{mistral}");
    let (code, out, _) = run(&["classify", "How do I sort a list in Rust?"]);
    assert!(code == 0 && out.starts_with("intent ") && out.contains("difficulty "), "{out}");
    let signals = json_of(&["classify", "--json", "How do I sort a list in Rust?"]);
    assert!(
        signals["classification"]["intent"].is_object() || signals["classification"]["intent"].is_array(),
        "{signals}"
    );

    for (arguments, part) in [
        (vec!["route", " "], "query"),
        (vec!["classify", ""], "query"),
        (vec!["route", "--role", "nobody", "x"], "nobody"),
        (vec!["route", "--max-cost-usd", "NaN", "x"], "max_cost_usd"),
        (vec!["route", "--max-cost-usd", "0.0000000001", "x"], "no candidate"),
        (vec!["route", "--policy", "ftp://example.org/p", "x"], "policy"),
    ] {
        let (code, out, err) = run(&arguments);
        assert_eq!(code, 64, "{arguments:?}: {err}");
        assert!(out.is_empty() && err.contains(part), "{arguments:?}: {err}");
    }
    // A service would stand in for a policy that it cannot get; whoever asks for one decision wants that policy.
    let (code, out, err) = run(&["route", "--policy", "http://127.0.0.1:9/p", "x"]);
    assert!(code == 1 && out.is_empty() && err.contains("cannot reach http://127.0.0.1:9/p"), "{err}");
}

#[test]
fn score_keeps_the_order_and_tells_what_it_cannot_score() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let mut bytes = Vec::new();
    let long = "word ".repeat(5_000);
    for line in [
        r#"{"id": "a", "text": "What is the tallest mountain?"}"#.as_bytes(),
        b"this is not JSON",
        br#"{"id": "no-text"}"#,
        b"",
        br#"{"id": "empty", "text": "  "}"#,
        b"{\"id\": \"bytes\", \"text\": \"\xff\xfe\"}",
        br#"{"id": "a", "text": "The same id again", "extra": [1, 2]}"#,
        br#"{"id": 7, "text": "a number as id"}"#,
        format!(r#"{{"id": "long", "text": "{long}"}}"#).as_bytes(),
        br#"{"id": "last", "text": "No line break after this one"}"#,
    ] {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    bytes.pop();
    std::fs::write(&input, bytes).unwrap();
    let (code, _, err) = run(&["score", "--input", text_of(&input), "--output", text_of(&output)]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("4 scored, 5 with errors"), "{err}");

    let text = std::fs::read_to_string(&output).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "line 2", "no-text", "empty", "line 6", "a", "line 8", "long", "last"]);
    for row in &rows {
        if let Some(error) = row.get("error") {
            assert!(error.as_str().is_some_and(|error| !error.is_empty()) && row.get("intent").is_none(), "{row}");
            continue;
        }
        let sum = |field: &str| row[field].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum::<f64>();
        assert!((sum("intent_probs") - 1.0).abs() < 1e-4 && (sum("tier_probs") - 1.0).abs() < 1e-4, "{row}");
        assert!(row["intent_probs"].get(row["intent"].as_str().unwrap()).is_some(), "{row}");
        assert!((0.0..=1.0).contains(&row["difficulty"].as_f64().unwrap()), "{row}");
        assert!((0.0..=1.0).contains(&row["confidence"].as_f64().unwrap()), "{row}");
        assert!(["simple", "medium", "complex"].contains(&row["tier"].as_str().unwrap()), "{row}");
        assert!(row["gain"].as_f64().is_some_and(|gain| gain > 0.0 && gain < 1.0), "{row}");
        assert_eq!(row["truncated"], row["id"] == "long", "{row}");
        assert!(row["tokens"].as_u64().is_some_and(|n| (3..=256).contains(&n)), "{row}");
    }

    let (code, _, err) = run(&["score", "--input", "/nowhere.jsonl", "--output", text_of(&output)]);
    assert!(code == 1 && err.contains("/nowhere.jsonl"), "{err}");
    let files = ["score", "--input", text_of(&input), "--output", text_of(&output)];
    let (code, _, err) = run(&[&files[..], &["--pair", "-1,1.5"]].concat());
    assert!(code == 0 && err.contains("ability 1.50 over a model of ability -1.00"), "{err}");
    let (code, _, err) = run(&[&files[..], &["--pair", "nobody,2"]].concat());
    assert!(code == 1 && err.contains("no abilit") && err.contains("nobody"), "{err}");
}

#[test]
fn eval_writes_text_json_and_a_page_that_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let kinds =
        [("code", "Write a function that", 1.0), ("math", "Compute the sum of", 0.0), ("chat", "hi there", 1.0)];
    write_lines(
        &path("rows.jsonl"),
        (0..60).map(|i| {
            let (intent, start, weak) = kinds[i % 3];
            let tier = ["simple", "medium", "complex"][i % 3];
            let outcomes = json!({"weak-model": weak, "strong-model": 1.0});
            json!({"id": format!("t/{i}"), "text": format!("{start} number {i}"), "intent": intent, "tier": tier, "outcomes": outcomes})
        }),
    );
    let (rows, scored) = (path("rows.jsonl"), path("scored.jsonl"));
    let (code, _, err) = run(&["score", "--input", text_of(&rows), "--output", text_of(&scored)]);
    assert_eq!(code, 0, "{err}");
    let (report, page, both) = (path("report.json"), path("report.html"), path("both.json"));
    let common = ["eval", "--resamples", "50", "--input", text_of(&rows)];
    let outputs = ["--json", text_of(&report), "--html", text_of(&page), "--pair", "weak-model,strong-model"];
    let (code, from_model, err) = run(&[&common[..], &outputs[..]].concat());
    assert_eq!(code, 0, "{err}");
    let (code, from_file, err) = run(&[&common[..], &["--scored", text_of(&scored)], &outputs[4..]].concat());
    assert_eq!(code, 0, "{err}");
    // Only the classifier knows its control.
    let shared = |report: &str| -> Vec<String> {
        let tables = report.split("\n\n").filter(|part| !part.contains("with the classifier's control"));
        tables.map(str::to_owned).collect()
    };
    assert_eq!(
        shared(&from_model),
        shared(&from_file),
        "scoring now and reading what was scored give the same figures"
    );
    for part in ["macro-F1", "APGR", "CPT(50)", "CPT(80)", "oracle", "random"] {
        assert!(from_model.to_lowercase().contains(&part.to_lowercase()), "{part} is not in\n{from_model}");
    }
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(report["evaluation"]["counts"]["n_scored"], 60);
    assert!(report["evaluation"]["routing"]["router"]["apgr"]["value"].is_number(), "{report}");
    assert_eq!(report["provenance"]["inputs"][0]["sha256"].as_str().unwrap().len(), 64);
    assert!(report["evaluation"]["comparison"].is_null() && !from_file.contains("Comparison"), "{report}");
    let (code, compared, err) =
        run(&[&common[..], &["--compare", text_of(&scored), "--json", text_of(&both)]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(compared.contains("not told apart") && compared.contains("intent macro-F1"), "{compared}");
    let both: Value = serde_json::from_str(&std::fs::read_to_string(&both).unwrap()).unwrap();
    let figures = both["evaluation"]["comparison"]["figures"].as_array().unwrap();
    assert!(figures.len() == 6 && figures.iter().all(|figure| figure["difference"]["high"] == 0.0), "{figures:?}");
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("<svg") && page.contains("</html>"));
    for reference in ["src=", "href=\"http", "url(http", "@import", "<script"] {
        assert!(!page.contains(reference), "the page has {reference}");
    }
}

#[test]
fn ability_fit_prints_what_a_policy_takes() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("graded.jsonl");
    let texts = ["What is 2 + 2?", "Prove that there are infinitely many primes", "Say hello", "Name a colour"];
    write_lines(
        &rows,
        (0..40).map(|i| json!({"id": i.to_string(), "text": texts[i % 4], "score": u8::from(i % 4 != 1)})),
    );
    let fit = ["ability", "fit", "--outcomes", text_of(&rows)];
    let (code, out, err) = run(&[&fit[..], &["--name", "new-model"]].concat());
    assert_eq!(code, 0, "{err}");
    let pasted = out.lines().find_map(|line| line.strip_prefix("ability: ")).unwrap();
    let ability: f64 = pasted.split("  # ").next().unwrap().parse().unwrap();
    assert!(pasted.contains("40 answers, classifier default"), "{pasted}");
    let report = json_of(&[&fit[..], &["--name", "new-model", "--json"]].concat());
    let fitted = &report["models"][0];
    assert!((fitted["ability"].as_f64().unwrap() - ability).abs() < 0.006, "{report}");
    assert_eq!((&fitted["answers"], &fitted["mean_score"]), (&json!(40), &json!(0.75)));
    let (code, _, err) = run(&fit);
    assert!(code == 1 && err.contains("--name"), "{err}");
}

#[test]
fn robustness_measures_a_model_and_holds_it_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let texts = ["Write a poem about the sea, please.", "What is 7 times 8?", "hello there"];
    write_lines(&rows, texts.iter().enumerate().map(|(i, text)| json!({"id": format!("t/{i}"), "text": text})));
    let report = json_of(&["robustness", "--json", "--input", text_of(&rows), "--against", "default"]);
    assert_eq!(report["gate"]["passes"], true, "no model is less steady than itself: {report}");
    assert_eq!(report["models"][0]["robustness"], report["models"][1]["robustness"]);
    assert_eq!(report["models"][0]["robustness"]["kinds"][0]["kind"], "lower");
    let (code, out, err) = run(&["robustness", "--input", text_of(&rows)]);
    assert!(code == 0 && out.contains("punctuation") && !out.contains("gate"), "{err}{out}");
}

#[test]
fn import_writes_an_encoder_that_loads() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("copy");
    let arguments = ["--license", "Apache-2.0", "--source", "a test", "--out", text_of(&out)];
    let (code, shown, err) = run(&[&["import", "--from", "models/all-MiniLM-L6-v2"], &arguments[..]].concat());
    assert_eq!(code, 0, "{err}");
    // f16 to f16: not a bit changes.
    let weights = std::fs::read(root().join("models/all-MiniLM-L6-v2/model.safetensors")).unwrap();
    let same = format!("{} {:>11} bytes  model.safetensors", pointsman::artifact::sha256_hex(&weights), weights.len());
    assert!(shown.contains(&same) && shown.contains("config.json"), "{shown}");
    let device = candle_core::Device::Cpu;
    let copy = pointsman::classifier::load_encoder(text_of(&out), &[], 256, &device).unwrap();
    assert_eq!((copy.name(), copy.hidden_size()), ("copy", 384));
    let (code, _, err) = run(&[&["import", "--from", "/nowhere"], &arguments[..]].concat());
    assert!(code == 1 && err.contains("/nowhere/model.safetensors"), "{err}");
}

#[test]
fn a_closed_pipe_and_a_wrong_flag_are_no_crashes() {
    use std::process::Stdio;
    let mut child =
        command(&["policy", "show", "--default"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let (code, _, err) = run(&["serve", "--lisen", "x"]);
    assert!(code == 2 && err.contains("--lisen"), "{code}: {err}");
    let (code, out, _) = run(&["--version"]);
    assert_eq!((code, out.trim_end()), (0, concat!("pointsman ", env!("CARGO_PKG_VERSION"))));
}
