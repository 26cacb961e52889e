"""Cost and savings of base precisions: MiniLM with a Houlsby adapter on TREC, all precisions in one run.

    python benchmarks/precision.py                     # trains the adapter first, about two minutes on two cores
    python benchmarks/precision.py --adapter trec      # an adapter of `examples/demo.py`, or of `adapter-export train`

Needs what `make setup` installs. Right answers are counted on the test rows of the demo's split, which no training has
seen, in batches of 16; agreement is with the bundle in float32 on the same rows. Times are of one thread at 8 rows of
64 tokens: calls of the variants are interleaved, so that other load affects all of them alike, and the ratio is of the
median call.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.build_plan import BuildPlan
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.quantise.optimize import optimize_base
from adapter_export.onnx_backend.quantise.precision import convert_precision
from adapter_export.runtime import Bundle, Session
from adapter_export.safe_io.output import Output
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.base.huggingface_folder import open_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo_data

BATCH, TIMED = 16, (8, 64)
ROUNDS, WARM_UP = 20, 3
MAX_TOKENS = 128


@dataclass(frozen=True)
class Variant:
    """A way to make the base."""

    name: str
    precision: PrecisionName = "fp32"
    int8_embeddings: bool = False
    float32_activations: bool = False
    optimize: bool = False


VARIANTS = (
    Variant("`fp32`"),
    Variant("`fp32`, `--optimize`", optimize=True),
    Variant("`fp16`", "fp16"),
    Variant("`int8`", "int8"),
    Variant("`int8`, `--optimize`", "int8", optimize=True),
    Variant("`int8-weights`", "int8-weights"),
    Variant("`int8-weights`, `--float32-activations`", "int8-weights", float32_activations=True),
    Variant("`int8-weights`, `--int8-embeddings`", "int8-weights", int8_embeddings=True),
    Variant("`int4-weights`", "int4-weights"),
    Variant("`int4-weights`, `--int8-embeddings`", "int4-weights", int8_embeddings=True),
)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--adapter", type=Path, help="a folder with an adapter for TREC; trained if not given")
    given.add_argument("--epochs", type=int, default=4)
    arguments = given.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo_data.write_splits(demo_data.trec(), folder / "data")
        adapter = read_adapter(arguments.adapter or _train(folder, arguments.epochs))
        torch_base = open_folder(demo_data.base_folder())
        export_onnx(torch_base, folder / "base.onnx")
        tokenizer = Tokenizer.from_json(torch_base.tokenizer or "", MAX_TOKENS)
        bundles = [_build(variant, open_onnx(folder / "base.onnx"), adapter, folder) for variant in VARIANTS]
        _report(bundles, adapter, tokenizer, demo_data.read(folder / "data" / "test.tsv"))


def _train(folder: Path, epochs: int) -> Path:
    data = ("--data", folder / "data/train.tsv", "--validation-data", folder / "data/validation.tsv")
    columns = ("--text", "text", "--label", "label", "--kind", "houlsby", "--bottleneck", 64)
    call = ("train", demo_data.base_folder(), *data, *columns, "--epochs", epochs, "-o", folder / "trec")
    subprocess.run([sys.executable, "-m", "adapter_export", *map(str, call)], check=True)
    return folder / "trec"


def _build(variant: Variant, base: OnnxBase, adapter: Adapter, folder: Path) -> Path:
    out = folder / f"bundle{VARIANTS.index(variant)}"
    work = folder / f"base{VARIANTS.index(variant)}"
    work.mkdir()
    precision = Precision.of(
        variant.precision,
        int8_embeddings=variant.int8_embeddings,
        float32_activations=variant.float32_activations,
    )
    made = convert_precision(base, precision, work)
    if variant.optimize:
        (work / "fused").mkdir()
        made, _ = optimize_base(made, work / "fused")
    cases = input_cases(made.inputs, seed=0, max_tokens=7)
    BuildPlan(made, [adapter], CutRunner(made), cases).run(Output(out))
    return out


def _report(bundles: list[Path], adapter: Adapter, tokenizer: Tokenizer, rows: list[demo_data.Row]) -> None:
    print(f"onnxruntime {ort.__version__}, {platform.machine()}, {os.cpu_count()} cores; {len(rows)} test rows\n")
    sessions = [Bundle.open(bundle).session(threads=1) for bundle in bundles]
    answers = [list(_answers(session, adapter, tokenizer, rows)) for session in sessions]
    times = _times(sessions, adapter)
    print("| base | right | agree with `fp32` | MB | time |\n|---|---|---|---|---|")
    for variant, bundle, found, spent in zip(VARIANTS, bundles, answers, times, strict=True):
        right = sum(answer == label for answer, (_, label) in zip(found, rows, strict=True))
        agree = sum(one == other for one, other in zip(found, answers[0], strict=True)) / len(rows)
        size = sum((bundle / name).stat().st_size for name in ("model.onnx", "base.bin")) / 1e6
        print(f"| {variant.name} | {right:,} | {agree:.3f} | {size:.1f} | {spent / times[0]:.2f} |")


def _answers(session: Session, adapter: Adapter, tokenizer: Tokenizer, rows: list[demo_data.Row]) -> Iterator[str]:
    assert adapter.head is not None
    for start in range(0, len(rows), BATCH):
        texts = [text for text, _ in rows[start : start + BATCH]]
        inputs = tokenizer.batch(texts, ("input_ids", "attention_mask", "token_type_ids"))
        for logits in session.run(inputs, adapter.name)["logits"]:
            yield adapter.head.labels[int(logits.argmax())]


def _times(sessions: list[Session], adapter: Adapter) -> list[float]:
    """Seconds of the median call of each, all of them in turns."""
    ids = np.random.default_rng(0).integers(1000, 20000, TIMED)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    spent: list[list[float]] = [[] for _ in sessions]
    for _ in range(WARM_UP + ROUNDS):
        for session, times in zip(sessions, spent, strict=True):
            began = time.thread_time()
            session.run(inputs, adapter.name)
            times.append(time.thread_time() - began)
    return [statistics.median(times[WARM_UP:]) for times in spent]


if __name__ == "__main__":
    main()
