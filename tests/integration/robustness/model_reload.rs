//! Another model under load: looked over, swapped in without a failed call, and refused when it is worse than none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pointsman::artifact::MANIFEST;
use pointsman::config::RawConfig;
use pointsman::rpc::proto;
use prost::Message as _;
use tonic::Code;

use super::super::support::{Service, ask, eventually, root};
use super::raw::{ROUTE, RawClient};

/// The repository's models, whose manifests can be changed.
pub(super) fn models() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["default", "all-MiniLM-L6-v2"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        for entry in std::fs::read_dir(root().join("models").join(name)).unwrap() {
            let entry = entry.unwrap();
            std::os::unix::fs::symlink(entry.path(), dir.path().join(name).join(entry.file_name())).unwrap();
        }
    }
    dir
}

/// Changes the manifest of the model in `dir` in one step.
pub(super) fn edit(dir: &Path, edit: impl FnOnce(&mut toml::Table)) {
    let path = dir.join("default").join(MANIFEST);
    let mut manifest: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    edit(&mut manifest);
    let new = path.with_extension("new");
    std::fs::write(&new, toml::to_string(&manifest).unwrap()).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn decide(client: &RawClient, text: String) -> proto::Decision {
    let answer = client.call(ROUTE, &[], &ask(text).encode_to_vec()).await.unwrap();
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    proto::RouteResponse::decode(answer.message.slice(5..)).unwrap().decision.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_model_takes_over_under_load_and_a_bad_one_does_not() {
    let dir = models();
    let service = Service::start(RawConfig {
        models_dir: Some(dir.path().to_owned()),
        model_poll_interval: Some("50ms".parse().unwrap()),
        decision_log_recent: Some(10),
        ..RawConfig::default()
    });
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (stop, client) = (Arc::clone(&stop), RawClient::connect(service.grpc).await);
        async move {
            let mut versions = Vec::new();
            for i in 0_usize.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let decision = decide(&client, format!("How long is street number {} in this town?", i % 50)).await;
                assert!(decision.source() != proto::Source::Degraded, "call {i}: {:?}", decision.reasons);
                let version = decision.classifier.unwrap().version;
                if versions.last() != Some(&version) {
                    versions.push(version);
                }
            }
            versions
        }
    });
    let client = RawClient::connect(service.grpc).await;
    let version = async || decide(&client, "Which version is this?".into()).await.classifier.unwrap().version;
    let reloads = |result: &str| {
        let series = format!("pointsman_reloads_total{{what=\"model\",result=\"{result}\"}}");
        service.metric(&series).unwrap_or_default()
    };
    let first = version().await;

    edit(dir.path(), |manifest| manifest["version"] = "second".into());
    eventually("the second model", async || (version().await == "second").then_some(())).await;

    // Listed as it is, and worth nothing: every output is the same.
    let path = dir.path().join("default/heads.safetensors");
    let (heads, sound) = (std::fs::read(&path).unwrap(), std::fs::read_link(&path).unwrap());
    let length = usize::try_from(u64::from_le_bytes(heads[..8].try_into().unwrap())).unwrap();
    let mut constant = heads.clone();
    let header: serde_json::Value = serde_json::from_slice(&heads[8..8 + length]).unwrap();
    for tensor in ["intent.0.weight", "intent.1.weight", "intent.ngrams", "difficulty.0.weight", "difficulty.1.weight"]
    {
        let at = |i: usize| 8 + length + usize::try_from(header[tensor]["data_offsets"][i].as_u64().unwrap()).unwrap();
        constant[at(0)..at(1)].fill(0);
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &constant).unwrap();
    let entry = toml::Value::try_from(pointsman::artifact::FileEntry::of(&constant)).unwrap();
    let good = std::fs::read_to_string(dir.path().join("default").join(MANIFEST)).unwrap();
    edit(dir.path(), |manifest| {
        manifest["version"] = "third".into();
        manifest["files"].as_table_mut().unwrap().insert("heads.safetensors".into(), entry);
    });
    eventually("the third is refused", async || (reloads("refused") >= 1.0).then_some(())).await;
    assert_eq!(version().await, "second", "the model in use stays");

    // Files that do not match their manifest are refused too, and tried again.
    let n = reloads("refused");
    std::fs::write(dir.path().join("default").join(MANIFEST), good.replace("second", "fourth")).unwrap();
    eventually("the fourth is refused", async || (reloads("refused") > n).then_some(())).await;
    assert_eq!(version().await, "second");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(sound, &path).unwrap();
    eventually("the fourth, whole now", async || (version().await == "fourth").then_some(())).await;

    stop.store(true, Ordering::SeqCst);
    assert_eq!(load.await.unwrap(), [first.as_str(), "second", "fourth"], "no call failed, none went back");
    assert_eq!(reloads("accepted"), 2.0);
}
