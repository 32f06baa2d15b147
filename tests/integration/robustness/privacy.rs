//! Canaries: secrets and texts that must be found nowhere, whatever goes wrong.

use std::path::Path;

use pointsman::rpc::proto;
use prost::Message as _;

use super::super::support::{Process, SMALL_POLICY, ask, channel, get, run};
use super::raw::{ROUTE, RawClient};

const TOKEN: &str = "canary-token-0123456789";
const WRONG: &str = "canary-wrong-0123456789";
const SECRET: &str = "canary-secret-of-the-source";
const TEXT: &str = "canary text about a hedgehog";

fn find(place: &str, haystack: &str) {
    for canary in [TOKEN, WRONG, SECRET, "hedgehog"] {
        let line = haystack.lines().find(|line| line.contains(canary));
        assert!(line.is_none(), "{place} has {canary:?}: {line:?}");
    }
}

fn write(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn no_secret_and_no_text_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let access =
        "[[caller]]\nname = 'shop'\ntoken_files = ['token']\nrights = ['route', 'policy_read', 'policy_write']";
    write(dir.path(), "token", TOKEN);
    let secret = write(dir.path(), "secret", &format!("Bearer {SECRET}"));
    let access = write(dir.path(), "access.toml", access);
    // A source that is away, so that it is asked again and again.
    let process = Process::serve(&[
        "--access-file",
        &access,
        "--policy",
        "http://127.0.0.1:9/policy",
        "--policy-auth-file",
        &secret,
        "--policy-poll-interval",
        "100ms",
        "--log-filter",
        "debug",
        "--log-format",
        "json",
    ]);
    let client = RawClient::connect(process.grpc).await;
    let mut told = Vec::new();
    let right = format!("Bearer {TOKEN}");
    let wrong = format!("Bearer {WRONG}");
    let long = TEXT.repeat(20_000);
    let named = |field: &str| {
        let mut request = ask(TEXT);
        match field {
            "session" => request.session_id = TEXT.repeat(20),
            "metadata" => drop(request.metadata.insert(TEXT.repeat(5), TEXT.into())),
            "value" => drop(request.metadata.insert("k".into(), TEXT.repeat(50))),
            "cost" => request.requirements = Some(proto::Requirements { max_cost_usd: f64::NAN, ..Default::default() }),
            "long" => request.query.clone_from(&long),
            "both" => request.messages = vec![proto::Message { role: 2, content: TEXT.into() }],
            "role" => request.messages = vec![proto::Message { role: 99, content: TEXT.into() }],
            "nothing left" => {
                request.requirements =
                    Some(proto::Requirements { allowed_providers: vec!["nobody".into()], ..Default::default() });
            }
            _ => {}
        }
        request.encode_to_vec()
    };
    let fields = ["", "session", "metadata", "value", "cost", "long", "both", "role", "nothing left"];
    for (field, authorization) in fields.iter().flat_map(|field| [(field, &right), (field, &wrong)]) {
        let headers = [("authorization", authorization.as_str()), ("x-canary", TEXT)];
        let answer = client.call(ROUTE, &headers, &named(field)).await.unwrap();
        told.push(format!("{:?} {:?}", answer.status, answer.message));
    }
    for (path, body) in [
        (ROUTE, [b"\x0a\x7f".as_slice(), TEXT.as_bytes()].concat()),
        (ROUTE, [b"\x0a\x1d\xff".as_slice(), TEXT.as_bytes()].concat()),
        ("/pointsman.v1.Router/Fly", TEXT.as_bytes().to_vec()),
        ("/pointsman.v1.PolicyService/ValidatePolicy", TEXT.as_bytes().to_vec()),
        (
            "/pointsman.v1.PolicyService/PublishPolicy",
            proto::PublishPolicyRequest { document: SMALL_POLICY.into(), ..Default::default() }.encode_to_vec(),
        ),
    ] {
        let answer = client.call(path, &[("authorization", &right)], &body).await.unwrap();
        told.push(format!("{:?}", answer.status));
    }
    let mut expired =
        client.call(ROUTE, &[("authorization", &right), ("grpc-timeout", "0m")], &named("")).await.unwrap();
    told.push(format!("{:?}", expired.status.drain().collect::<Vec<_>>()));
    // Files that become wrong in the way that quotes most.
    write(dir.path(), "access.toml", &format!("[[caller]]\nname = 'shop'\ntoken = '{TOKEN}'\nrights = []"));
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    let log = process.log();
    let admin =
        log.lines().find_map(|line| line.strip_prefix("admin       http://")).unwrap().split('/').next().unwrap();
    for path in ["/metrics", "/version", "/readyz", "/livez"] {
        find(path, &get(admin.parse().unwrap(), path).body);
    }
    find("an answer", &told.join("\n"));
    drop(channel(process.grpc).await);
    process.signal("-TERM");
    let (_, log) = tokio::task::spawn_blocking(move || process.wait(std::time::Duration::from_secs(20))).await.unwrap();
    find("the log", &log);
    assert!(log.contains("cannot be read again"), "the access file was missed: {log}");

    let (code, out, err) = run(&[
        "serve",
        "--check-config",
        "--access-file",
        &access,
        "--policy-auth-file",
        &secret,
        "--policy",
        "http://127.0.0.1:9/policy",
    ]);
    assert_eq!(code, 0, "{err}");
    find("the shown configuration", &out);
    let (code, _, err) =
        run(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--access-file", &access]);
    assert_eq!(code, 78, "{err}");
    find("the refusal to start", &err);
}
