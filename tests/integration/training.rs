//! `train`: from rows to a model that every command loads, and what happens when it is cut off or misled.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pointsman::rpc::proto;
use serde_json::{Value, json};

use super::commands::{json_of, text_of, write_lines};
use super::support::{Process, SMALL_POLICY, channel, command, run};

/// Sixty rows, three labels that the default model has never heard of.
fn tiny_rows() -> impl Iterator<Item = Value> {
    let kinds = [
        ("refund", ["I want my money back for order", "Please refund me for", "Can I return and get the money for"]),
        ("delivery", ["Where is my parcel number", "When does the courier bring", "Track the shipment of order"]),
        ("invoice", ["Send me the invoice for", "I need a receipt for purchase", "The bill is wrong for"]),
    ];
    (0..60).map(move |i| {
        let (label, starts) = &kinds[i % 3];
        json!({"id": format!("shop/{i}"), "text": format!("{} {}", starts[i / 3 % 3], 1_000 + i * 7), "task": label})
    })
}

#[tokio::test]
async fn train_writes_a_model_that_every_command_loads() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_lines(&path("rows.jsonl"), tiny_rows());
    std::fs::write(path("recipe.toml"), "label_field = \"task\"\n[intent]\nhidden = 0\nepochs = 30\n").unwrap();
    let (rows, recipe, model) = (path("rows.jsonl"), path("recipe.toml"), path("shop"));
    let train = ["train", "--data", text_of(&rows), "--recipe", text_of(&recipe), "--out", text_of(&model)];
    let (code, out, err) = run(&train);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("intent macro-F1"), "{out}");
    let first = std::fs::read(model.join("heads.safetensors")).unwrap();
    let (code, _, err) = run(&train);
    assert_eq!(code, 0, "{err}");
    assert_eq!(first, std::fs::read(model.join("heads.safetensors")).unwrap(), "the same seed gives the same weights");

    let signals = json_of(&["classify", "--json", "--model", text_of(&model), "My money back, please, for order 99"]);
    assert!(signals.to_string().contains("refund"), "{signals}");
    let decision = json_of(&["route", "--json", "--model", text_of(&model), "Where does my parcel hide?"]);
    assert_eq!(decision["classifier"]["name"], "shop");

    // The default policy has routes for every intent; a policy of one's own may name the new ones.
    let process = Process::serve(&["--model", text_of(&model)]);
    let mut info = proto::info_client::InfoClient::new(channel(process.grpc).await);
    let info = info.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.intent_labels, ["delivery", "invoice", "refund"]);
    let policy = path("policy.yaml");
    let own = SMALL_POLICY.replace("routes:", "routes:\n  - {intent: refund, tier: \"*\", chain: strong}");
    std::fs::write(&policy, &own).unwrap();
    let text = "I want my money back for order 4711";
    let refund = json_of(&["route", "--json", "--model", text_of(&model), "--policy", text_of(&policy), text]);
    assert_eq!(
        (&refund["intent"]["label"], &refund["selected"]["model"]),
        (&json!("refund"), &json!("big")),
        "{refund}"
    );

    std::fs::write(&policy, own.replace("intent: refund", "intent: refnud")).unwrap();
    let (code, _, err) = run(&["route", "--model", text_of(&model), "--policy", text_of(&policy), text]);
    assert!(code == 78 && err.contains("refnud") && err.contains("refund"), "{code}: {err}");
}

/// Difficulty and complexity are learnt from different things; where there is one of them only, it has to do for both.
#[test]
fn answers_and_tiers_teach_together_and_alone() {
    const EASY: &str = "Say hello to Anna";
    const HARD: &str = "Prove the theorem of Anna from the axioms and derive every lemma";
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let recipe = "label_field = \"task\"\n[intent]\nhidden = 0\nepochs = 5\n[difficulty]\nmembers = 2\n\
                  [complexity]\nhidden = 8\nmembers = 3\n";
    std::fs::write(path("recipe.toml"), recipe).unwrap();
    let texts = [EASY, HARD].map(|text| json!({"id": text, "text": text}));
    write_lines(&path("texts.jsonl"), texts);
    for taught in [&["tier"][..], &["outcomes"], &["tier", "outcomes"]] {
        let rows = (0..120).map(|i| {
            let hard = i % 2 == 1;
            let text = if hard { HARD } else { EASY }.replace("Anna", &format!("Anna the {i}th"));
            let label = if i % 4 < 2 { "a" } else { "b" };
            let mut row = json!({"id": format!("s/{i}"), "text": text, "task": label});
            for what in taught {
                row[*what] = match *what {
                    "tier" => json!(if hard { "complex" } else { "simple" }),
                    _ => json!({"little": f64::from(u8::from(!hard)), "big": 1.0}),
                };
            }
            row
        });
        write_lines(&path("rows.jsonl"), rows);
        let (rows, recipe, model) = (path("rows.jsonl"), path("recipe.toml"), path(&taught.join("-")));
        let train = ["train", "--data", text_of(&rows), "--recipe", text_of(&recipe), "--out", text_of(&model)];
        let (code, _, err) = run(&train);
        assert_eq!(code, 0, "{taught:?}: {err}");
        let (input, output) = (path("texts.jsonl"), path("scores.jsonl"));
        let score = ["score", "--input", text_of(&input), "--output", text_of(&output), "--model", text_of(&model)];
        let (code, _, err) = run(&score);
        assert_eq!(code, 0, "{taught:?}: {err}");
        let scores = std::fs::read_to_string(&output).unwrap();
        let scores: Vec<Value> = scores.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |row: usize| {
            let number = |value: &Value| value.as_f64().unwrap();
            (number(&scores[row]["difficulty"]), number(&scores[row]["tier_probs"]["complex"]))
        };
        let (easy, hard) = (of(0), of(1));
        assert!(easy.0 + 0.1 < hard.0 && easy.1 < hard.1, "{taught:?}: {easy:?}, {hard:?}");
    }
}

