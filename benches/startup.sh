#!/usr/bin/env bash
# How long `serve` takes to be ready and how much memory it then holds.
#
#   benches/startup.sh [PATH/TO/pointsman] [RUNS]
#
# One line a run: milliseconds from the start of the process to the first "ready" of /readyz, resident memory at that
# moment, and at its peak. The first run may read the model from disk; later ones find it in the page cache.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/release/pointsman}
runs=${2:-5}
grpc_port=${GRPC_PORT:-50951}
admin_port=${ADMIN_PORT:-50952}
pid=

stop() {
    if [[ -n $pid ]]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        pid=
    fi
}
trap stop EXIT

# Whether /readyz says so. bash's own socket, so that no other program's start is part of the time.
is_ready() {
    exec 3<>"/dev/tcp/127.0.0.1/$admin_port" || return 1
    printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
    local status
    read -r status <&3 || status=
    exec 3<&- 3>&-
    [[ $status == *" 200 "* ]]
}

now_ms() { echo $(("${EPOCHREALTIME/./}" / 1000)); }

memory_mb() { awk -v key="$1:" '$1 == key { printf "%.0f", $2 / 1024 }' "/proc/$pid/status"; }

if [[ ! -x $binary ]]; then
    echo "$binary is not there; build it with: cargo build --release" >&2
    exit 64
fi
for ((run = 1; run <= runs; run++)); do
    started=$(now_ms)
    "$binary" serve --listen "127.0.0.1:$grpc_port" --admin-listen "127.0.0.1:$admin_port" >/dev/null 2>&1 &
    pid=$!
    until is_ready 2>/dev/null; do
        kill -0 "$pid" 2>/dev/null || { echo "serve ended before it was ready" >&2; exit 1; }
        if (($(now_ms) - started > 60000)); then
            echo "not ready after 60 s" >&2
            exit 1
        fi
        sleep 0.005
    done
    echo "run $run: ready in $(($(now_ms) - started)) ms, VmRSS $(memory_mb VmRSS) MB, peak $(memory_mb VmHWM) MB"
    stop
done
