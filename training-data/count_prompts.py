#!/usr/bin/env python3
"""Writes the table of own prompts per intent and tier into README.md; with --check only says whether it is current."""

import collections
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
TIERS = ["simple", "medium", "complex"]
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"


def table():
    """The table as Markdown."""
    counts, soft, total = collections.Counter(), collections.Counter(), collections.Counter()
    for path in sorted((HERE / "prompts").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            counts[row["intent"], row["tier"]] += 1
            total[row["tier"]] += 1
            soft[row["intent"]] += "soft" in row
    lines = ["| intent | simple | medium | complex | all | of these with a soft label |", "|---|---:|---:|---:|---:|---:|"]
    for intent in sorted(soft):
        cells = [counts[intent, tier] for tier in TIERS]
        lines.append(f"| `{intent}` | {' | '.join(map(str, cells))} | {sum(cells)} | {soft[intent]} |")
    sums = [total[tier] for tier in TIERS]
    lines.append(f"| all | {' | '.join(map(str, sums))} | {sum(sums)} | {sum(soft.values())} |")
    return "\n".join(lines) + "\n"


def main():
    readme = HERE / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = re.sub(f"{BEGIN}.*?{END}", lambda _: BEGIN + table() + END, old, flags=re.DOTALL)
    if "--check" in sys.argv:
        sys.exit(None if new == old else "README.md is not current; run without --check")
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
