#!/usr/bin/env bash
# Starts the real binary as an operator would and asks it for a decision: `tests/smoke.sh target/release/pointsman`.
# Uses grpcurl where it is on the PATH, else the binary's own `route`. Exit code 0: everything answered.
set -euo pipefail

binary=$(realpath "${1:?usage: tests/smoke.sh PATH-OF-THE-BINARY}")
question="Prove that the square root of 2 is irrational"
log=$(mktemp)
server=

fail() {
    echo "smoke: $*" >&2
    sed 's/^/  | /' "$log" >&2
    exit 1
}

finish() {
    if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi
    rm -f "$log"
}
trap finish EXIT

# GET of a path of the admin endpoint, without needing curl.
get() {
    exec 3<>"/dev/tcp/${admin%:*}/${admin##*:}" || return 1
    printf 'GET %s HTTP/1.1\r\nHost: smoke\r\nConnection: close\r\n\r\n' "$1" >&3
    cat <&3
    exec 3>&-
}

# expect WHAT PATTERN: the text on standard input has the pattern.
expect() {
    local text
    text=$(cat)
    grep -q -- "$2" <<<"$text" || fail "$1: no '$2' in: $text"
    echo "smoke: $1: ok"
}

"$binary" --version | expect "version" '^pointsman [0-9]'
"$binary" serve --check-config >/dev/null || fail "--check-config refuses the defaults"
code=0
"$binary" serve --check-config --listen nonsense 2>/dev/null || code=$?
[ "$code" = 64 ] || fail "--check-config exits $code for a bad address, not 64"
code=0
"$binary" route " " 2>/dev/null || code=$?
[ "$code" = 64 ] || fail "route exits $code for an empty query, not 64"
echo "smoke: exit codes: ok"

"$binary" serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 2>"$log" &
server=$!
# The addresses are in the summary, which is printed once the service is warm.
for _ in $(seq 600); do
    admin=$(sed -n 's|^admin *http://\([^/]*\)/.*|\1|p' "$log")
    [ -z "$admin" ] || break
    kill -0 "$server" 2>/dev/null || fail "the server ended before it was ready"
    sleep 0.1
done
[ -n "$admin" ] || fail "the server was not ready within a minute"
grpc=$(sed -n 's|^gRPC *||p' "$log")
get /readyz | expect "/readyz" '^HTTP/1.1 200'
get /version | expect "/version" '"classifier"'
get /metrics | expect "/metrics" '^pointsman_policy_info{'

if command -v grpcurl >/dev/null 2>&1; then
    grpcurl -plaintext "$grpc" list | expect "grpcurl list" '^pointsman.v1.Router$'
    grpcurl -plaintext "$grpc" describe pointsman.v1.Router.Route | expect "grpcurl describe" 'RouteRequest'
    grpcurl -plaintext "$grpc" grpc.health.v1.Health/Check | expect "grpcurl health" 'SERVING'
    grpcurl -plaintext -d "{\"query\": \"$question\"}" "$grpc" pointsman.v1.Router/Route |
        expect "grpcurl Route" '"tier": "complex"'
    code=0
    grpcurl -plaintext -d '{"query": ""}' "$grpc" pointsman.v1.Router/Route >/dev/null 2>&1 || code=$?
    [ "$code" != 0 ] || fail "an empty query is answered"
    get /metrics | expect "metrics of the requests" '^pointsman_requests_total{method="Route",code="Ok"} 1'
else
    echo "smoke: grpcurl is not on the PATH: the binary's own route answers instead"
    "$binary" route --json "$question" | expect "route" '"tier": "complex"'
fi

kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
[ "$code" = 0 ] || fail "the server exits $code on SIGTERM"
echo "smoke: stops on SIGTERM: ok"
