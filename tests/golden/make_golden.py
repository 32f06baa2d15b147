#!/usr/bin/env python3
"""Makes embeddings.json: what the upstream f32 model says of 24 texts.

A plain numpy forward pass in float64, sharing no code with Pointsman or candle, so that the
two can only agree by both being right. Needs numpy and tokenizers:

    python3 make_golden.py FOLDER_WITH_UPSTREAM_MODEL > embeddings.json
"""
import json
import math
import struct
import sys

import numpy as np
from tokenizers import Tokenizer

TEXTS = [
    "a",
    "hello",
    "What is the capital of France?",
    "Prove that the square root of 2 is irrational",
    "translate 'good morning' into Japanese",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3;",
    "Ünïcödé ÀCCENTS are stripped, naïve café",
    "日本の首都はどこですか。",
    "🙂🙃 emoji only 🎉",
    "thx!!! u r gr8",
    "Write a haiku about a railway pointsman at dawn.",
    "If all bloops are razzies and all razzies are lazzies, are all bloops lazzies?",
    "Summarize the following meeting notes in three bullet points: budget was approved, the launch moved to May, "
    "and Dana will find a new vendor for the printed guides before the end of the month.",
    "Compute the integral of x^2 * e^x dx from 0 to 1, showing each step of the integration by parts.",
    "ERROR 2024-05-02 10:15:32 worker-3 connection reset by peer (os error 104) after 3 retries",
]
# Lengths up to the sequence limit, and odd ones between.
WORDS = ("the quick brown fox jumps over the lazy dog while seven wizards quietly mix drinks for every "
         "guest of a very small hotel near the old harbour").split()
for n_words in (40, 63, 64, 65, 127, 128, 200, 254):
    TEXTS.append(" ".join(WORDS[i % len(WORDS)] for i in range(n_words)))


def load_safetensors(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = file.read()
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__" or info["dtype"] != "F32":
            continue
        start, end = info["data_offsets"]
        tensors[name] = np.frombuffer(data[start:end], dtype="<f4").reshape(info["shape"]).astype(np.float64)
    return tensors


erf = np.vectorize(math.erf)


def layer_norm(x, w, prefix):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-12) * w[prefix + ".weight"] + w[prefix + ".bias"]


def dense(x, w, prefix):
    return x @ w[prefix + ".weight"].T + w[prefix + ".bias"]


def embed(ids, w, config):
    n, heads = len(ids), config["num_attention_heads"]
    size = config["hidden_size"] // heads
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:n]
    x = layer_norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}."
        q, k, v = (dense(x, w, f"{layer}attention.self.{name}").reshape(n, heads, size).transpose(1, 0, 2)
                   for name in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        context = (weights @ v).transpose(1, 0, 2).reshape(n, -1)
        x = layer_norm(dense(context, w, layer + "attention.output.dense") + x, w, layer + "attention.output.LayerNorm")
        inner = dense(x, w, layer + "intermediate.dense")
        inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
        x = layer_norm(dense(inner, w, layer + "output.dense") + x, w, layer + "output.LayerNorm")
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)


def main():
    folder = sys.argv[1]
    weights = load_safetensors(folder + "/model.safetensors")
    with open(folder + "/config.json", encoding="utf-8") as file:
        config = json.load(file)
    tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert len(ids) <= 256, (len(ids), text)
        rows.append({"text": text, "ids": ids, "embedding": [round(float(v), 7) for v in embed(ids, weights, config)]})
    json.dump(rows, sys.stdout, ensure_ascii=False, separators=(",", ":"))


main()
