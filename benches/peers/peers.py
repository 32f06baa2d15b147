"""Milliseconds a batch of all-MiniLM-L6-v2 on this CPU: this repository's encoder beside ONNX Runtime and OpenVINO, in one run.

    python3 -m venv .venv && .venv/bin/pip install -r benches/peers/requirements.txt
    .venv/bin/python benches/peers/peers.py [--threads 2] [--rounds 3] [--json FILE]

All read models/all-MiniLM-L6-v2. Both peers run as their documentation advises for speed: ONNX Runtime with its transformer
fusions and dynamic 8-bit products (weights by channel), OpenVINO with NNCF's 8-bit post-training quantisation for transformers.
Rows of a batch have one length, so that nobody pays for padding, but for `mixed`, where peers must pad to the longest. Contestants
take turns, round by round, each alone on the machine; a cell is the least of its rounds' medians. `ratio` is ours to the better peer.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
SHAPES = [(1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (8, 16), (32, 16), (32, 64)]
MIXED = [4, 9, 17, 24, 8, 33, 14, 11, 51, 19, 7, 28, 16, 90, 13, 22, 10, 40, 15, 128, 18, 12, 64, 9, 21, 31, 14, 200, 11, 26, 17, 38]
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def feeds():
    """Inputs by name of shape; `mixed` is padded to its longest row and masked."""
    rng = np.random.default_rng(7)

    def feed(lengths):
        shape = (len(lengths), max(lengths))
        mask = (np.arange(shape[1])[None, :] < np.array(lengths)[:, None]).astype(np.int64)
        ids = rng.integers(1_000, 30_000, shape).astype(np.int64) * mask
        return dict(zip(INPUTS, (ids, mask, np.zeros(shape, np.int64))))

    table = {f"{rows}x{length}": feed([length] * rows) for rows, length in SHAPES}
    return table | {"mixed": feed(MIXED)}


def to_onnx(folder):
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(MODEL, attn_implementation="eager", dtype=torch.float32).eval()

    class LastHidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = model

        def forward(self, *inputs):
            return self.bert(**dict(zip(INPUTS, inputs))).last_hidden_state

    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in INPUTS)
    path = str(folder / "exported.onnx")
    axes = {name: {0: "rows", 1: "length"} for name in [*INPUTS, "hidden"]}
    torch.onnx.export(LastHidden(), example, path, input_names=INPUTS, output_names=["hidden"], opset_version=17, dynamo=False, dynamic_axes=axes)
    return path


def onnx_runtime(exported, folder, threads):
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    fused, int8 = str(folder / "fused.onnx"), str(folder / "int8.onnx")
    optimizer.optimize_model(exported, "bert", num_heads=12, hidden_size=384, optimization_options=FusionOptions("bert"), opt_level=1).save_model_to_file(fused)
    quantize_dynamic(fused, int8, per_channel=True, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
    for name, path in (("ONNX Runtime f32", fused), ("ONNX Runtime int8", int8)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        wanted = [tensor.name for tensor in session.get_inputs()]
        yield name, lambda feed, session=session, wanted=wanted: session.run(None, {key: feed[key] for key in wanted})


def open_vino(exported, threads):
    import nncf
    import openvino

    core = openvino.Core()
    plain = core.read_model(exported)
    rng = np.random.default_rng(1)
    samples = [dict(zip(INPUTS, (rng.integers(1_000, 30_000, (1, 24)), np.ones((1, 24), np.int64), np.zeros((1, 24), np.int64)))) for _ in range(20)]
    int8 = nncf.quantize(plain, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
    for name, model, hint in (("OpenVINO bf16", plain, {"INFERENCE_PRECISION_HINT": "bf16"}), ("OpenVINO int8", int8, {})):
        request = core.compile_model(model, "CPU", hint | {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}).create_infer_request()
        yield name, lambda feed, request=request: request.infer(feed)


def median_ms(call, seconds):
    for _ in range(5):
        call()
    times, begun = [], time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2] * 1e3


def ours(precision, threads, seconds):
    command = ["cargo", "bench", "--quiet", "--bench", "shapes", "--", precision, str(threads), str(seconds)]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.strip().splitlines()[-1])["ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell and round")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    ours("int8", args.threads, 0.01)  # builds it, so that no round does
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        exported = to_onnx(folder)
        peers = dict([*onnx_runtime(exported, folder, args.threads), *open_vino(exported, args.threads)])
        inputs, table = feeds(), {}

        def note(name, shape, value):
            cell = table.setdefault(shape, {})
            cell[name] = min(value, cell.get(name, math.inf))

        for _ in range(args.rounds):
            for precision in ("int8", "f32"):
                for shape, value in ours(precision, args.threads, args.seconds).items():
                    note(f"Pointsman {precision}", shape, value)
            for name, call in peers.items():
                for shape, feed in inputs.items():
                    note(name, shape, median_ms(lambda: call(feed), args.seconds))
    names = ["Pointsman int8", "Pointsman f32", *peers]
    print("| batch |", " | ".join(names), "| ratio |")
    print("|---" * (len(names) + 2) + "|")
    ratios = {}
    for shape, row in table.items():
        ratios[shape] = row["Pointsman int8"] / min(row["ONNX Runtime int8"], row["OpenVINO int8"])
        print(f"| {shape} |", " | ".join(f"{row[name]:.2f}" for name in names), f"| {ratios[shape]:.2f} |")
    even = [ratio for shape, ratio in ratios.items() if shape != "mixed"]
    print(f"\nratio: largest {max(even):.2f}, geometric mean {math.exp(sum(map(math.log, even)) / len(even)):.2f}; mixed {ratios['mixed']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
