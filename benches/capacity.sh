#!/usr/bin/env bash
# The capacity guide's figures (docs/operations.md): decisions a second and memory by length of the prompt and by threads,
# then by replicas.
#
#   benches/capacity.sh [PATH/TO/pointsman] [SECONDS]
#
# One line a row: what runs, word pieces of a prompt, decisions a second, p50 and p99 in ms, processor time the server
# spent on a decision, its resident memory and its peak. The generator waits for each of its answers (closed loop) and shares
# the machine: on two cores a server of two threads has not both for itself, so processor time a decision is the figure to plan
# with. The decision cache is off; every prompt of a row is the same text, so the tokenizer's work is alike too.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/release/pointsman}
seconds=${2:-5}
port=${PORT:-50961}
ticks=$(getconf CLK_TCK)
cores=$(nproc)
pids=()

stop() {
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    ((${#pids[@]} == 0)) || wait "${pids[@]}" 2>/dev/null || true
    pids=()
}
trap stop EXIT

# A text of N word pieces, the two marks around it included.
text() {
    local words=(now compare these two plans and tell me which one would cost less over the next ten years) out=() i
    for ((i = 0; i < $1 - 2; i++)); do out+=("${words[i % ${#words[@]}]}"); done
    echo "${out[*]}"
}

load() { "$binary" loadgen --target "http://127.0.0.1:$1" --json "${@:2}"; }

# serve REPLICAS CORES THREADS
serve() {
    local replica try
    for ((replica = 0; replica < $1; replica++)); do
        local at=$((port + 2 * replica)) on=$2
        if (($1 > 1)); then on=$((replica % cores)); fi
        taskset -c "$on" "$binary" serve --listen "127.0.0.1:$at" --admin-listen "127.0.0.1:$((at + 1))" \
            --threads "$3" --decision-cache-entries 0 --log-filter warn >/dev/null 2>&1 &
        pids+=($!)
        for ((try = 0; try < 200; try++)); do
            load "$at" --concurrency 1 --duration 1ms --warmup 0s >/dev/null 2>&1 && break
            sleep 0.05
        done
        ((try < 200)) || { echo "the server did not start" >&2; exit 1; }
    done
}

# User and system time of a process, in ticks.
spent() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
memory() { awk -v key="$2:" '$1 == key { printf "%.0f", $2 / 1024 }' "/proc/$1/status"; }
# field PATTERN: the number after it in a report.
field() { sed -E "s/.*$1:([0-9.]+).*/\1/"; }

# row NAME PIECES CALLERS: load on every replica at once.
row() {
    local before=0 after=0 pid at=$port out i jobs=() all=0 p50=0 p99=0 pieces=0
    out=$(mktemp -d)
    for pid in "${pids[@]}"; do load "$at" --concurrency "$3" --duration 1s --warmup 0s --prompts "$(text "$2")" >/dev/null; at=$((at + 2)); done
    for pid in "${pids[@]}"; do before=$((before + $(spent "$pid"))); done
    for ((i = 0; i < ${#pids[@]}; i++)); do
        load $((port + 2 * i)) --concurrency "$3" --duration "${seconds}s" --warmup 0s --prompts "$(text "$2")" >"$out/$i" &
        jobs+=($!)
    done
    wait "${jobs[@]}"
    for pid in "${pids[@]}"; do after=$((after + $(spent "$pid"))); done
    for ((i = 0; i < ${#pids[@]}; i++)); do
        grep -q '"errors":{},.*"sources":{"classifier":[0-9]*}' "$out/$i" ||
            { echo "$1, $2 word pieces: refused or degraded: $(<"$out/$i")" >&2; exit 1; }
        all=$((all + $(field '"answered"' <"$out/$i")))
        p50=$(field '"latency_us":\{"mean":[0-9.]+,"p50"' <"$out/$i")
        p99=$(field '"latency_us":\{[^}]*"p99"' <"$out/$i")
        pieces=$(field '"tokens"' <"$out/$i")
    done
    awk -v name="$1" -v pieces="$pieces" -v n="$all" -v s="$seconds" -v p50="$p50" -v p99="$p99" -v ticks="$((after - before))" -v hz="$ticks" \
        -v rss="$(memory "${pids[0]}" VmRSS)" -v peak="$(memory "${pids[0]}" VmHWM)" 'BEGIN {
            printf "| %s | %.0f | %.0f | %.1f | %.1f | %.2f | %s | %s |\n", name, pieces, n / s, p50 / 1000, p99 / 1000, ticks / hz / n * 1000, rss, peak }'
    rm -r "$out"
}

echo "$cores cores, load average before: $(cut -d' ' -f1-3 /proc/loadavg)"
printf '| server | word pieces | decisions/s | p50 ms | p99 ms | CPU ms each | RSS MB | peak MB |\n|---|---|---|---|---|---|---|---|\n'
for threads in 1 $cores; do
    serve 1 "0-$((threads - 1))" "$threads"
    # Fewer callers for long texts, so that none waits longer than max_wait allows.
    for pieces in 16 64; do row "$threads thread(s)" "$pieces" 32; done
    for pieces in 128 256; do row "$threads thread(s)" "$pieces" 8; done
    stop
done
serve 2 0 1
row "2 replicas of 1 thread" 16 16
row "2 replicas of 1 thread" 128 4
stop
serve 1 0 1
row "1 thread, 4 callers" 16 4
stop
echo "load average after: $(cut -d' ' -f1-3 /proc/loadavg)"
