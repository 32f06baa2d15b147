//! Inputs made to hurt: each has an answer or a refusal in bounded time, and its neighbours notice nothing.

use pointsman::config::RawConfig;
use pointsman::domain::Content;
use pointsman::rpc::proto::{self, route_result};
use pointsman::text;
use prost::Message as _;
use tonic::Code;

use super::super::support::{Service, ask};
use super::raw::{ROUTE, RawClient};

/// The longest text that the contract allows.
const MOST: usize = 262_144;

fn filled(unit: &str) -> String {
    unit.repeat(MOST / unit.len())
}

/// Names and texts; all within the limits of the contract.
fn texts() -> Vec<(&'static str, String)> {
    vec![
        ("one character", "x".into()),
        ("511 words", "tree ".repeat(511)),
        ("512 words", "tree ".repeat(512)),
        ("513 words", "tree ".repeat(513)),
        ("64 KiB", "lorem ipsum ".repeat(64 * 1024 / 12)),
        ("one letter, 256 KiB", filled("a")),
        ("carets, 256 KiB", filled("^")),
        ("one word of capitals", filled("ABCDEFGH")),
        ("a combining mark, again and again", filled("\u{301}")),
        ("a letter with many marks", format!("z{}", "\u{300}\u{301}\u{302}".repeat(40_000))),
        ("zalgo", filled("z\u{335}\u{321}\u{34d}\u{30a}a\u{337}\u{31d}")),
        ("joined emoji", filled("\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{200d}")),
        ("joiners alone", format!("x{}", "\u{200d}".repeat(80_000))),
        ("NUL bytes", format!("What{}is it?", "\0".repeat(100_000))),
        ("right to left with overrides", filled("\u{202e}\u{5d0}\u{2066}abc\u{2069}\u{202c} ")),
        ("Thai without spaces", filled("สวัสดีชาวโลก")),
        ("Chinese without spaces", filled("天地玄黄宇宙洪荒")),
        ("Hangul parts", filled("\u{1112}\u{1161}\u{11ab}")),
        ("the letter that grows most", filled("\u{fdfa}")),
        ("spaces around a word", format!("{}word{}", " ".repeat(130_000), "\t".repeat(130_000))),
        ("new lines", format!("{}x", "\n".repeat(200_000))),
        ("open brackets", filled("[{(")),
        ("unclosed blocks of a harness", filled("<system-reminder>")),
        ("closed blocks of a harness", filled("<system-reminder>x</system-reminder>")),
        ("code fences", filled("```\n")),
        ("an address without end", format!("https://{}", "a.".repeat(120_000))),
        ("numbers", filled("1234567890")),
        ("word pieces' own marks", filled("##a [CLS] [SEP] [MASK] ")),
        ("private use and unassigned", filled("\u{e000}\u{10ffff}\u{378}")),
        ("courtesy without end", filled("please ")),
        ("typing errors without end", filled("teh recieve wierd adress ")),
        ("quotes", filled("\"'\u{201c}\u{2019}")),
        ("a table", filled("| a | b |\n")),
        ("options", filled("A) x\nB) y\n")),
    ]
}

/// Processor time of the calling thread so far, where the system tells.
fn cpu_ms() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split(' ').next()?.parse::<f64>().ok().map(|nanos| nanos / 1e6)
}

#[test]
fn any_text_is_read_in_bounded_processor_time() {
    let classifier = classifier();
    let mut worst = (0.0, "");
    for (name, text) in texts() {
        let content = Content::Text(text);
        let read = || {
            let before = cpu_ms();
            let prepared = text::prepare(&content);
            let input = classifier.tokenize(&prepared).unwrap();
            assert!(input.n_tokens() <= classifier.encoder().tokenizer().max_tokens(), "{name}");
            Some(cpu_ms()? - before?)
        };
        let Some(ms) = [read(), read()].into_iter().flatten().reduce(f64::min) else { return };
        worst = if ms > worst.0 { (ms, name) } else { worst };
        // 20 ms in a release build; this one is not optimised much.
        assert!(ms < 80.0, "{name}: {ms:.1} ms to clean and tokenise");
    }
    println!("dearest to clean and tokenise: {} with {:.1} ms", worst.1, worst.0);
}

fn classifier() -> pointsman::classifier::Classifier {
    pointsman::classifier::Classifier::load(&pointsman::classifier::LoadOptions {
        name: "default".into(),
        roots: vec![super::super::support::root().join("models")],
        max_tokens: None,
        device: pointsman::encoder::open_device("cpu").unwrap(),
        precision: pointsman::encoder::Precision::Auto,
        isa: None,
        threads: 1,
    })
    .unwrap()
}

fn plain() -> Vec<proto::RouteRequest> {
    let texts = ["Why is the sea salt?", "Sort this list by its second column.", "Prove that 2 has no rational root."];
    texts.map(ask).to_vec()
}

