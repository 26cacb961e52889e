"""Memory and time of a build from a large base, compared with copying its weights.

    python benchmarks/large_base.py                # 4 GB
    python benchmarks/large_base.py --gigabytes 1 --folder /a/disk/with/room

A transformer with random weights is streamed to disk as ONNX with external data, the command builds a bundle with one
adapter from it in a separate process, and everything is removed again. `VmHWM` is the most memory that was resident,
pages of mapped files among it. It and its two parts, anonymous memory and pages of files, are read every 20 ms; the
largest of one part need not fall together with that of the other.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from kit.watch import Peak
from onnx import TensorProto, helper

from adapter_export.format.adapter_files import write_adapter
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby
from adapter_export.onnx_backend.base.onnx_base import open_onnx

WIDTH, VOCABULARY, SEED, BOTTLENECK = 2048, 8192, 0, 16
GIGABYTE = 10**9

Shape = tuple[int, ...]


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="large-base-") as name:
        folder = Path(name)
        size = int(arguments.gigabytes * GIGABYTE)
        free = shutil.disk_usage(folder).free
        if free < 2.5 * size:
            sys.exit(f"{free / GIGABYTE:.1f} GB are free in {folder.parent}; {2.5 * size / GIGABYTE:.1f} GB are needed")
        model = write_base(folder, size, arguments.width)
        weights = model.with_name("model.onnx.data")
        print(f"base: {weights.stat().st_size / GIGABYTE:.2f} GB of weights, width {arguments.width}")
        adapter = write_random_adapter(model, folder / "adapter")
        print(f"plain copy of the weights: {copy_seconds(weights):.1f} s")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, peak = build(model, adapter, folder / "bundle", arguments.options)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        computing = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        linked = (folder / "bundle" / "base.bin").samefile(weights)
        print(f"build: {seconds:.1f} s, of all processors {computing:.1f} s")
        print(f"base.bin {'is a hard link' if linked else 'is a copy'}")
        print(f"peak anonymous memory: {peak.anonymous / 1e6:.0f} MB")
        print(f"peak resident memory: {peak.resident / 1e6:.0f} MB, of files at most {peak.of_files / 1e6:.0f} MB")
        print(f"again, plain copy of the weights: {copy_seconds(weights):.1f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--folder", type=Path, help="where the files go; the folder for temporary files if not given")
    parser.add_argument("options", nargs="*", help="for `adapter-export build`, behind `--`")
    return parser.parse_args()


def write_base(folder: Path, size: int, width: int) -> Path:
    """Write a pre-norm transformer with gated attention over the tokens, of about `size` bytes.

    Args:
        folder: where `model.onnx` and `model.onnx.data` go.
        size: of the weights, in bytes.
        width: of the hidden state.
    """
    layers = max(1, round((size / 4 - VOCABULARY * width) / (12 * width * width)))
    shapes = dict(_shapes(layers, width))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])]
    outputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "tokens", width])]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    for layer in range(layers):
        nodes += _layer(layer)
    nodes.append(helper.make_node("LayerNormalization", [f"x{layers}", "norm", "norm_bias"], ["hidden"], "norm"))
    graph = helper.make_graph(nodes, "large", inputs, outputs, _write_weights(shapes, folder / "model.onnx.data"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


def _shapes(layers: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield "table", (VOCABULARY, width)
    for layer in range(layers):
        for name in ("query", "key", "value", "output"):
            yield f"l{layer}.{name}", (width, width)
        yield f"l{layer}.up", (width, 4 * width)
        yield f"l{layer}.down", (4 * width, width)
        for name in ("norm1", "norm1_bias", "norm2", "norm2_bias"):
            yield f"l{layer}.{name}", (width,)
    yield from (("norm", (width,)), ("norm_bias", (width,)))


def _layer(n: int) -> list[onnx.NodeProto]:
    def op(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), [f"l{n}/{output}"], f"l{n}/{output}", **attributes)

    w, v = f"l{n}.", f"l{n}/"
    return [
        op("LayerNormalization", f"x{n} {w}norm1 {w}norm1_bias", "in"),
        op("MatMul", f"{v}in {w}query", "q"),
        op("MatMul", f"{v}in {w}key", "k"),
        op("MatMul", f"{v}in {w}value", "v"),
        op("Transpose", f"{v}k", "kt", perm=[0, 2, 1]),
        op("MatMul", f"{v}q {v}kt", "scores"),
        op("Softmax", f"{v}scores", "probabilities", axis=-1),
        op("MatMul", f"{v}probabilities {v}v", "context"),
        op("MatMul", f"{v}context {w}output", "attended"),
        op("Add", f"x{n} {v}attended", "after"),
        op("LayerNormalization", f"{v}after {w}norm2 {w}norm2_bias", "between"),
        op("MatMul", f"{v}between {w}up", "up"),
        op("Relu", f"{v}up", "active"),
        op("MatMul", f"{v}active {w}down", "down"),
        helper.make_node("Add", [f"{v}after", f"{v}down"], [f"x{n + 1}"], f"{v}add"),
    ]


def _write_weights(shapes: dict[str, Shape], path: Path) -> list[TensorProto]:
    rng = np.random.default_rng(SEED)
    tensors = []
    with path.open("wb") as file:
        for name, shape in shapes.items():
            array = rng.standard_normal(shape, np.float32) * np.float32(_deviation(name, shape))
            tensors.append(_external(name, shape, path.name, file.tell(), array.nbytes))
            file.write((array + 1 if name.endswith(("norm", "norm1", "norm2")) else array).data)
    return tensors


def _deviation(name: str, shape: Shape) -> float:
    """That of the weights: activations stay near 1, and so do attention scores, which nothing else scales."""
    if len(shape) == 1:
        return 0.1
    return 1.0 if name == "table" else 1 / shape[0] if name.endswith("query") else shape[0] ** -0.5


def _external(name: str, shape: Shape, location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write_random_adapter(model: Path, folder: Path) -> Path:
    """Write a Houlsby adapter of the base at all sites, with random weights."""
    base = open_onnx(model)
    kind, rng = houlsby(), np.random.default_rng(SEED)
    placements = kind.with_widths(b=BOTTLENECK).placements(base.sites)
    weights = {
        f"{site}.{name}": (rng.standard_normal(shape) * 0.02).astype(np.float32)
        for site, placement in placements.items()
        for name, shape in kind.graph.parameter_shapes(placement.widths).items()
    }
    write_adapter(Adapter("random", kind.name, base.fingerprint, kind.graphs, placements, weights, None), folder)
    return folder


def copy_seconds(weights: Path) -> float:
    """The time of a plain copy, in seconds."""
    copy = weights.with_name("copy")
    start = time.perf_counter()
    shutil.copyfile(weights, copy)
    seconds = time.perf_counter() - start
    copy.unlink()
    return seconds


def build(model: Path, adapter: Path, out: Path, options: Sequence[str] = ()) -> tuple[float, Peak]:
    """Run `adapter-export build` and watch it: the time in seconds, and the most memory."""
    command = [sys.executable, "-m", "adapter_export", "build", str(model), "--adapters", str(adapter), "-o", str(out)]
    peak, start = Peak(), time.perf_counter()
    with subprocess.Popen([*command, *options], env={**os.environ, "PYTHONIOENCODING": "utf-8"}) as process:
        while process.poll() is None:
            peak.read(process.pid)
            time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak


if __name__ == "__main__":
    main()
