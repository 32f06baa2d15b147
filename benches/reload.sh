#!/usr/bin/env bash
# How much memory `serve` holds while its model is replaced again and again.
#
#   benches/reload.sh [PATH/TO/pointsman] [RELOADS] [RATE]
#
# Resident megabytes before and after each reload (a copy of the default model under another version, as the server sees
# it, three seconds apart), then the peak. With RATE, so many queries a second, no two alike, come in meanwhile.
# glibc's settings are the environment's: run it with and without MALLOC_MMAP_THRESHOLD_.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/release/pointsman}
reloads=${2:-10}
rate=${3:-0}
port=${GRPC_PORT:-50961}
models=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$models"' EXIT

cp -r models/. "$models"
"$binary" serve --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$((port + 1))" --models-dir "$models" \
    --model-poll-interval 500ms --log-filter error >/dev/null 2>&1 &
server=$!
pids+=("$server")
sleep 3
memory_mb() { awk -v key="$1:" '$1 == key { printf "%.0f", $2 / 1024 }' "/proc/$server/status"; }
version() {
    exec 3<>"/dev/tcp/127.0.0.1/$((port + 1))"
    printf 'GET /version HTTP/1.0\r\n\r\n' >&3
    grep -o 'reload-[0-9]*' <&3 || true
    exec 3<&- 3>&-
}

if [[ $rate -gt 0 ]]; then
    "$binary" loadgen --target "http://127.0.0.1:$port" --rate "$rate" --unique --duration "$((reloads * 3 + 3))s" \
        >/dev/null 2>&1 &
    pids+=("$!")
    sleep 2
fi
resident=$(memory_mb VmRSS)
for ((i = 1; i <= reloads; i++)); do
    manifest=$models/default/manifest.toml
    sed "0,/^version = .*/s//version = \"reload-$i\"/" "$manifest" >"$manifest.new"
    mv "$manifest.new" "$manifest"
    sleep 3
    [[ $(version) == "reload-$i" ]] || { echo "reload $i did not happen"; exit 1; }
    resident+=" $(memory_mb VmRSS)"
done
echo "resident MB: $resident; peak $(memory_mb VmHWM)"