async fn batch(service: &Service, requests: Vec<proto::RouteRequest>) -> Vec<proto::RouteResult> {
    let mut router = service.router().await;
    router.route_batch(proto::RouteBatchRequest { requests }).await.unwrap().into_inner().results
}

/// What the classifier said, to the last bit.
fn said(result: &proto::RouteResult) -> (Vec<f64>, f64) {
    let Some(route_result::Result::Decision(decision)) = &result.result else { panic!("{result:?}") };
    let probabilities = decision.intent.as_ref().unwrap().probabilities.iter().map(|p| p.probability).collect();
    (probabilities, decision.complexity.as_ref().unwrap().difficulty)
}

#[tokio::test]
async fn every_text_has_an_answer_and_neighbours_are_not_touched() {
    let service = Service::start(RawConfig { decision_cache_entries: Some(0), ..RawConfig::default() });
    let alone: Vec<_> = batch(&service, plain()).await.iter().map(said).collect();
    for (name, text) in texts() {
        let started = std::time::Instant::now();
        let mut requests = vec![ask(text)];
        requests.extend(plain());
        let results = batch(&service, requests).await;
        let took = started.elapsed();
        assert!(took.as_secs() < 5, "{name}: {took:?}");
        let beside: Vec<_> = results.iter().skip(1).map(said).collect();
        assert_eq!(beside, alone, "{name} changes what is said of others");
        match &results[0].result {
            Some(route_result::Result::Decision(decision)) => {
                assert!(decision.selected.is_some(), "{name}");
                let confidence = decision.confidence.as_ref().unwrap().value;
                assert!((0.0..=1.0).contains(&confidence), "{name}: {confidence}");
            }
            // Nothing but characters that carry nothing.
            Some(route_result::Result::Error(error)) => {
                assert_eq!(error.code, i32::from(Code::InvalidArgument), "{name}: {error:?}");
            }
            None => panic!("{name}: no result"),
        }
    }
    assert_eq!(service.metric("pointsman_panics_total"), Some(0.0));
    assert_eq!(service.metric("pointsman_batch_failures_total"), Some(0.0));
}

#[tokio::test]
async fn composed_and_decomposed_characters_are_one() {
    let service = Service::start(RawConfig { decision_cache_entries: Some(0), ..RawConfig::default() });
    let (composed, apart) = (
        "Où se trouve le café à côté du château ?",
        "Ou\u{300} se trouve le cafe\u{301} a\u{300} co\u{302}te\u{301} du cha\u{302}teau ?",
    );
    let results = batch(&service, vec![ask(composed), ask(apart)]).await;
    assert_eq!(said(&results[0]), said(&results[1]));
}

#[tokio::test]
async fn messages_that_no_library_makes_are_refused_or_answered() {
    let service = Service::shared();
    let valid = ask("What is basalt made of?").encode_to_vec();
    let unknown: Vec<u8> = (0..10_000_u32).flat_map(|i| [0xfa, 0x3f, 1, i as u8]).collect();
    let nested = (0..101).fold(Vec::new(), |inner: Vec<u8>, _| {
        // Field 2000, length-delimited, in itself.
        let mut outer = vec![0x82, 0x7d];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        outer
    });
    let groups = [[0x83, 0x7d].repeat(101), [0x84, 0x7d].repeat(101)].concat();
    let cases: [(&str, Vec<u8>, Code); 8] = [
        ("10,000 unknown fields", [valid.clone(), unknown].concat(), Code::Ok),
        ("unknown messages, 101 deep", [valid.clone(), nested].concat(), Code::Ok),
        ("unknown groups, 101 deep", [valid.clone(), groups].concat(), Code::InvalidArgument),
        ("the query twice, the last wins", [valid.clone(), valid.clone()].concat(), Code::Ok),
        ("an overlong encoding", b"\x0a\x02\xc0\xaf".to_vec(), Code::InvalidArgument),
        ("a surrogate pair as WTF-8", b"\x0a\x06\xed\xa0\xbd\xed\xb8\x80".to_vec(), Code::InvalidArgument),
        ("a byte order mark", b"\x0a\x07\xef\xbb\xbfWhat".to_vec(), Code::Ok),
        ("an enum of a later version", [valid.clone(), vec![0x40, 99]].concat(), Code::InvalidArgument),
    ];
    let client = RawClient::connect(service.grpc).await;
    for (name, body, code) in cases {
        let answer = client.call(ROUTE, &[], &body).await.unwrap();
        assert_eq!(answer.code, code, "{name}: {answer:?}");
    }
    // Headers twice: the first counts, nothing breaks.
    let answer = client.call(ROUTE, &[("grpc-timeout", "9S"), ("grpc-timeout", "0m")], &valid).await.unwrap();
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    for (name, headers) in
        [("another encoding", [("grpc-encoding", "gzip")]), ("an unknown encoding", [("grpc-encoding", "\u{1F4A9}")])]
    {
        let answer = client.call(ROUTE, &headers, &valid).await.unwrap();
        assert!(answer.code == Code::Unimplemented || answer.code == Code::Ok, "{name}: {answer:?}");
    }
}
