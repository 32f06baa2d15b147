#!/usr/bin/env bash
# The figures of "Route over gRPC" in benches/README.md: server on one core, generator on another, loopback.
#
#   benches/route.sh [PATH/TO/pointsman] [SECONDS]
#
# With `h2load` (Debian: nghttp2-client) on the path, its figures are printed beside ours.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/release/pointsman}
seconds=${2:-20}
server_core=${SERVER_CORE:-0}
load_core=${LOAD_CORE:-1}
grpc_port=${GRPC_PORT:-50951}
admin_port=${ADMIN_PORT:-50952}
rates=${RATES:-50,100,150,200,250,300,350,400}
target=http://127.0.0.1:$grpc_port
body=$(mktemp)
pid=

stop() {
    if [[ -n $pid ]]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        pid=
    fi
}
trap 'stop; rm -f "$body"' EXIT

# serve CACHE_ENTRIES: waits until the health of the whole server is good enough for one answer.
serve() {
    taskset -c "$server_core" "$binary" serve --listen "127.0.0.1:$grpc_port" \
        --admin-listen "127.0.0.1:$admin_port" --decision-cache-entries "$1" --log-filter warn >/dev/null 2>&1 &
    pid=$!
    for ((try = 0; try < 200; try++)); do
        load --concurrency 1 --duration 1ms --warmup 0s >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "the server did not start" >&2
    exit 1
}

load() { taskset -c "$load_core" "$binary" loadgen --target "$target" "$@"; }
measure() { load --duration "${seconds}s" --warmup 3s "$@"; }
title() { printf '\n## %s\n' "$*"; }

echo "load average before: $(cut -d' ' -f1-3 /proc/loadavg)"

serve 0
title "classified, closed loop, concurrency 1"
measure --concurrency 1 --unique
title "classified, closed loop, concurrency 32"
measure --concurrency 32 --unique --connections 4
title "classified, open loop"
measure --rates "$rates" --unique --connections 4
title "decided by a rule, closed loop, concurrency 1 and 32"
measure --concurrency 1,32 --prompts "thanks a lot!"

if command -v h2load >/dev/null 2>&1; then
    text="What is the capital of Australia and how many people live there?"
    load --write-body "$body" --prompts "$text"
    for concurrency in 1 32; do
        title "h2load and loadgen, the same text, concurrency $concurrency, one connection"
        taskset -c "$load_core" h2load --warm-up-time 3 -D "$seconds" -c 1 -m "$concurrency" -d "$body" \
            -H 'content-type: application/grpc' -H 'te: trailers' "$target/pointsman.v1.Router/Route" |
            grep -E '^(finished|requests|time for request)'
        measure --concurrency "$concurrency" --prompts "$text"
    done
fi
stop

serve 100000
title "answered from the decision cache, closed loop, concurrency 1 and 32"
measure --concurrency 1,32
stop

printf '\nload average after: %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
