//! Importing an encoder from a hub: a local server plays the hub, wire format and faults included.

use super::support::run;

#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_the_feature_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let arguments = ["import", "--from", "hub:org/name", "--license", "MIT", "--out", out.to_str().unwrap()];
    let (code, _, err) = run(&arguments);
    assert!(code == 1 && err.contains("--features hub"), "{code}: {err}");
    assert!(!out.exists());
}

#[test]
fn a_repository_that_cannot_be_one_is_refused() {
    let arguments = ["import", "--from", "hub:../etc", "--license", "MIT", "--out", "/nowhere/x"];
    let (code, _, err) = run(&arguments);
    assert!(code == 1 && err.contains("OWNER/NAME"), "{code}: {err}");
}

#[cfg(feature = "hub")]
mod fetching {
    use std::collections::{BTreeMap, HashMap};
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use pointsman::artifact::sha256_hex;
    use serde_json::json;
    use sha1::Digest as _;

    use super::super::support::{command, root};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const WEIGHTS: &str = "model.safetensors";

    /// What the hub does wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        None,
        /// One byte of the file is not what the API's hash says.
        Flipped(&'static str),
        /// The file ends early, and the server believes that this is all.
        Short(&'static str),
        /// The connection breaks in the middle of the weights, once.
        BreaksOnce,
        /// The API tells no hashes.
        NoHashes,
        /// Who has no token is refused.
        Private,
    }

    /// A hub with one repository, `org/name`, whose weights lie elsewhere as large files do.
    struct Hub {
        address: SocketAddr,
        /// Every request: path, and the `Range` it asked for.
        seen: Arc<Mutex<Vec<(String, String)>>>,
    }

    struct Repository {
        files: BTreeMap<&'static str, Vec<u8>>,
        fault: Fault,
        broken: Mutex<bool>,
    }

    impl Hub {
        fn start(files: BTreeMap<&'static str, Vec<u8>>, fault: Fault) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let seen: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
            let repository = Repository { files, fault, broken: Mutex::new(false) };
            let log = Arc::clone(&seen);
            // Ends with the test process: nobody connects any more.
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                    let Some(first) = lines.next() else { continue };
                    let path = first.split(' ').nth(1).unwrap().to_owned();
                    let headers: HashMap<String, String> = lines
                        .take_while(|line| !line.is_empty())
                        .filter_map(|line| {
                            line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                        })
                        .collect();
                    let range = headers.get("range").cloned().unwrap_or_default();
                    log.lock().unwrap().push((path.clone(), range));
                    // A client that hangs up early is no concern of the hub.
                    drop(repository.answer(&stream, address, &path, &headers));
                }
            });
            Self { address, seen }
        }

        fn import(&self, out: &Path, more: &[&str]) -> (i32, String) {
            let from =
                ["import", "--from", "hub:org/name@main", "--license", "Apache-2.0", "--out", out.to_str().unwrap()];
            let endpoint = format!("http://{}", self.address);
            let mut command = command(&from);
            for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
                command.env_remove(proxy);
            }
            let output = command.args(more).env("POINTSMAN_HUB_ENDPOINT", endpoint).output().unwrap();
            (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
        }

        fn requests(&self, part: &str) -> Vec<String> {
            let seen = self.seen.lock().unwrap();
            seen.iter().filter(|(path, _)| path.contains(part)).map(|(_, range)| range.clone()).collect()
        }
    }

    impl Repository {
        fn answer(
            &self,
            stream: &TcpStream,
            hub: SocketAddr,
            path: &str,
            headers: &HashMap<String, String>,
        ) -> std::io::Result<()> {
            let respond = |status: &str, head: &str, body: &[u8]| -> std::io::Result<()> {
                let mut stream = stream;
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{head}\r\n",
                    body.len()
                )?;
                stream.write_all(body)
            };
            let allowed = headers.get("authorization").is_some_and(|value| value == "Bearer sesame");
            if self.fault == Fault::Private && !allowed {
                return respond("401 Unauthorized", "", b"");
            }
            if path.starts_with("/api/models/org/name/revision/main?blobs=true") {
                return respond("200 OK", "Content-Type: application/json\r\n", self.info().to_string().as_bytes());
            }
            let Some((name, file)) = self.files.iter().find(|(name, _)| path.ends_with(&format!("/{name}"))) else {
                return respond("404 Not Found", "", b"");
            };
            let etag = if *name == WEIGHTS { sha256_hex(file) } else { blob_id(file) };
            let identity = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\n");
            if *name == WEIGHTS && path == format!("/org/name/resolve/{COMMIT}/{name}") {
                let place = format!("Location: http://{hub}/large/{name}\r\nX-Linked-Etag: \"{etag}\"\r\n");
                return respond("302 Found", &format!("{identity}{place}"), b"");
            }
            let mut file = file.clone();
            if self.fault == Fault::Flipped(name) {
                let middle = file.len() / 2;
                file[middle] ^= 1;
            }
            if self.fault == Fault::Short(name) {
                file.truncate(file.len() / 2);
            }
            // `bytes=N-` or `bytes=N-M`, which is all that the client asks for.
            let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")).unwrap_or("0-");
            let (start, end) = range.split_once('-').unwrap();
            let start: usize = start.parse().unwrap();
            let end = end.parse().map_or(file.len(), |last: usize| last + 1).min(file.len());
            let part = &file[start..end];
            let position = format!("Content-Range: bytes {start}-{}/{}\r\n", end.max(1) - 1, file.len());
            if self.fault == Fault::BreaksOnce && part.len() > 1 && *name == WEIGHTS {
                let mut broken = self.broken.lock().unwrap();
                if !*broken {
                    *broken = true;
                    let mut stream = stream;
                    let length = part.len();
                    write!(
                        stream,
                        "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\n{identity}{position}\r\n"
                    )?;
                    return stream.write_all(&part[..length / 2]);
                }
            }
            respond("206 Partial Content", &format!("{identity}{position}"), part)
        }

        fn info(&self) -> serde_json::Value {
            let siblings = self.files.iter().map(|(name, bytes)| {
                let mut entry = json!({"rfilename": name, "size": bytes.len()});
                if self.fault != Fault::NoHashes {
                    entry["blobId"] = json!(blob_id(bytes));
                    if *name == WEIGHTS {
                        entry["lfs"] = json!({"sha256": sha256_hex(bytes), "size": bytes.len(), "pointerSize": 134});
                    }
                }
                entry
            });
            json!({"id": "org/name", "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>()})
        }
    }

    fn blob_id(bytes: &[u8]) -> String {
        let mut hasher = sha1::Sha1::new();
        hasher.update(format!("blob {}\0", bytes.len()));
        hasher.update(bytes);
        hex::encode(hasher.finalize())
    }

    /// The committed encoder as a repository.
    fn encoder() -> BTreeMap<&'static str, Vec<u8>> {
        let folder = root().join("models/all-MiniLM-L6-v2");
        ["config.json", "tokenizer.json", WEIGHTS].map(|name| (name, std::fs::read(folder.join(name)).unwrap())).into()
    }

    /// Files of the right names that are quick to send and to convert.
    fn small() -> BTreeMap<&'static str, Vec<u8>> {
        let tensor = candle_core::Tensor::zeros((64, 64), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let weights = safetensors::serialize([("x", tensor)], None).unwrap();
        [("config.json", b"{\"hidden_size\": 64}".to_vec()), ("tokenizer.json", b"{}".to_vec()), (WEIGHTS, weights)]
            .into()
    }

    #[test]
    fn an_encoder_is_fetched_checked_and_loads() {
        let hub = Hub::start(encoder(), Fault::None);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("fetched");
        let (code, err) = hub.import(&out, &[]);
        assert_eq!(code, 0, "{err}");
        let device = candle_core::Device::Cpu;
        let fetched = pointsman::classifier::load_encoder(out.to_str().unwrap(), &[], 256, &device).unwrap();
        assert_eq!((fetched.name(), fetched.hidden_size()), ("fetched", 384));
        let manifest = std::fs::read_to_string(out.join("manifest.toml")).unwrap();
        assert!(manifest.contains(&format!("org/name at commit {COMMIT}")), "{manifest}");
        assert!(hub.requests("/resolve/main/").is_empty(), "files are fetched at the commit");
    }

    #[test]
    fn a_broken_connection_goes_on_where_it_stopped() {
        let hub = Hub::start(small(), Fault::BreaksOnce);
        let dir = tempfile::tempdir().unwrap();
        let (code, err) = hub.import(&dir.path().join("x"), &[]);
        assert_eq!(code, 0, "{err}");
        let half = small()[WEIGHTS].len() / 2;
        let asked = hub.requests("/large/");
        assert!(asked.contains(&format!("bytes={half}-")), "{asked:?}");
    }

    #[test]
    fn what_is_not_as_the_hub_says_is_refused() {
        let half = small()[WEIGHTS].len() / 2;
        for (fault, parts) in [
            (Fault::Flipped(WEIGHTS), [WEIGHTS.to_owned(), "sha256".to_owned()]),
            (Fault::Flipped("config.json"), ["config.json".to_owned(), "git blob id".to_owned()]),
            (Fault::Short(WEIGHTS), [WEIGHTS.to_owned(), format!("bytes {half}, the hub says")]),
            (Fault::Short("config.json"), ["config.json".to_owned(), "bytes 9, the hub says 19".to_owned()]),
            (Fault::NoHashes, ["does not tell the hash".to_owned(), "import from a folder".to_owned()]),
            (Fault::Private, ["cannot fetch org/name@main".to_owned(), "401".to_owned()]),
        ] {
            let hub = Hub::start(small(), fault);
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("x");
            let (code, err) = hub.import(&out, &[]);
            assert!(code == 1 && parts.iter().all(|part| err.contains(part)), "{parts:?}: {code}: {err}");
            assert!(!out.exists(), "{parts:?}: nothing is written");
        }
    }

    #[test]
    fn a_repository_without_a_file_and_one_that_is_not_there_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = small();
        files.remove("tokenizer.json");
        let (code, err) = Hub::start(files, Fault::None).import(&dir.path().join("x"), &[]);
        assert!(code == 1 && err.contains("org/name@main has no tokenizer.json"), "{code}: {err}");
        let (code, err) =
            Hub::start(small(), Fault::None).import(&dir.path().join("x"), &["--hub-endpoint", "http://127.0.0.1:1"]);
        assert!(code == 1 && err.contains("from http://127.0.0.1:1"), "{code}: {err}");
    }

    #[test]
    fn a_token_opens_a_private_repository() {
        let hub = Hub::start(small(), Fault::Private);
        let dir = tempfile::tempdir().unwrap();
        let (code, err) = hub.import(&dir.path().join("x"), &["--hub-token", "sesame"]);
        assert_eq!(code, 0, "{err}");
        assert!(!err.contains("sesame"));
    }
}
