#!/usr/bin/env python3
"""Prints the table of docs/decisions.md: runs `pointsman route --json` on every prompt of decisions.jsonl.

    python3 docs/decisions.py target/release/pointsman >> docs/decisions.md
"""
import json
import pathlib
import subprocess
import sys

rows = [json.loads(line) for line in open(pathlib.Path(__file__).with_name("decisions.jsonl"), encoding="utf-8")]
print("| prompt | intent (P) | tier (difficulty) | model, then fallbacks | decided by | right? |")
print("|---|---|---|---|---|---|")
right_intents = right_tiers = 0
for row in rows:
    out = subprocess.run([sys.argv[1], "route", "--json", "--", row["text"]], check=True, capture_output=True)
    decision = json.loads(out.stdout)
    intent, tier = decision["intent"]["label"], decision["complexity"]["tier"]
    wrong = []
    if intent != row["intent"]:
        wrong.append(f"intent should be {row['intent']}")
    order = ["simple", "medium", "complex"]
    if order.index(tier) < order.index(row["tier"]):
        wrong.append(f"under-routed: {row['tier']} is needed")
    if order.index(tier) > order.index(row["tier"]):
        wrong.append(f"over-routed: {row['tier']} would do")
    right_intents += intent == row["intent"]
    right_tiers += tier == row["tier"]
    models = ", ".join([decision["selected"]["model"]] + [f["candidate"]["model"] for f in decision["fallbacks"]])
    text = row["text"].replace("\n", " ").replace("|", "\\|")
    text = text if len(text) <= 110 else text[:107] + "..."
    print(f"| {text} | {intent} ({decision['intent']['probability']:.2f}) | {tier} ({decision['complexity']['difficulty']:.2f}) "
          f"| {models} | {decision['source']} | {'yes' if not wrong else '; '.join(wrong)} |")
print(f"\nIntent right: {right_intents} of {len(rows)}; tier as judged: {right_tiers} of {len(rows)}.")
