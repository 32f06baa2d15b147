#!/usr/bin/env bash
# Shows that the model-based runs (tests/integration/robustness/model) find mistakes: makes each of the mistakes beside
# this script in a copy of the tree and expects the runs to fail, and to pass with none of them.
#
#   tests/robustness/seeded/run.sh [MISTAKE...]
#
# All mistakes are compiled in at once, behind a switch that only the copy has (`switch.patch`), so there is one build.
set -euo pipefail
cd "$(dirname "$0")/../../.."

root=$PWD
seeded=$root/tests/robustness/seeded
tree=$root/target/seeded
mkdir -p "$tree"
git ls-files -z --cached --others --exclude-standard | grep -zv '^models/' | xargs -0 cp --parents -t "$tree"
ln -sfn "$root/models" "$tree/models"

mistakes=("$@")
[ ${#mistakes[@]} -gt 0 ] || mistakes=($(cd "$seeded" && ls *.patch | sed 's/\.patch$//' | grep -v '^switch$'))
cd "$tree"
for patch in "$seeded"/*.patch; do patch --quiet -p1 <"$patch"; done

# Dependencies are those of the repository's own builds; under its own name the copy's crate stays apart from them.
sed -i '0,/^name = "pointsman"/s//name = "pointsman-seeded"/' Cargo.toml
export CARGO_TARGET_DIR=$root/target
built=$(cargo test --test integration --no-run 2>&1 | tee /dev/stderr | grep -o 'debug/deps/integration-[0-9a-f]*')
seeds() {
    MISTAKE=$1 ROBUSTNESS_SEEDS=0..20 "$root/target/$built" robustness::model::two_hundred --ignored --nocapture \
        >"$tree/$1.log" 2>&1
}

seeds none || { tail -n 20 "$tree/none.log"; echo "fails without any mistake"; exit 1; }
echo "none: passes"
missed=0
for mistake in "${mistakes[@]}"; do
    if seeds "$mistake"; then
        echo "$mistake: MISSED"
        missed=1
    else
        echo "$mistake: found in $(grep -c 'violations (ROBUSTNESS' "$tree/$mistake.log") of 20 seeds:" \
            "$(grep -A1 -m1 'violations (ROBUSTNESS' "$tree/$mistake.log" | tail -n 1 | cut -c1-160)"
    fi
done
exit $missed
