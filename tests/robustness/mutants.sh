#!/usr/bin/env bash
# Mutation tests of the modules that decide: rules, policy, cascade. Needs `cargo install cargo-mutants --locked`.
#
#   tests/robustness/mutants.sh [K/N [MODULE...]]
#
# The whole crate takes a minute a mutant to build. These modules use nothing above them (ARCHITECTURE.md), so they are
# copied, with what they use and their unit tests, into a crate of their own that builds in seconds. K/N takes every
# N-th mutant from the K-th on (default 0/1: all of them); MODULE names other modules than the three.
set -euo pipefail
cd "$(dirname "$0")/../.."

shard=${1:-0/1}
modules=("${@:2}")
[ ${#modules[@]} -gt 0 ] || modules=(rules policy cascade)
copy=target/mutants/crate

rm -rf "$copy/src" "$copy/docs"
mkdir -p "$copy/src"
cp -r src/domain src/text src/rules src/policy src/cascade "$copy/src/"
cp -r docs Cargo.lock rust-toolchain.toml "$copy/"
printf '#![allow(missing_docs)]\n' >"$copy/src/lib.rs"
for module in cascade domain policy rules text; do echo "pub mod $module;" >>"$copy/src/lib.rs"; done

# The versions are those of the whole crate.
needed() { grep -E "^($1) = " Cargo.toml; }
{
    printf '[package]\nname = "pointsman"\nversion = "0.0.0"\nedition = "2024"\npublish = false\n\n[dependencies]\n'
    needed 'aho-corasick|arc-swap|base64|hex|humantime|rand|regex|ring|saphyr-parser|schemars|serde|serde_json|sha2|thiserror|unicode-normalization|uuid|whatlang'
    printf '\n[dev-dependencies]\n'
    needed 'jsonschema|proptest'
    sed -n '/^\[dev-dependencies\]/,/^\[/{/^tempfile = /p}' Cargo.toml
    printf '\n[profile.dev]\nopt-level = 0\ndebug = false\n\n[profile.dev.package."*"]\nopt-level = 2\n\n[workspace]\n'
} >"$copy/Cargo.toml"

files=()
for module in "${modules[@]}"; do files+=(--file "src/$module/**"); done
cd "$copy"
# Properties are tried on fewer inputs than in the ordinary run: a mutant that only one in thousands shows is not caught.
# One test of great size is left out, which takes a minute without optimisation.
PROPTEST_CASES=${PROPTEST_CASES:-64} CARGO_INCREMENTAL=1 cargo mutants --in-place --output .. --no-shuffle --shard "$shard" \
    --sharding round-robin --timeout 120 "${files[@]}" --exclude 'src/**/tests*' --colors never -- --lib -- --skip a_comparison_of_very_many
