//! Changing the policy at its source through Pointsman: publish, roll back, turn a provider on or off.

use pointsman::config::RawConfig;
use pointsman::rpc::proto;
use pointsman::sources::SigningKey;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::control_plane_etcd::Etcd;
use super::control_plane_support::{POLICY, Plane, Traffic, await_version, status, version};
use super::support::{Service, eventually, run};

const KEY: &str = "/pointsman/test/policy";

async fn publish(service: &Service, document: &str, expected_sha256: &str) -> Result<proto::PolicyRef, tonic::Status> {
    let request = proto::PublishPolicyRequest {
        document: document.to_owned(),
        expected_sha256: expected_sha256.to_owned(),
        signature: String::new(),
    };
    service.policy().await.publish_policy(request).await.map(|answer| answer.into_inner().policy.unwrap())
}

async fn roll_back(service: &Service, version: &str) -> Result<proto::PolicyRef, tonic::Status> {
    let request = proto::RollbackPolicyRequest { version: version.to_owned() };
    service.policy().await.rollback_policy(request).await.map(|answer| answer.into_inner().policy.unwrap())
}

async fn switch(service: &Service, provider: &str, enabled: bool) -> Result<proto::PolicyRef, tonic::Status> {
    let request = proto::SetProviderEnabledRequest { provider: provider.to_owned(), enabled };
    service.policy().await.set_provider_enabled(request).await.map(|answer| answer.into_inner().policy.unwrap())
}

fn code(result: Result<proto::PolicyRef, tonic::Status>) -> Code {
    result.expect_err("it should be refused").code()
}

