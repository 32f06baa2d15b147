#!/usr/bin/env python3
"""Prints how far a second, blind reading of the own test prompts (audit.jsonl) agrees with their labels."""

import json
import pathlib

HERE = pathlib.Path(__file__).parent
TIERS = ["simple", "medium", "complex"]


def lines(path):
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main():
    rows = {row["id"]: row for path in sorted((HERE / "prompts").glob("*.jsonl")) for row in lines(path)}
    audit = [(verdict, rows[verdict["id"]]) for verdict in lines(HERE / "audit.jsonl") if verdict["id"] in rows]
    fair = [v["intent"] == r["intent"] or r.get("soft", {}).get(v["intent"], 0) >= 0.4 for v, r in audit]
    second = [ok or v.get("second") == r["intent"] for ok, (v, r) in zip(fair, audit)]
    steps = [abs(TIERS.index(v["tier"]) - TIERS.index(r["tier"])) for v, r in audit]
    share = lambda hits: f"{100 * sum(hits) / len(audit):.1f} %"
    print(f"{len(audit)} prompts: intent agrees {share(fair)}, or as a second choice {share(second)}; "
          f"tier agrees {share([s == 0 for s in steps])}, within one step {share([s <= 1 for s in steps])}")


if __name__ == "__main__":
    main()
