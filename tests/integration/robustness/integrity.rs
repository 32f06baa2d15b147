//! A model directory that is not what its manifest says, or not what was trained, is refused before serving.

use std::path::{Path, PathBuf};

use pointsman::artifact::{FileEntry, MANIFEST, default_roots};
use pointsman::classifier::{Classifier, LoadOptions};
use pointsman::encoder::{Precision, open_device};
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::super::support::{root, run};

const MODELS: [&str; 2] = ["default", "all-MiniLM-L6-v2"];

/// A copy of the models; its large files are links until a test writes them anew.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in MODELS {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            for entry in std::fs::read_dir(root().join("models").join(name)).unwrap() {
                let entry = entry.unwrap();
                std::os::unix::fs::symlink(entry.path(), dir.path().join(name).join(entry.file_name())).unwrap();
            }
        }
        Self { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.path(file);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn edit_manifest(&self, edit: impl FnOnce(&mut toml::Table)) {
        let file = format!("default/{MANIFEST}");
        let mut manifest: toml::Table = std::fs::read_to_string(self.path(&file)).unwrap().parse().unwrap();
        edit(&mut manifest);
        self.write(&file, toml::to_string(&manifest).unwrap().as_bytes());
    }

    /// Writes a file and lists it as it is now, as somebody would who means it.
    fn replace_and_list(&self, name: &str, bytes: &[u8]) {
        self.write(&format!("default/{name}"), bytes);
        let entry = toml::Value::try_from(FileEntry::of(bytes)).unwrap();
        self.edit_manifest(|manifest| {
            manifest["files"].as_table_mut().unwrap().insert(name.to_owned(), entry);
        });
    }

    fn load(&self) -> Result<Classifier, String> {
        let options = LoadOptions {
            name: "default".into(),
            roots: default_roots(Some(self.dir.path())),
            max_tokens: None,
            device: open_device("cpu").unwrap(),
            precision: Precision::Auto,
            isa: None,
            threads: 1,
        };
        Classifier::load(&options).map_err(|error| {
            let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        })
    }

    fn refused(&self, what: &str, part: &str) {
        let error = self.load().expect_err(what);
        assert!(error.contains(part), "{what}: {error}");
    }

    fn serve(&self) -> (i32, String) {
        let models = self.dir.path().display().to_string();
        let addresses = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let (code, _, log) = run(&[&["serve", "--models-dir", &models], addresses.as_slice()].concat());
        (code, log)
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn fifty_flipped_bits_and_every_truncation_are_refused() {
    let copy = Copy::new();
    let mut rng = StdRng::seed_from_u64(7);
    let files = [
        ("default/heads.safetensors", 25),
        ("all-MiniLM-L6-v2/config.json", 5),
        ("all-MiniLM-L6-v2/tokenizer.json", 10),
        ("default/encoder-changes.safetensors", 7),
        ("all-MiniLM-L6-v2/model.safetensors", 3),
    ];
    let mut n = 0;
    for (file, times) in files {
        if !copy.path(file).exists() {
            continue;
        }
        let sound = bytes(&copy.path(file));
        for _ in 0..times {
            let mut broken = sound.clone();
            let at = rng.random_range(0..broken.len());
            broken[at] ^= 1 << rng.random_range(0..8);
            copy.write(file, &broken);
            copy.refused(&format!("a bit of {file} at {at}"), "the manifest says");
            n += 1;
        }
        for length in [0, 1, sound.len() / 2, sound.len() - 1] {
            copy.write(file, &sound[..length]);
            copy.refused(&format!("{length} bytes of {file}"), &format!("{length} bytes, the manifest says"));
        }
        std::fs::remove_file(copy.path(file)).unwrap();
        copy.refused(&format!("no {file}"), "cannot read");
        std::fs::write(copy.path(file), &sound).unwrap();
    }
    println!("{n} flipped bits refused");
    assert!(copy.load().is_ok(), "as it was");
}

#[test]
fn what_is_listed_and_still_wrong_is_refused() {
    // (What is wrong with it, what is done to it, part of the refusal.)
    type Case = (&'static str, fn(&Copy), &'static str);
    let cases: [Case; 9] = [
        (
            "labels in another order",
            |copy| {
                copy.edit_manifest(|manifest| manifest["intent_labels"].as_array_mut().unwrap().rotate_left(1));
            },
            "is not what it answered when it was made",
        ),
        (
            "a label too few",
            |copy| {
                copy.edit_manifest(|manifest| drop(manifest["intent_labels"].as_array_mut().unwrap().pop()));
            },
            "intent labels",
        ),
        (
            "heads of other training",
            |copy| {
                let heads = bytes(&copy.path("default/heads.safetensors"));
                copy.replace_and_list("heads.safetensors", &scrambled(&heads));
            },
            "is not what it answered when it was made",
        ),
        (
            "a tensor of another shape than listed",
            |copy| {
                copy.edit_manifest(|manifest| {
                    let tensors = manifest["files"]["heads.safetensors"]["tensors"].as_table_mut().unwrap();
                    tensors.insert("intent.0.weight".into(), "f32[441, 256]".into());
                });
            },
            "intent.0.weight",
        ),
        (
            "a tensor of another type than listed",
            |copy| {
                copy.edit_manifest(|manifest| {
                    let tensors = manifest["files"]["heads.safetensors"]["tensors"].as_table_mut().unwrap();
                    tensors.insert("intent.0.bias".into(), "f16[256]".into());
                });
            },
            "intent.0.bias",
        ),
        (
            "heads for another encoder",
            |copy| {
                copy.edit_manifest(|manifest| manifest["encoder"]["weights_sha256"] = "00".repeat(32).into());
            },
            "was trained on encoder weights 0000",
        ),
        (
            "other text features",
            |copy| {
                copy.edit_manifest(|manifest| manifest["features"] = "text-features/v1".into());
            },
            "text-features/v1",
        ),
        (
            "a file from elsewhere",
            |copy| {
                copy.edit_manifest(|manifest| {
                    let files = manifest["files"].as_table_mut().unwrap();
                    let entry = files["heads.safetensors"].clone();
                    files.insert("../heads.safetensors".into(), entry);
                });
            },
            "not a plain file name",
        ),
        (
            "a header of 2^63 bytes",
            |copy| {
                copy.replace_and_list("heads.safetensors", &[&(1_u64 << 63).to_le_bytes()[..], b"{}"].concat());
            },
            "heads",
        ),
    ];
    for (what, harm, part) in cases {
        let copy = Copy::new();
        let models = copy.dir.path().display().to_string();
        let (code, _, log) = run(&["seal", "--models-dir", &models]);
        assert_eq!(code, 0, "{log}");
        assert!(copy.load().is_ok());
        harm(&copy);
        copy.refused(what, part);
    }
}

/// Heads with the rows of one matrix turned: finite, of the right shape, and worth nothing.
fn scrambled(heads: &[u8]) -> Vec<u8> {
    let length = usize::try_from(u64::from_le_bytes(heads[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&heads[8..8 + length]).unwrap();
    let mut scrambled = heads.to_vec();
    for tensor in ["intent.0.weight", "intent.1.weight", "difficulty.0.weight", "intent.ngrams"] {
        let at = |i: usize| 8 + length + usize::try_from(header[tensor]["data_offsets"][i].as_u64().unwrap()).unwrap();
        scrambled[at(0)..at(1)].rotate_left(4 * 37);
    }
    scrambled
}

#[test]
fn the_process_says_why_and_ends_with_78() {
    let copy = Copy::new();
    for file in ["default/heads.safetensors", "all-MiniLM-L6-v2/tokenizer.json"] {
        let sound = bytes(&copy.path(file));
        let mut broken = sound.clone();
        let middle = broken.len() / 2;
        broken[middle] ^= 1;
        copy.write(file, &broken);
        let (code, log) = copy.serve();
        assert_eq!(code, 78, "{log}");
        assert!(log.contains(file) && log.contains("the manifest says"), "{log}");
        copy.write(file, &sound);
    }
}