/// What holds for every writable source: `one` and `two` read the same document.
async fn change_and_go_back(one: &Service, two: &Service) {
    let traffic = Traffic::on(two).await;
    let first = status(one).await;
    assert!(first.writable);
    let sha256 = first.policy.unwrap().sha256;
    let second = publish(one, &version(2), &sha256).await.unwrap();
    assert_eq!(second.version, "2");
    await_version(two, "2").await;
    // Whoever believes that the first is still in force is told; so is who publishes nonsense, or reuses a version.
    let error = publish(two, &version(3), &sha256).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(&second.sha256), "{error:?}");
    let error = publish(one, &version(3).replace("chain: quick", "chain: quack"), "").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let details = error.get_error_details();
    assert!(details.bad_request().unwrap().field_violations[0].description.contains("UNKNOWN_CHAIN"), "{error:?}");
    assert_eq!(code(publish(one, &format!("{}# other\n", version(2)), "").await), Code::FailedPrecondition);
    // The same again changes nothing.
    assert_eq!(publish(one, &version(2), "").await.unwrap().source_revision, second.source_revision);

    publish(two, &version(3), &second.sha256).await.unwrap();
    await_version(one, "3").await;
    // Back a step, and another; forward to a version by its name.
    assert_eq!(roll_back(one, "").await.unwrap().version, "2");
    assert_eq!(roll_back(one, "").await.unwrap().version, "1");
    assert_eq!(code(roll_back(one, "").await), Code::FailedPrecondition);
    assert_eq!(code(roll_back(one, "17").await), Code::NotFound);
    assert_eq!(roll_back(one, "3").await.unwrap().version, "3");
    let history: Vec<String> = status(one).await.history.into_iter().map(|entry| entry.version).collect();
    assert_eq!(history, ["1", "2", "3"]);
    await_version(two, "3").await;

    // Two operators at two instances at the same time: both get what they asked for.
    let (off, also_off) = tokio::join!(switch(one, "acme", false), switch(two, "anthropic", false));
    let last = [off.unwrap().version, also_off.unwrap().version].into_iter().max().unwrap();
    assert_eq!(last, "3+2");
    for service in [one, two] {
        await_version(service, "3+2").await;
        let answer = service.policy().await.get_policy(proto::GetPolicyRequest {}).await.unwrap().into_inner();
        assert!(answer.document.contains("acme: {enabled: false}"), "{}", answer.document);
        assert!(answer.document.contains("anthropic: {enabled: false} # the switch"), "{}", answer.document);
    }
    assert_eq!(code(switch(one, "antropic", false).await), Code::NotFound);
    assert_eq!(switch(one, "acme", false).await.unwrap().version, "3+2", "it is off already");
    assert_eq!(code(switch(one, "", false).await), Code::InvalidArgument);
    for answered in traffic.stop().await {
        let provider_model = &answered.decision.selected.as_ref().unwrap().provider_model;
        let number = answered.version().split('+').next().unwrap();
        assert!(provider_model.ends_with(&format!("-{number}")), "{provider_model} under {}", answered.version());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_changed_in_one_step_and_can_be_gone_back_on() {
    let (one, dir, path) = Service::with_policy(&version(1), RawConfig::default());
    let settings = RawConfig { policy: Some(path.display().to_string()), ..RawConfig::default() };
    let two = Service::start(settings);
    change_and_go_back(&one, &two).await;
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["policy.yaml"], "nothing is left beside it");
    // A broken edit by hand is mended by publishing a good document.
    std::fs::write(&path, "broken").unwrap();
    eventually("a refusal", async || (!status(&one).await.last_error.is_empty()).then_some(())).await;
    assert_eq!(code(switch(&one, "zenith", false).await), Code::FailedPrecondition);
    publish(&one, &version(9), "").await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), version(9));
    assert_eq!(status(&one).await.last_error, "");
    // So is a file that is gone.
    std::fs::remove_file(&path).unwrap();
    publish(&one, &version(10), "").await.unwrap();
    await_version(&two, "10").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_etcd_is_changed_by_compare_and_swap() {
    let Some(mut etcd) = Etcd::start().await else { return };
    etcd.put(KEY, &version(1), None).await;
    let settings = || RawConfig { policy: Some(etcd.url(KEY)), ..RawConfig::default() };
    let (one, two) = (Service::start(settings()), Service::start(settings()));
    change_and_go_back(&one, &two).await;
    // Of several members one that answers is enough, from the start.
    let members = format!("etcd://127.0.0.1:9,{}{KEY}", etcd.client);
    let third = Service::start(RawConfig { policy: Some(members), ..RawConfig::default() });
    let state = status(&third).await;
    assert_eq!((state.origin(), state.fetch_failures), (proto::PolicyOrigin::Source, 0));
    // While etcd is away nothing is changed, and that is said; afterwards it works again.
    etcd.kill();
    assert_eq!(code(publish(&one, &version(20), "").await), Code::Unavailable);
    assert_eq!(code(switch(&one, "acme", true).await), Code::Unavailable);
    etcd.restart().await;
    let published = async || publish(&one, &version(20), "").await.ok();
    eventually("etcd is used again", published).await;
    await_version(&two, "20").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_changed_says_where_to_change_it() {
    let plane = Plane::start(POLICY).await;
    let http = Service::start(RawConfig { policy: Some(plane.url()), ..RawConfig::default() });
    for service in [Service::shared(), &http] {
        assert!(!status(service).await.writable);
        for refused in [
            publish(service, POLICY, "").await,
            roll_back(service, "").await,
            switch(service, "anthropic", false).await,
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition);
            assert!(error.message().contains("change it where it comes from"), "{error:?}");
        }
    }
    // Where anybody can connect, nobody may change anything unless the operator says so.
    let settings = RawConfig { policy_changes: Some(false), ..RawConfig::default() };
    let (service, _dir, _path) = Service::with_policy(POLICY, settings);
    assert!(!status(&service).await.writable);
    assert_eq!(code(publish(&service, &version(2), "").await), Code::PermissionDenied);
    assert_eq!(code(roll_back(&service, "").await), Code::PermissionDenied);
    assert_eq!(code(switch(&service, "acme", false).await), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_and_its_signatures_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    let (path, keys) = (dir.path().join("policy.yaml"), dir.path().join("keys"));
    std::fs::write(&keys, key.public_line()).unwrap();
    std::fs::write(&path, version(1)).unwrap();
    std::fs::write(dir.path().join("policy.yaml.sig"), key.sign(version(1).as_bytes())).unwrap();
    let settings = || RawConfig {
        policy: Some(path.display().to_string()),
        policy_keys_file: Some(keys.clone()),
        policy_copies_dir: Some(dir.path().join("copies")),
        policy_history: Some(3),
        ..RawConfig::default()
    };
    let service = Service::start(settings());
    for number in 2..=5 {
        let document = version(number);
        assert_eq!(code(publish(&service, &document, "").await), Code::PermissionDenied, "unsigned");
        let signature = key.sign(document.as_bytes());
        let request = proto::PublishPolicyRequest { document, expected_sha256: String::new(), signature };
        service.policy().await.publish_policy(request).await.unwrap();
    }
    let error = switch(&service, "acme", false).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("private key is not on this server"), "{error:?}");
    drop(service);

    let service = Service::start(settings());
    let versions: Vec<String> = status(&service).await.history.into_iter().map(|entry| entry.version).collect();
    assert_eq!(versions, ["3", "4", "5"]);
    let back = roll_back(&service, "").await.unwrap();
    assert_eq!((back.version.as_str(), status(&service).await.signed_by), ("4", key.id()));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), version(4));
    // The file is gone and the copy is there: even a file's service starts.
    drop(service);
    std::fs::remove_file(&path).unwrap();
    let service = Service::start(settings());
    let state = status(&service).await;
    assert_eq!((state.origin(), state.policy.unwrap().version.as_str()), (proto::PolicyOrigin::Copy, "4"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_do_it_all_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let ok = |arguments: &[&str]| {
        let (code, out, err) = run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        out
    };
    let made = ok(&["policy", "keygen", &file("key")]);
    assert!(made.contains("key.pub"), "{made}");
    assert_eq!(run(&["policy", "keygen", &file("key")]).0, 1, "a key is not overwritten");
    std::fs::write(dir.path().join("one.yaml"), version(1)).unwrap();
    ok(&["policy", "sign", &file("one.yaml"), "--key", &file("key")]);
    for suffix in ["", ".sig"] {
        std::fs::copy(file(&format!("one.yaml{suffix}")), file(&format!("live.yaml{suffix}"))).unwrap();
    }
    let service = tokio::task::spawn_blocking({
        let settings = RawConfig {
            policy: Some(file("live.yaml")),
            policy_keys_file: Some(file("key.pub").into()),
            ..RawConfig::default()
        };
        move || Service::start(settings)
    });
    let service = service.await.unwrap();
    let server = service.grpc.to_string();
    let live = file("live.yaml");
    let at_server = |arguments: &[&str]| run(&[arguments, &["--server", &server]].concat());
    let ok_at_server = |arguments: &[&str]| ok(&[arguments, &["--server", &server]].concat());

    std::fs::write(dir.path().join("two.yaml"), version(2)).unwrap();
    let (code, _, err) = at_server(&["policy", "publish", &file("two.yaml")]);
    assert!(code == 1 && err.contains("not signed"), "{err}");
    let out = ok_at_server(&["policy", "publish", &file("two.yaml"), "--sign-with", &file("key")]);
    assert!(out.contains("in force: fleet 2"), "{out}");
    let (code, _, err) = at_server(&["policy", "publish", &file("one.yaml"), "--expect", "00"]);
    assert!(code == 1 && err.contains("FailedPrecondition"), "{err}");
    // The switch, where policies must be signed: edited and signed here.
    assert_eq!(at_server(&["policy", "provider", "anthropic", "off"]).0, 1);
    let out = ok_at_server(&["policy", "provider", "anthropic", "off", "--sign-with", &file("key")]);
    assert!(out.contains("in force: fleet 2+1"), "{out}");
    assert!(std::fs::read_to_string(&live).unwrap().contains("anthropic: {enabled: false} # the switch"));
    let out = ok_at_server(&["policy", "rollback"]);
    assert!(out.contains("in force: fleet 2 "), "{out}");
    let out = ok_at_server(&["policy", "rollback", "1"]);
    assert!(out.contains("in force: fleet 1 "), "{out}");
    let out = ok_at_server(&["policy", "status"]);
    for part in
        ["policy      fleet 1", "live.yaml", "writable    yes", "history     2+1 ", "(in force)", "last error  none"]
    {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }
    let (code, _, err) = run(&["policy", "status", "--server", "127.0.0.1:9"]);
    assert!(code == 1 && err.contains("cannot reach 127.0.0.1:9"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_fail_compact_lose_its_data_and_ask_who_is_there() {
    let Some(mut etcd) = Etcd::start().await else { return };
    etcd.put(KEY, &version(1), None).await;
    let service = Service::start(RawConfig {
        policy: Some(etcd.url(KEY)),
        policy_poll_interval: Some("1s".parse().unwrap()),
        ..RawConfig::default()
    });
    let traffic = Traffic::on(&service).await;
    let failing = async |part: &str| {
        let told = async || status(&service).await.last_error.contains(part).then_some(());
        eventually(part, told).await;
    };
    etcd.kill();
    failing("cannot reach").await;
    etcd.restart().await;
    etcd.put(KEY, &version(2), None).await;
    await_version(&service, "2").await;
    // All data lost: the last good policy stays, whatever the revisions of the new cluster are.
    etcd.restart_empty().await;
    failing("has no document").await;
    assert_eq!(status(&service).await.policy.unwrap().version, "2");
    etcd.put(KEY, &version(3), None).await;
    await_version(&service, "3").await;

    // A watch that starts before what etcd still knows ends, and the next read has what is there.
    {
        use pointsman::sources::{Fetched, PolicySource as _};

        let behind = etcd.source(KEY);
        let Ok(Fetched::Document { revision, .. }) = behind.fetch(None).await else { panic!("it is there") };
        for number in 4..8 {
            etcd.put(KEY, &version(number), None).await;
        }
        let now: i64 = {
            let Ok(Fetched::Document { revision, .. }) = etcd.source(KEY).fetch(None).await else {
                panic!("it is there")
            };
            revision.split('.').next().unwrap().parse().unwrap()
        };
        etcd.call("/v3/kv/compaction", &format!("{{\"revision\": \"{now}\", \"physical\": true}}"));
        let changed = tokio::time::timeout(std::time::Duration::from_secs(5), behind.changed());
        changed.await.expect("a compacted watch asks for a read");
        assert!(matches!(behind.fetch(Some(&revision)).await, Ok(Fetched::Document { .. })));
    }
    await_version(&service, "7").await;

    // Strangers are turned away; whoever has the password is let in, with a new token after each restart of etcd.
    etcd.call("/v3/auth/user/add", r#"{"name": "root", "password": "canary-pw"}"#);
    etcd.call("/v3/auth/role/add", r#"{"name": "root"}"#);
    etcd.call("/v3/auth/user/grant", r#"{"user": "root", "role": "root"}"#);
    etcd.call("/v3/auth/enable", "{}");
    failing("user name is empty").await;
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "root:canary-pw\n").unwrap();
    let known = Service::start(RawConfig {
        policy: Some(etcd.url(KEY)),
        policy_auth_file: Some(secret),
        policy_poll_interval: Some("1s".parse().unwrap()),
        ..RawConfig::default()
    });
    assert_eq!(status(&known).await.origin(), proto::PolicyOrigin::Source);
    publish(&known, &version(8), "").await.unwrap();
    etcd.restart().await;
    let published = async || publish(&known, &version(9), "").await.ok();
    eventually("a new token", published).await;
    let state = status(&known).await;
    assert_eq!(state.policy.as_ref().unwrap().version, "9");
    assert!(!format!("{state:?}").contains("canary"));
    let answers = traffic.stop().await;
    assert!(answers.iter().all(|answered| ["1", "2", "3", "4", "5", "6", "7"].contains(&answered.version())));
}

/// Two files cannot be replaced in one step; readers must not see a document without a signature that fits it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_and_its_signature_change_together_for_every_reader() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    let (path, keys) = (dir.path().join("policy.yaml"), dir.path().join("keys"));
    std::fs::write(&keys, key.public_line()).unwrap();
    std::fs::write(&path, version(1)).unwrap();
    std::fs::write(dir.path().join("policy.yaml.sig"), key.sign(version(1).as_bytes())).unwrap();
    let settings = || RawConfig {
        policy: Some(path.display().to_string()),
        policy_keys_file: Some(keys.clone()),
        policy_poll_interval: Some("1ms".parse().unwrap()),
        ..RawConfig::default()
    };
    let (writer, reader) = (Service::start(settings()), Service::start(settings()));
    for number in 2..30 {
        let document = version(number);
        let signature = key.sign(document.as_bytes());
        let request = proto::PublishPolicyRequest { document, expected_sha256: String::new(), signature };
        writer.policy().await.publish_policy(request).await.unwrap();
    }
    let state = await_version(&reader, "29").await;
    assert_eq!(state.rejections_by_reason.get("BAD_SIGNATURE"), None, "{state:?}");
}
