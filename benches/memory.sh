#!/usr/bin/env bash
# Resident memory of a server that is asked for minutes on end: classified, cached and decided by a rule, until everything
# that is remembered (classifications, languages, decisions awaiting outcomes) is as full as it gets.
#
#   benches/memory.sh [PATH/TO/pointsman] [LIMIT_MB]
#
# One line a load: decisions so far, megabytes resident. Ends with 1 where it is ever over the limit (250).
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/release/pointsman}
limit=${2:-250}
port=${PORT:-50981}
target=http://127.0.0.1:$port
made=0
over=0

"$binary" serve --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$((port + 1))" --log-filter warn >/dev/null 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null || true' EXIT

load() { "$binary" loadgen --target "$target" --json --warmup 0s "$@"; }

ready=
for ((try = 0; try < 200; try++)); do
    if load --concurrency 1 --duration 1ms >/dev/null 2>&1; then ready=yes && break; fi
    sleep 0.05
done
[[ -n $ready ]] || { echo "the server did not start" >&2; exit 1; }

# row NAME LOADGEN_ARGUMENTS...
row() {
    local name=$1 report count mb
    shift
    report=$(load "$@")
    count=$(sed -E 's/.*"answered":([0-9]+).*/\1/' <<<"$report" | tail -n 1)
    made=$((made + count))
    mb=$(awk '$1 == "VmRSS:" { printf "%.0f", $2 / 1000 }' "/proc/$pid/status")
    printf '%-32s %9d decisions so far %5d MB\n' "$name" "$made" "$mb"
    if ((mb > limit)); then over=1; fi
}

prompt="My SQL query is slow when I join two large tables, what can I do?"
row "ready" --concurrency 1 --prompts "thanks a lot!" --duration 1ms
row "one caller, classified" --concurrency 1 --prompts "$prompt" --unique --duration 5s
row "64 callers, classified" --concurrency 64 --prompts "$prompt" --unique --duration 20s
row "64 callers, cached" --concurrency 64 --prompts "$prompt" --duration 5s
for _ in 1 2 3 4; do row "64 callers, by a rule" --concurrency 64 --prompts "thanks a lot!" --duration 5s; done
awk '$1 == "VmHWM:" { printf "at most %.0f MB\n", $2 / 1000 }' "/proc/$pid/status"
exit "$over"
