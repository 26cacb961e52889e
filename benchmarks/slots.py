"""What slots cost: the base, the same with constant adapters, and with slots, side by side in one run.

    python benchmarks/slots.py model.pt            # a torch archive, a Hugging Face folder or an ONNX file
    python benchmarks/slots.py model.onnx --rounds 60 --bottleneck 64 --threads 1

The variants take turns call by call, so that whatever else the machine does meets all of them alike. With one thread
the time is that of the processor, without the time in which others had it; with more it is that of the clock. Ratios
are of the fastest call (min) and of the median call. Absolute times say more about the machine than about the graphs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.kinds import classification_head, houlsby
from adapter_export.onnx.adapter_file import write_adapter_file
from adapter_export.onnx.base import OnnxBase, open_onnx
from adapter_export.onnx.identity import model_version
from adapter_export.onnx.insert import insert_slots
from adapter_export.onnx.slots import plan_slots, slot_tensors
from adapter_export.onnx.weights import write_model
from adapter_export.reference.inputs import input_cases

BATCHES, LENGTHS = (1, 8), (16, 128)
LABELS = ("a", "b", "c", "d", "e", "f")
WARM_UP = 3

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Variant:
    """A graph and the tensors that each call feeds it beside the inputs."""

    name: str
    session: ort.InferenceSession
    tensors: Mapping[str, ort.OrtValue]

    def call(self, inputs: Mapping[str, np.ndarray]) -> Call:
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        feeds.update(self.tensors)
        names = [output.name for output in self.session.get_outputs()]
        return lambda: self.session.run_with_ort_values(names, feeds)


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = _open(arguments.model, folder)
        adapter = _random_houlsby(base, arguments.bottleneck)
        variants = _variants(base, adapter, folder, arguments.threads)
        _print_machine(base, arguments.bottleneck, arguments.threads)
        _print_speed(
            base, variants, arguments.rounds, time.thread_time if arguments.threads == 1 else time.perf_counter
        )
        _print_swap(base, adapter, folder, arguments.threads)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=30, help="calls of each variant at each shape")
    parser.add_argument("--bottleneck", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _open(model: Path, folder: Path) -> OnnxBase:
    if model.suffix == ".onnx":
        return open_onnx(model)
    from adapter_export.torch.base import load_base
    from adapter_export.torch.huggingface import open_folder
    from adapter_export.torch.to_onnx import export_onnx

    export_onnx(open_folder(model) if model.is_dir() else load_base(model), folder / "exported" / "base.onnx")
    return open_onnx(folder / "exported" / "base.onnx")


def _random_houlsby(base: OnnxBase, bottleneck: int) -> Adapter:
    kind, head = houlsby(), classification_head()
    placements = kind.with_widths(b=bottleneck).placements(base.sites)
    head_sizes = {"d": base.sites.width, "classes": len(LABELS)}
    shapes = {
        f"{site}.{name}": shape
        for site, placement in placements.items()
        for name, shape in kind.graph.parameter_shapes(placement.widths).items()
    }
    shapes |= {f"{HEAD}.{name}": shape for name, shape in head.parameter_shapes(head_sizes).items()}
    rng = np.random.default_rng(0)
    weights = {name: (rng.standard_normal(shape) * 0.05).astype(np.float32) for name, shape in shapes.items()}
    full_head = Head(head, head_sizes, LABELS)
    return Adapter("a", kind.name, base.fingerprint, kind.graphs, placements, weights, full_head)


def _variants(base: OnnxBase, adapter: Adapter, folder: Path, threads: int) -> list[Variant]:
    plan = plan_slots([adapter], base.sites)
    tensors = slot_tensors(plan, adapter)
    slots, constants = insert_slots(base, plan), _with_constants(insert_slots(base, plan), tensors)
    values = {name: ort.OrtValue.ortvalue_from_numpy(tensor) for name, tensor in tensors.items()}
    sessions = {
        name: _session(model, folder / name, threads)
        for name, model in (("base", base.model.clone()), ("constants", constants), ("slots", slots))
    }
    return [
        Variant("base", sessions["base"], {}),
        Variant("constant adapters", sessions["constants"], {}),
        Variant("slots, adapter fed", sessions["slots"], values),
        Variant("slots, no adapter", sessions["slots"], {}),
    ]


def _with_constants(model: ir.Model, tensors: Weights) -> ir.Model:
    for name, tensor in tensors.items():
        value = model.graph.initializers[name]
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(tensor, name=name)
        value.shape = ir.Shape(tensor.shape)
    return model


def _session(model: ir.Model, folder: Path, threads: int) -> ort.InferenceSession:
    folder.mkdir(exist_ok=True)
    write_model(model, folder / "model.onnx")
    return _open_session(folder, threads)


def _open_session(folder: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def _print_machine(base: OnnxBase, bottleneck: int, threads: int) -> None:
    print(f"{platform.platform()}, {platform.machine()}, {_processor()}, {os.cpu_count()} cores, {threads} thread(s)")
    print(f"onnxruntime {ort.__version__}, python {platform.python_version()}")
    print(f"{base.path.name}: {len(base.sites.sublayers)} sites of width {base.sites.width}, Houlsby {bottleneck}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _print_speed(base: OnnxBase, variants: Sequence[Variant], rounds: int, clock: Clock) -> None:
    print(f"\n{'batch × tokens':<16}{'variant':<22}{'min ms':>9}{'median ms':>11}{'min':>8}{'median':>8}   (× base)")
    for batch in BATCHES:
        for tokens in LENGTHS:
            calls = [variant.call(_inputs(base, batch, tokens)) for variant in variants]
            times = _interleaved(calls, rounds, clock)
            for variant, own in zip(variants, times, strict=True):
                least, middle = min(own) * 1e3, statistics.median(own) * 1e3
                ratios = f"{min(own) / min(times[0]):8.3f}{statistics.median(own) / statistics.median(times[0]):8.3f}"
                print(f"{f'{batch} × {tokens}':<16}{variant.name:<22}{least:9.2f}{middle:11.2f}{ratios}")


def _inputs(base: OnnxBase, batch: int, tokens: int) -> Mapping[str, np.ndarray]:
    batches = {record.axes[0] for record in base.inputs if record.axes}
    axes = {axis for record in base.inputs for axis in record.axes if isinstance(axis, str)}
    shape = {axis: batch if axis in batches else tokens for axis in axes}
    return input_cases(base.inputs, seed=0, shapes=[shape])[0].arrays


def _interleaved(calls: Sequence[Call], rounds: int, clock: Clock = time.perf_counter) -> list[list[float]]:
    """Seconds of every call; the variants take turns, and each round begins with another one."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(WARM_UP + rounds):
        for place in range(len(calls)):
            index = (place + turn) % len(calls)
            started = clock()
            calls[index]()
            if turn >= WARM_UP:
                times[index].append(clock() - started)
    return times


def _print_swap(base: OnnxBase, adapter: Adapter, folder: Path, threads: int) -> None:
    path = folder / "a.onnx_adapter"
    plan = plan_slots([adapter], base.sites)
    write_adapter_file(path, slot_tensors(plan, adapter), model_version(base, plan))
    swaps = [lambda: ort.LoraAdapter().Load(str(path)), lambda: _open_session(folder / "slots", threads)]
    loads, opens = _interleaved(swaps, 7)
    load, opening = statistics.median(loads) * 1e3, statistics.median(opens) * 1e3
    size = path.stat().st_size / 1e6
    print(f"\nload an adapter of {size:.1f} MB: {load:.2f} ms; open a second session: {opening:.0f} ms", end="")
    print(f", {opening / load:,.0f} times as long")
    print("switch to a loaded adapter: nothing; it is named in the call")


if __name__ == "__main__":
    main()
