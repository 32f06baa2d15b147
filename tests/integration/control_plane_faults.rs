//! Every way in which a control plane can fail, with traffic on: no request may notice.

use std::time::{Duration, Instant};

use pointsman::config::{RawConfig, WhenStale};
use pointsman::rpc::proto::{self, PolicyOrigin};
use pointsman::sources::SigningKey;
use tonic::Code;

use super::control_plane_support::{Mode, Plane, Traffic, await_version, status, version};
use super::support::{Service, ask, eventually, get};

/// Time in which a change has to be in force; looks have six tenths of it.
const TTL: &str = "500ms";

fn from(url: String) -> RawConfig {
    RawConfig { policy: Some(url), policy_poll_interval: Some(TTL.parse().unwrap()), ..RawConfig::default() }
}

/// Counts of one reason, from status; metrics have to say the same.
async fn count(service: &Service, family: &str, reason: &str) -> u64 {
    let status = status(service).await;
    let counts = match family {
        "rejected" => status.rejections_by_reason,
        _ => status.fetch_failures_by_reason,
    };
    counts.get(reason).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_notices_what_happens_to_an_http_source() {
    let plane = Plane::start(&version(1)).await;
    let service = Service::start(from(plane.url()));
    let traffic = Traffic::on(&service).await;
    let edited = |from: &str, to: &str| {
        let document = version(99);
        assert!(document.contains(from));
        Mode::Body(document.replace(from, to))
    };
    let json = r#"{"schema": "pointsman.policy/v1", "id": "fleet", "version": "#.to_owned();
    let rows = [
        // The source fails: what it is counted as.
        (Mode::Gone, "fetch_failed", "UNREACHABLE"),
        (Mode::Closed, "fetch_failed", "UNREACHABLE"),
        (Mode::Silent, "fetch_failed", "TIMED_OUT"),
        (Mode::Drip, "fetch_failed", "TIMED_OUT"),
        (Mode::Status(500), "fetch_failed", "REFUSED"),
        (Mode::Status(401), "fetch_failed", "REFUSED"),
        (Mode::Status(404), "fetch_failed", "REFUSED"),
        (Mode::Redirect, "fetch_failed", "REDIRECTED"),
        (Mode::Huge, "fetch_failed", "TOO_LARGE"),
        (Mode::Endless, "fetch_failed", "TOO_LARGE"),
        (Mode::Bomb, "fetch_failed", "TOO_LARGE"),
        (Mode::Half, "fetch_failed", "UNREACHABLE"),
        (Mode::Brotli, "fetch_failed", "BAD_ANSWER"),
        // The document is bad: its first error.
        (Mode::Body(String::new()), "rejected", "SYNTAX"),
        (Mode::Body("<html>503</html>".into()), "rejected", "MISSING_FIELD"),
        (Mode::Body(json), "rejected", "SYNTAX"),
        (edited("policy/v1", "policy/v2"), "rejected", "UNKNOWN_SCHEMA"),
        (edited("routes:", "rutes: []\nroutes:"), "rejected", "UNKNOWN_FIELD"),
        (edited("input_usd: 0.1", "input_usd: .nan"), "rejected", "INVALID_VALUE"),
        (edited("ability: 0.5}", "ability: 0.5, endpoints: {a: -1, b: 2}}"), "rejected", "BAD_WEIGHTS"),
        (edited("tier: complex", "tier: []"), "rejected", "INVALID_VALUE"),
        (edited("quick: [little", "quick: [liddle"), "rejected", "UNKNOWN_MODEL"),
        (edited("quick: [little, haiku, big]", "quick: []"), "rejected", "EMPTY_CHAIN"),
        (edited("id: fleet", "id: fleet\nid: fleet"), "rejected", "DUPLICATE_KEY"),
    ];
    for (mode, family, reason) in rows {
        let before = count(&service, family, reason).await;
        plane.set(mode.clone()).await;
        let counted = async || (count(&service, family, reason).await > before).then_some(());
        tokio::time::timeout(Duration::from_secs(5), eventually(reason, counted))
            .await
            .unwrap_or_else(|_| panic!("{mode:?} is not counted as {reason}"));
        let during = status(&service).await;
        assert_eq!(during.policy.unwrap().version, "1", "{mode:?}");
        assert!(!during.last_error.is_empty(), "{mode:?}");
        assert!(!during.last_error.contains("canary"), "{}", during.last_error);
        let line = format!("pointsman_policy_{family}_total{{reason=\"{reason}\"}}");
        let page = get(service.admin, "/metrics").body;
        assert!(page.contains(&line), "{mode:?}: no {line}");
        plane.set(Mode::Good).await;
        let recovered = async || status(&service).await.last_error.is_empty().then_some(());
        eventually(&format!("recovery after {mode:?}"), recovered).await;
    }
    // A refused document is refused once, however often it is looked at.
    plane.set(Mode::Body("x".into())).await;
    let refused = async || (!status(&service).await.last_error.is_empty()).then(|| plane.requests());
    let looks = eventually("a refusal", refused).await;
    let rejections = status(&service).await.rejections;
    eventually("more looks", async || (plane.requests() >= looks + 3).then_some(())).await;
    assert_eq!(status(&service).await.rejections, rejections);
    // An older version is what the operator wants, and in force like any other; so is one that comes compressed or
    // without an ETag.
    for (mode, wanted) in [(Mode::Good, 7), (Mode::Gzip, 3), (Mode::NoEtag, 5), (Mode::Good, 2)] {
        plane.publish(&version(wanted));
        plane.set(mode).await;
        await_version(&service, &wanted.to_string()).await;
    }
    let asked = plane.not_modified();
    eventually("conditional looks", async || (plane.not_modified() >= asked + 2).then_some(())).await;
    let answers = traffic.stop().await;
    assert!(answers.len() > 100, "{} answers", answers.len());
    for answered in &answers {
        assert!(["1", "7", "3", "5", "2"].contains(&answered.version()), "{}", answered.version());
        assert_eq!(answered.decision.policy.as_ref().unwrap().source, "http");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_the_control_plane_serves_the_copy_and_does_not_make_it_young() {
    let (plane, dir) = (Plane::start(&version(4)).await, tempfile::tempdir().unwrap());
    let copies = || RawConfig { policy_copies_dir: Some(dir.path().join("copies")), ..from(plane.url()) };
    drop(Service::start(copies()));
    let current = dir.path().join("copies/current.json");
    // As if it had been confirmed an hour ago and not since.
    let mut told: serde_json::Value = serde_json::from_slice(&std::fs::read(&current).unwrap()).unwrap();
    let confirmed = told["confirmed_at_unix_ms"].as_u64().unwrap();
    told["confirmed_at_unix_ms"] = (confirmed - 3_600_000).into();
    std::fs::write(&current, told.to_string()).unwrap();

    for mode in [Mode::Gone, Mode::Silent, Mode::Status(500), Mode::Body("x".into())] {
        plane.set(mode.clone()).await;
        let service = Service::start(copies());
        let traffic = Traffic::on(&service).await;
        let state = status(&service).await;
        assert_eq!(state.origin(), PolicyOrigin::Copy, "{mode:?}");
        let policy = state.policy.unwrap();
        assert_eq!((policy.version.as_str(), policy.source.as_str()), ("4", "copy"), "{mode:?}");
        assert!((3_600_000..4_000_000).contains(&policy.age_ms), "{mode:?}: {} ms", policy.age_ms);
        let metric = service.metric("pointsman_policy_age_seconds").unwrap();
        assert!((3_600.0..4_000.0).contains(&metric), "{metric}");
        for answered in traffic.stop().await {
            assert_eq!(answered.version(), "4");
            assert!(answered.decision.reasons.iter().any(|reason| reason.code == "POLICY_STAND_IN"));
        }
    }
    // A source that says nothing holds up a start by less than a second, although it has three to answer in.
    plane.set(Mode::Good).await;
    let timed = || {
        let started = Instant::now();
        drop(Service::start(RawConfig { policy_poll_interval: None, ..copies() }));
        started.elapsed()
    };
    let with_source = timed();
    plane.set(Mode::Silent).await;
    let without = timed();
    println!("a start takes {with_source:?} with the source and {without:?} with the copy");
    assert!(without < with_source + Duration::from_secs(1), "{with_source:?} and {without:?}");
    // The source comes back with the same document: it is the source's from then on, and young.
    plane.set(Mode::Silent).await;
    let service = Service::start(copies());
    let traffic = Traffic::on(&service).await;
    plane.set(Mode::Good).await;
    let confirmed = async || (status(&service).await.origin() == PolicyOrigin::Source).then_some(());
    eventually("the source confirms the copy", confirmed).await;
    plane.publish(&version(5));
    await_version(&service, "5").await;
    let answers = traffic.stop().await;
    let last = answers.last().unwrap();
    assert!(last.decision.reasons.iter().all(|reason| reason.code != "POLICY_STAND_IN"), "{last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_source_and_usable_copy_the_embedded_default_answers_and_says_so() {
    let (plane, dir) = (Plane::start(&version(4)).await, tempfile::tempdir().unwrap());
    let copies = || RawConfig { policy_copies_dir: Some(dir.path().join("copies")), ..from(plane.url()) };
    drop(Service::start(copies()));
    let copy = || {
        let files = std::fs::read_dir(dir.path().join("copies")).unwrap().map(|entry| entry.unwrap().path());
        files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "policy")).unwrap()
    };
    let current = dir.path().join("copies/current.json");
    let (good_copy, good_current) = (std::fs::read(copy()).unwrap(), std::fs::read(&current).unwrap());
    plane.set(Mode::Gone).await;
    let serves_default = async |settings: RawConfig, what: &str, told: bool| {
        let service = Service::start(settings);
        let decision =
            service.router().await.route(ask("Is anybody in?")).await.unwrap().into_inner().decision.unwrap();
        let policy = decision.policy.unwrap();
        assert_eq!((policy.id.as_str(), policy.source.as_str()), ("default", "embedded"), "{what}");
        assert!(decision.reasons.iter().any(|reason| reason.code == "POLICY_STAND_IN"), "{what}");
        let state = status(&service).await;
        assert_eq!(state.origin(), PolicyOrigin::Embedded, "{what}");
        assert!(!state.last_error.is_empty(), "{what}");
        assert_eq!(!state.copy_error.is_empty(), told, "{what}: {}", state.copy_error);
        assert_eq!(service.metric("pointsman_policy_copy_failed_total").unwrap() > 0.0, told, "{what}");
        service
    };
    // Damaged in one byte, cut off, foreign, gone, damaged in what says which is in force.
    let mut flipped = good_copy.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(copy(), flipped).unwrap();
    drop(serves_default(copies(), "a damaged copy", true).await);
    std::fs::write(copy(), &good_copy[..good_copy.len() / 2]).unwrap();
    drop(serves_default(copies(), "a copy cut off", true).await);
    std::fs::write(copy(), &good_copy).unwrap();
    let elsewhere = RawConfig { policy: Some("http://127.0.0.1:9/other".into()), ..copies() };
    drop(serves_default(elsewhere, "another source's copy", true).await);
    std::fs::write(&current, "{").unwrap();
    drop(serves_default(copies(), "nothing says which copy", true).await);
    std::fs::write(&current, good_current).unwrap();
    std::fs::remove_file(copy()).unwrap();
    drop(serves_default(copies(), "no copy", true).await);
    std::fs::remove_dir_all(dir.path().join("copies")).unwrap();
    drop(serves_default(copies(), "nothing was ever copied", false).await);
    // A name that nobody knows.
    let nowhere = RawConfig { policy: Some("http://control-plane.invalid/policy".into()), ..copies() };
    drop(serves_default(nowhere, "no such host", false).await);
    // And when the source comes back, it is followed.
    let service = serves_default(copies(), "until it is back", false).await;
    plane.set(Mode::Good).await;
    let state = await_version(&service, "4").await;
    assert_eq!((state.origin(), state.last_error.as_str()), (PolicyOrigin::Source, ""));
}

/// Root may write anywhere, so a directory that cannot be made stands for one that is read-only or full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_costs_nothing_but_the_copy() {
    let (plane, dir) = (Plane::start(&version(1)).await, tempfile::tempdir().unwrap());
    let in_the_way = dir.path().join("copies");
    std::fs::write(&in_the_way, "a file, not a directory").unwrap();
    let service = Service::start(RawConfig { policy_copies_dir: Some(in_the_way.clone()), ..from(plane.url()) });
    let traffic = Traffic::on(&service).await;
    assert!(status(&service).await.copy_error.contains("copies"));
    plane.publish(&version(2));
    await_version(&service, "2").await;
    let failures = service.metric("pointsman_policy_copy_failed_total").unwrap();
    assert!(failures >= 1.0);
    // It is tried again, and told when it works.
    std::fs::remove_file(&in_the_way).unwrap();
    eventually("a copy", async || status(&service).await.copy_error.is_empty().then_some(())).await;
    assert!(in_the_way.join("current.json").exists());
    // Taken away while running: at the next change all of it is written again.
    std::fs::remove_dir_all(&in_the_way).unwrap();
    plane.publish(&version(3));
    await_version(&service, "3").await;
    let written = async || {
        let files = std::fs::read_dir(&in_the_way).ok()?.count();
        (files == 4).then_some(())
    };
    eventually("three copies and current.json", written).await;
    traffic.stop().await;
    // A start with such a disk and without the source is no worse than without copies.
    drop(service);
    std::fs::remove_dir_all(&in_the_way).unwrap();
    std::fs::write(&in_the_way, "again").unwrap();
    plane.set(Mode::Gone).await;
    let service = Service::start(RawConfig { policy_copies_dir: Some(in_the_way), ..from(plane.url()) });
    assert_eq!(status(&service).await.origin(), PolicyOrigin::Embedded);
    assert!(service.router().await.route(ask("Still there?")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_goes_unconfirmed_is_served_marked_or_refused() {
    let plane = Plane::start(&version(1)).await;
    let with = |then: WhenStale| RawConfig {
        policy_max_staleness: Some("1200ms".parse().unwrap()),
        policy_when_stale: Some(then),
        ..from(plane.url())
    };
    let services =
        [WhenStale::Serve, WhenStale::MarkDegraded, WhenStale::Refuse].map(|then| Service::start(with(then)));
    let route = async |service: &Service| service.router().await.route(ask("How old is this?")).await;
    for service in &services {
        assert!(!status(service).await.stale);
        let decision = route(service).await.unwrap().into_inner().decision.unwrap();
        assert!(decision.reasons.iter().all(|reason| reason.code != "POLICY_STALE"));
    }
    plane.set(Mode::Status(503)).await;
    for service in &services {
        eventually("a stale policy", async || status(service).await.stale.then_some(())).await;
        assert_eq!(service.metric("pointsman_policy_stale"), Some(1.0));
    }
    let [serving, marking, refusing] = &services;
    let decision = route(serving).await.unwrap().into_inner().decision.unwrap();
    assert!(decision.policy.as_ref().unwrap().age_ms >= 1_200, "only the age tells");
    assert!(decision.reasons.iter().all(|reason| reason.code != "POLICY_STALE"));
    let decision = route(marking).await.unwrap().into_inner().decision.unwrap();
    assert_eq!(decision.source(), proto::Source::Degraded);
    assert!(decision.reasons.iter().any(|reason| reason.code == "POLICY_STALE"));
    let refused = route(refusing).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.metadata().get("grpc-retry-pushback-ms").is_some());
    assert_eq!((get(refusing.admin, "/readyz").status, get(marking.admin, "/readyz").status), (503, 200));

    plane.set(Mode::Good).await;
    for service in &services {
        eventually("a fresh policy", async || (!status(service).await.stale).then_some(())).await;
        assert!(route(service).await.is_ok());
    }
    assert_eq!(get(refusing.admin, "/readyz").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_signed_policies_are_trusted_where_keys_are_given() {
    let (first, second) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, first.public_line()).unwrap();
    let plane = Plane::start("").await;
    plane.publish_signed(&version(1), Some(first.sign(version(1).as_bytes())));
    let settings = || RawConfig {
        policy_keys_file: Some(keys.clone()),
        policy_copies_dir: Some(dir.path().join("copies")),
        ..from(plane.url())
    };
    let service = Service::start(settings());
    let traffic = Traffic::on(&service).await;
    assert_eq!(status(&service).await.signed_by, first.id());
    for (signature, reason) in [
        (None, "UNSIGNED"),
        (Some(second.sign(version(2).as_bytes())), "UNKNOWN_KEY"),
        (Some(first.sign(version(1).as_bytes())), "BAD_SIGNATURE"),
        (Some("nonsense".to_owned()), "BAD_SIGNATURE"),
    ] {
        let before = count(&service, "rejected", reason).await;
        plane.publish_signed(&version(1), Some(first.sign(version(1).as_bytes())));
        eventually("good again", async || status(&service).await.last_error.is_empty().then_some(())).await;
        plane.publish_signed(&version(2), signature);
        let counted = async || (count(&service, "rejected", reason).await > before).then_some(());
        eventually(reason, counted).await;
        assert_eq!(status(&service).await.policy.unwrap().version, "1", "{reason}");
    }
    // A key is added while the document that it signed is waiting: nothing but the file of keys changes.
    plane.publish_signed(&version(2), Some(second.sign(version(2).as_bytes())));
    let waiting = async || status(&service).await.last_error.contains(&second.id()).then_some(());
    eventually("refused for its key", waiting).await;
    std::fs::write(&keys, format!("{}\n{}\n", first.public_line(), second.public_line())).unwrap();
    let state = await_version(&service, "2").await;
    assert_eq!(state.signed_by, second.id());
    for answered in traffic.stop().await {
        assert!(["1", "2"].contains(&answered.version()));
    }
    // The copy on disk is checked as well: by a key that is not trusted any more it is not used.
    drop(service);
    plane.set(Mode::Gone).await;
    let copy = Service::start(settings());
    assert_eq!(status(&copy).await.origin(), PolicyOrigin::Copy);
    drop(copy);
    std::fs::write(&keys, first.public_line()).unwrap();
    let service = Service::start(settings());
    let state = status(&service).await;
    assert_eq!(state.origin(), PolicyOrigin::Embedded);
    assert!(state.copy_error.contains("not trusted"), "{}", state.copy_error);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_is_sent_read_anew_and_never_shown() {
    let (plane, dir) = (Plane::start(&version(1)).await, tempfile::tempdir().unwrap());
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "Bearer canary-one\n").unwrap();
    plane.ask_for("Bearer canary-one");
    let settings = RawConfig { policy_auth_file: Some(secret.clone()), ..from(plane.url()) };
    let service = Service::start(settings.clone());
    assert_eq!(status(&service).await.origin(), PolicyOrigin::Source);
    plane.ask_for("Bearer canary-two");
    let refused = async || Some(status(&service).await.last_error).filter(|error| error.contains("401"));
    let told = eventually("refused", refused).await;
    std::fs::write(&secret, "Bearer canary-two").unwrap();
    eventually("accepted", async || status(&service).await.last_error.is_empty().then_some(())).await;
    std::fs::remove_file(&secret).unwrap();
    let unreadable = async || (count(&service, "fetch_failed", "SECRET_UNREADABLE").await > 0).then_some(());
    eventually("the file is missed", unreadable).await;
    let shown = [
        told,
        format!("{:?}", status(&service).await),
        get(service.admin, "/metrics").body,
        get(service.admin, "/version").body,
        format!("{:?}", super::support::config(settings).policy.auth_file),
    ];
    for text in shown {
        assert!(!text.contains("canary"), "{text}");
    }
}
