//! The invariants of the code base, checked over its text: who may use whom, and how a file looks.
//!
//! Test code is held to the same rules as the rest. A path is recognised as `crate::module` in code; comments are
//! skipped, and so are strings, as far as a line tells.

use std::path::{Path, PathBuf};

/// The one-way order: a module uses only modules of a lower rank, so those of one rank do not know each other.
const RANKS: [(&str, u8); 25] = [
    // Vocabulary. No I/O.
    ("domain", 0),
    ("recent", 0),
    ("telemetry", 1),
    ("config", 1),
    ("access", 1),
    ("artifact", 1),
    ("text", 2),
    ("rules", 2),
    ("heads", 2),
    ("policy", 3),
    ("encoder", 3),
    ("sources", 4),
    ("health", 4),
    ("state", 4),
    ("decisions", 4),
    ("cascade", 4),
    ("classifier", 4),
    ("batch", 5),
    // Training and evaluation see what a classifier is made of and nothing of the service.
    ("offline", 5),
    ("router", 6),
    ("rpc", 7),
    ("serve", 8),
    // Clients of the wire contract; they know nothing of how it is served.
    ("loadgen", 8),
    ("client", 8),
    ("cli", 9),
];

/// Modules that only these may use, whatever the ranks allow.
const ONLY_USED_BY: [(&str, &[&str]); 7] = [
    // What an operator sets is read once, at the top; below, settings are values.
    ("config", &["serve", "cli"]),
    ("offline", &["cli"]),
    ("rpc", &["serve", "loadgen", "client"]),
    ("loadgen", &["cli"]),
    ("client", &["cli"]),
    ("serve", &["cli"]),
    ("cli", &["main"]),
];