#[test]
fn training_data_that_teaches_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, model) = (dir.path().join("rows.jsonl"), dir.path().join("m"));
    write_lines(&rows, (0..20).map(|i| json!({"id": format!("s/{i}"), "text": format!("text {i}"), "intent": "one"})));
    let (code, _, err) = run(&["train", "--data", text_of(&rows), "--out", text_of(&model)]);
    assert!(code == 1 && err.contains("at least 2"), "{code}: {err}");
    std::fs::write(&rows, "{\"id\": \"s/1\"}\n").unwrap();
    let (code, _, err) = run(&["train", "--data", text_of(&rows), "--out", text_of(&model)]);
    assert!(code == 1 && err.contains("rows.jsonl:1"), "{code}: {err}");
    assert!(!model.exists(), "nothing is written");
}

/// A folder with rows and a recipe that trains adapters in three passes.
struct Tuning {
    dir: tempfile::TempDir,
}

impl Tuning {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_lines(&dir.path().join("rows.jsonl"), tiny_rows());
        let recipe = "label_field = \"task\"\ncopy_kinds = [\"typo\"]\n[sources.shop]\ncopies = 1\n[encoder]\n\
                      tune = \"lora:2\"\nepochs = 3\nbatch = 16\n[intent]\nhidden = 0\nepochs = 2\n";
        std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The arguments of a run that writes to `out`, with its checkpoint and log beside it.
    fn arguments(&self, out: &str) -> Vec<String> {
        let path = |name: &str| text_of(&self.path(name)).to_owned();
        ["train", "--threads", "2", "--data", &path("rows.jsonl"), "--recipe", &path("recipe.toml")]
            .into_iter()
            .map(str::to_owned)
            .chain(["--out".into(), path(out), "--checkpoint".into(), path(&format!("{out}.state"))])
            .chain(["--log".into(), path(&format!("{out}.log"))])
            .collect()
    }

    fn train(&self, out: &str) -> (i32, String) {
        let arguments = self.arguments(out);
        let (code, _, err) = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        (code, err)
    }

    fn passes(&self, out: &str) -> Vec<u64> {
        let log = std::fs::read_to_string(self.path(&format!("{out}.log"))).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["epoch"].as_u64().unwrap();
        log.lines().map(line).collect()
    }
}

#[test]
fn a_tuning_run_that_is_killed_goes_on_where_it_was() {
    let tuning = Tuning::new();
    let (code, err) = tuning.train("whole");
    assert_eq!(code, 0, "{err}");
    assert_eq!(tuning.passes("whole"), [1, 2, 3]);

    let state = tuning.path("cut.state").join("checkpoint.safetensors");
    let arguments = tuning.arguments("cut");
    let mut process = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap();
    let started = Instant::now();
    while !state.exists() && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    let (code, err) = tuning.train("cut");
    assert_eq!(code, 0, "{err}");
    assert_eq!(tuning.passes("cut").last(), Some(&3));
    let changes = |out: &str| std::fs::read(tuning.path(out).join("encoder-changes.safetensors")).unwrap();
    assert!(changes("whole") == changes("cut"), "the run that was cut off learned something else");

    // The model serves with the changes merged, and heads can be fitted anew on it without training it again.
    let signals = json_of(&["classify", "--json", "--model", text_of(&tuning.path("cut")), "My money back, please"]);
    assert!(signals.to_string().contains("refund"), "{signals}");
    let again = tuning.path("again");
    let mut arguments = vec!["train", "--tuned-as"];
    let (model, rows, recipe) = (tuning.path("cut"), tuning.path("rows.jsonl"), tuning.path("recipe.toml"));
    arguments.extend([text_of(&model), "--data", text_of(&rows), "--recipe", text_of(&recipe)]);
    arguments.extend(["--out", text_of(&again)]);
    let (code, _, err) = run(&arguments);
    assert_eq!(code, 0, "{err}");
    assert!(changes("again") == changes("cut"));
}

#[test]
fn a_checkpoint_that_is_damaged_or_of_another_run_is_refused() {
    let tuning = Tuning::new();
    let (code, err) = tuning.train("m");
    assert_eq!(code, 0, "{err}");
    let state = tuning.path("m.state").join("checkpoint.safetensors");
    let whole = std::fs::read(&state).unwrap();
    std::fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    let (code, err) = tuning.train("m");
    assert!(code == 1 && err.contains("checkpoint.safetensors") && err.contains("remove it"), "{code}: {err}");

    std::fs::write(&state, &whole).unwrap();
    let recipe = std::fs::read_to_string(tuning.path("recipe.toml")).unwrap();
    std::fs::write(tuning.path("recipe.toml"), recipe.replace("batch = 16", "batch = 8")).unwrap();
    let (code, err) = tuning.train("m");
    assert!(code == 1 && err.contains("another recipe"), "{code}: {err}");
}
