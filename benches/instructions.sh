#!/usr/bin/env bash
# Instructions of a pass of the 8-bit encoder, counted by callgrind: the same on a busy machine as on a quiet one.
#
# Fails when a shape costs over 2 % more than benches/instructions.txt says; `--write` writes that file anew.
# Valgrind knows no AVX-512, so what is counted is the AVX2 path, with the parts that all paths share.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "valgrind is not installed" >&2; exit 1; }

binary=$(cargo bench --locked --bench instructions --no-run --message-format=json 2>/dev/null |
    grep -o '"executable":"[^"]*instructions-[^"]*"' | cut -d'"' -f4 | tail -n 1)
counts=$(mktemp -d)
trap 'rm -rf "$counts"' EXIT
passes=5
for shape in "1 8" "1 16" "1 64" "8 16"; do
    # shellcheck disable=SC2086
    valgrind --tool=callgrind --callgrind-out-file="$counts/out" --instr-atstart=yes --collect-atstart=no \
        --toggle-collect='*counted_pass*' "$binary" $shape $passes >"$counts/log" 2>&1 || { cat "$counts/log" >&2; exit 1; }
    total=$(grep -oP '^(summary|totals): \K[0-9]+' "$counts/out" | head -n 1)
    echo "${shape/ /x} $((total / passes))"
done | tee "$counts/table"

reference=benches/instructions.txt
if [[ "${1:-}" == --write ]]; then
    cp "$counts/table" "$reference"
    exit
fi
join "$reference" "$counts/table" | awk '
    { change = 100 * ($3 / $2 - 1); printf "%s: %+.2f %%\n", $1, change; if (change > 2) worse = 1 }
    END { if (worse) { print "over 2 % more instructions than " "'"$reference"'" > "/dev/stderr"; exit 1 } }'