/// Crates that only these modules know.
const CRATES: [(&str, &[&str]); 24] = [
    // `sources` speaks gRPC with etcd.
    ("tonic", &["rpc", "serve", "loadgen", "client", "sources"]),
    ("tonic_prost", &["rpc"]),
    ("tonic_types", &["rpc", "serve"]),
    ("tonic_health", &["serve"]),
    ("tonic_reflection", &["serve"]),
    ("prost", &["rpc", "loadgen"]),
    ("axum", &["serve"]),
    ("hyper", &["sources", "serve"]),
    ("hyper_util", &["sources", "serve"]),
    ("hyper_rustls", &["sources"]),
    ("rustls", &["sources", "serve"]),
    ("tokio_rustls", &["serve"]),
    ("webpki", &["serve"]),
    ("subtle", &["access"]),
    ("ring", &["sources", "cascade", "serve"]),
    ("redis", &["state"]),
    ("candle_core", &["encoder", "classifier", "offline", "cli"]),
    ("candle_nn", &["encoder", "offline"]),
    ("candle_transformers", &["encoder"]),
    ("prometheus_client", &["telemetry"]),
    ("hf_hub", &["encoder"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
];

const MAX_LINES: usize = 600;
const MAX_ARCHITECTURE_LINES: usize = 150;

/// A source file and the module it belongs to: the first part of its path below `src`.
struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

#[test]
fn modules_use_only_lower_ranks() {
    let mut faults = Vec::new();
    for source in sources() {
        for (number, code) in code_lines(&source.text) {
            for target in paths_after(code, "crate") {
                let place = format!("{}:{number}", source.path.display());
                if target == source.module {
                    continue;
                }
                match (rank(&source.module), rank(target)) {
                    (_, None) => faults.push(format!("{place} names crate::{target}, which the table does not have")),
                    (Some(own), Some(theirs)) if own <= theirs => faults.push(format!(
                        "{place} uses crate::{target} (rank {theirs}) from {} (rank {own})",
                        source.module
                    )),
                    _ => {}
                }
                let users = ONLY_USED_BY.iter().find(|(module, _)| *module == target);
                if users.is_some_and(|(_, users)| !users.contains(&source.module.as_str())) {
                    faults.push(format!("{place} uses crate::{target}, which is not for {}", source.module));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_table_names_every_module_and_no_other() {
    let mut modules: Vec<String> = sources()
        .into_iter()
        .map(|source| source.module)
        .filter(|module| module != "lib" && module != "main")
        .collect();
    modules.sort();
    modules.dedup();
    let mut ranked: Vec<&str> = RANKS.iter().map(|(module, _)| *module).collect();
    ranked.sort_unstable();
    assert_eq!(modules, ranked);
}

/// `super::` of a module's root file is the crate's root: a way round the order that this closes.
#[test]
fn no_module_reaches_its_siblings_by_super() {
    let mut faults = Vec::new();
    for source in sources() {
        let below_src = source.path.strip_prefix(root().join("src")).unwrap();
        // How many `super` lead out of the file's own module, one more inside an inline module.
        let depth = below_src.components().count() - usize::from(below_src.ends_with("mod.rs"));
        let mut inline = 0;
        for (number, code) in code_lines(&source.text) {
            if code.starts_with("mod ") && code.ends_with('{') {
                inline = 1;
            }
            let most = depth - 1 + inline;
            if code.contains(&"super::".repeat(most + 1)) {
                faults.push(format!("{}:{number} leaves the module by super::", source.path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn crates_are_known_only_where_they_belong() {
    let mut faults = Vec::new();
    for source in sources() {
        for (number, code) in code_lines(&source.text) {
            for (name, modules) in CRATES {
                let used = !paths_after(code, name).is_empty();
                if used && !modules.contains(&source.module.as_str()) {
                    faults.push(format!("{}:{number} knows {name}: {code}", source.path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A task that nothing waits for is cut off by a drain; a value read from the environment deep down is a hidden setting.
#[test]
fn tasks_environment_and_unsafe_code_stay_where_they_belong() {
    // Needle, in which file or folder it is allowed, why not elsewhere. Written in two parts, so that this file does not match itself.
    let rules: [(String, &[&str], &str); 4] = [
        (["tokio::", "spawn("].concat(), &["src/serve/tasks.rs"], "spawn through serve::Tasks"),
        (["task::", "spawn("].concat(), &["src/serve/tasks.rs"], "spawn through serve::Tasks"),
        (["env::", "var"].concat(), &[], "settings come from config"),
        (["uns", "afe "].concat(), &["src/encoder/int8/kernels"], "it belongs into the kernels"),
    ];
    let mut faults = Vec::new();
    for source in sources() {
        for (number, code) in code_lines(&source.text) {
            for (needle, allowed, reason) in &rules {
                let path = source.path.strip_prefix(root()).unwrap();
                if code.contains(needle.as_str()) && !allowed.iter().any(|allowed| path.starts_with(allowed)) {
                    faults.push(format!("{}:{number} has {needle:?}: {reason}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_can_be_read_at_once() {
    let mut faults = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for path in rust_files(&root().join(folder)) {
            let text = std::fs::read_to_string(&path).unwrap();
            let n_lines = text.lines().count();
            if !text.starts_with("//!") {
                faults.push(format!("{} does not start with a //! header", path.display()));
            }
            if n_lines > MAX_LINES {
                faults.push(format!("{} has {n_lines} lines, at most {MAX_LINES} can be read at once", path.display()));
            }
        }
    }
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap_or_default();
    if architecture.lines().count() > MAX_ARCHITECTURE_LINES {
        faults.push(format!("ARCHITECTURE.md has more than {MAX_ARCHITECTURE_LINES} lines"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Reflection serves the comments: `describe` is the reference that a caller has at hand.
#[test]
fn every_part_of_the_wire_contract_is_documented() {
    let mut faults = Vec::new();
    let folder = root().join("proto/pointsman/v1");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut documented = false;
        for (index, line) in text.lines().map(str::trim).enumerate() {
            let declares = line.starts_with("message ")
                || line.starts_with("enum ")
                || line.starts_with("service ")
                || line.starts_with("rpc ")
                || line.starts_with("oneof ")
                || line.contains(" = ") && line.ends_with(';') && !line.starts_with("syntax");
            if declares && !documented {
                faults.push(format!("{}:{}: {line}", path.display(), index + 1));
            }
            documented = line.starts_with("//");
        }
    }
    assert!(faults.is_empty(), "without a comment above:\n{}", faults.join("\n"));
}

#[test]
fn the_scan_sees_what_it_should() {
    let line = "use crate::domain::Tier; fn f(x: crate::rules::Rule) {} // crate::serve";
    assert_eq!(
        code_lines(line).flat_map(|(_, code)| paths_after(code, "crate")).collect::<Vec<_>>(),
        ["domain", "rules"]
    );
    assert_eq!(paths_after("mycrate::domain", "crate"), [""; 0]);
    assert_eq!(paths_after("use tonic_types::X;", "tonic"), [""; 0]);
    assert_eq!(code_lines("//! crate::serve\n/// crate::cli\nlet x = 1;").count(), 1);
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let files = rust_files(&src);
    assert!(files.len() > 50, "only {} files found below {}", files.len(), src.display());
    files
        .into_iter()
        .map(|path| {
            let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
            let module = Path::new(first.as_os_str()).file_stem().unwrap().to_string_lossy().into_owned();
            Source { module, text: std::fs::read_to_string(&path).unwrap(), path }
        })
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Lines that hold code, numbered from 1, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.trim();
        let code = if line.starts_with("//") { "" } else { line.split(" // ").next().unwrap_or_default() };
        (!code.is_empty()).then_some((index + 1, code))
    })
}

/// The identifiers that follow `root::` in a line; a grouped import gives its brace, which no table has.
fn paths_after<'a>(code: &'a str, root: &str) -> Vec<&'a str> {
    let prefix = format!("{root}::");
    let is_ident = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(&prefix)
        .filter(|(at, _)| !code[..*at].ends_with(is_ident))
        .map(|(at, _)| {
            let rest = &code[at + prefix.len()..];
            let end = rest.find(|c| !is_ident(c)).unwrap_or(rest.len());
            if end == 0 { &rest[..rest.len().min(1)] } else { &rest[..end] }
        })
        .collect()
}
