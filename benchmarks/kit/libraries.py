"""The half of `alternatives.py` that runs beside AdapterHub, PEFT and optimum, in the environment that they want.

python -m kit.libraries make|measure FOLDER --adapters=N …
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import adapters as adapterhub
import numpy as np
import onnxruntime as ort
import peft
import torch
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoModel

from adapter_export.format.tensors import read_tensors
from adapter_export.runtime import Bundle
from adapter_export.runtime.graphs import on_device, run_bound
from kit.graphs import Graph
from kit.subject import inputs_of
from kit.timing import Call, Pace, Times, clock_of, interleaved, ratio

STD = 0.05
"""Standard deviation of random weights: it does not affect times, and deep stacks of large weights overflow."""
SAME = 1e-3
"""Tolerance between results; kernels sum in other orders."""
LORA_RANK = 8
OURS, WHOLE = "slots, float32", "AdapterHub, eager"
RECOMMENDED = "slots, base in int8, optimized"
PRODUCTS = "only its products with weights"
ROUGH = (RECOMMENDED, PRODUCTS, "slots, base in int8", "slots, weights of the base in int8")
"""Ways whose results are not compared: they compute with fewer bits, or something else."""


def make(folder: Path, given: argparse.Namespace) -> None:
    """Save adapters of AdapterHub's and one of PEFT's, with random weights."""
    torch.manual_seed(0)
    model = encoder(folder)
    adapterhub.init(model)
    for number in range(given.adapters):
        name = f"a{number}"
        width = model.config.hidden_size / given.bottleneck
        model.add_adapter(name, config=adapterhub.DoubleSeqBnConfig(reduction_factor=width))
        scatter(parameter for key, parameter in model.named_parameters() if f".{name}." in key)
        model.save_adapter(str(folder / name), name)
    lora = peft.get_peft_model(encoder(folder), peft.LoraConfig(r=LORA_RANK, target_modules=["query", "value"]))
    scatter(parameter for key, parameter in lora.named_parameters() if "lora_" in key)
    lora.save_pretrained(str(folder / "lora"))


def scatter(parameters: Any) -> None:
    """Give parameters random values."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, STD)


def encoder(folder: Path) -> Any:
    """The base as transformers has it."""
    return AutoModel.from_pretrained(folder / "base", add_pooling_layer=False).eval()


def measure(folder: Path, given: argparse.Namespace) -> None:
    """Print tables as JSON."""
    torch.set_num_threads(given.threads)
    pace = Pace(given.rounds, given.seconds, clock_of("cpu", given.threads))
    shapes = [tuple(map(int, shape.split("x"))) for shape in given.shapes.split(",")]
    lengths = [int(length) for length in given.lengths.split(",")]
    with torch.inference_mode():
        subject = Subject(folder, given)
        tables = [
            by_shape("An adapter", subject.ways, subject.bundle, shapes, pace, ROUGH),
            by_shape("A LoRA", subject.lora_ways, subject.lora, shapes, pace),
            many(subject, lengths, pace),
        ]
    names = ("adapters", "peft", "optimum-onnx", "transformers", "torch")
    print(json.dumps({"tables": tables, "versions": ", ".join(f"{name} {version(name)}" for name in names)}))


class Subject:
    """The models and graphs that are called."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.threads = folder, given.threads
        self.names = [f"a{number}" for number in range(given.adapters)]
        self.bundle = Bundle.open(folder / "bundle")
        self.bundles = {
            OURS: self.bundle,
            "slots, base optimized": Bundle.open(folder / "optimized"),
            "slots, base in int8": Bundle.open(folder / "int8"),
            RECOMMENDED: Bundle.open(folder / "int8-optimized"),
            "slots, weights of the base in int8": Bundle.open(folder / "int8-weights"),
        }
        self.lora = Bundle.open(folder / "bundle-lora")
        self.plain, self.hub = encoder(folder), encoder(folder)
        adapterhub.init(self.hub)
        for name in self.names:
            self.hub.load_adapter(str(folder / name), load_as=name)
        self.hub.set_active_adapters(self.names[0])
        self.unmerged = peft.PeftModel.from_pretrained(encoder(folder), str(folder / "lora")).eval()
        self.merged = peft.PeftModel.from_pretrained(encoder(folder), str(folder / "lora")).merge_and_unload().eval()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.optimum = ORTModelForFeatureExtraction.from_pretrained(
            folder / "base", export=True, session_options=options, use_io_binding=False
        )
        self._graphs: dict[Path, Graph] = {}

    def graph(self, path: Path) -> Graph:
        """A graph in a session, opened once."""
        if path not in self._graphs:
            self._graphs[path] = Graph(path, "cpu", self.threads)
        return self._graphs[path]

    def ways(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Call]:
        """Return the calls with an adapter, or without one if named so; the slots come first."""
        torched = {name: torch.from_numpy(array) for name, array in inputs.items()}
        calls: dict[str, Call] = {}
        for name, bundle in self.bundles.items():
            record = bundle.manifest.adapters[0]
            fed = {**inputs, **read_tensors(bundle.folder / record.safetensors)}
            calls[name] = self.graph(bundle.folder / bundle.manifest.graphs["slots"]).call(fed)
            if name == OURS:  # as other programs open it, who leave no optimizer out
                calls["slots, float32, ONNX Runtime's settings"] = self._by_default(bundle, fed)
        (baked,) = [one.baked for one in self.bundle.manifest.adapters if one.baked]
        calls["a session for each, adapter as constants"] = self.graph(self.bundle.folder / baked).call(inputs)
        bank = self.bundle.manifest.bank
        assert bank is not None  # a bundle of adapters of one kind has one
        ids = np.ones(len(next(iter(inputs.values()))), np.int64)
        path = self.bundle.folder / self.bundle.manifest.graphs["bank"]
        calls["bank, one adapter"] = self.graph(path).call({**inputs, bank.ids: ids})
        calls[WHOLE] = lambda: self.hub(**torched).last_hidden_state
        calls["transformers, eager, no adapter"] = lambda: self.plain(**torched).last_hidden_state
        calls["optimum, no adapter"] = lambda: self.optimum(**inputs).last_hidden_state
        calls["base in ONNX Runtime, no adapter"] = self.graph(self.folder / "exported" / "base.onnx").call(inputs)
        calls[PRODUCTS] = self.graph(self.folder / "exported" / "products.onnx").call(self._operands(inputs))
        return calls

    def _by_default(self, bundle: Bundle, fed: Mapping[str, np.ndarray]) -> Call:
        """Return a call of the graph with slots, in a session with default settings except the number of threads."""
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 4
        path = bundle.folder / bundle.manifest.graphs["slots"]
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        values = {name: on_device(array) for name, array in fed.items()}
        names = [output.name for output in session.get_outputs()]
        return lambda: run_bound(session, names, values, "cpu")

    def _operands(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return random inputs of the graph that contains only products."""
        session = ort.InferenceSession(self.folder / "exported" / "products.onnx", providers=["CPUExecutionProvider"])
        rng, rows = np.random.default_rng(0), next(iter(inputs.values())).shape
        return {one.name: rng.standard_normal((*rows, one.shape[2]), dtype=np.float32) for one in session.get_inputs()}

    def lora_ways(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Call]:
        """Return the calls with a LoRA."""
        torched = {name: torch.from_numpy(array) for name, array in inputs.items()}
        record, folder = self.lora.manifest.adapters[0], self.lora.folder
        fed = {**inputs, **read_tensors(folder / record.safetensors)}
        return {
            "slots of a LoRA": self.graph(folder / self.lora.manifest.graphs["slots"]).call(fed),
            "a session for each, LoRA as constants": self.graph(folder / (record.baked or "")).call(inputs),
            "PEFT, eager": lambda: self.unmerged(**torched).last_hidden_state,
            "PEFT, eager, merged": lambda: self.merged(**torched).last_hidden_state,
        }


Ways = Callable[[Mapping[str, np.ndarray]], dict[str, Call]]


def by_shape(
    title: str, ways: Ways, bundle: Bundle, shapes: Sequence[tuple[int, ...]], pace: Pace, rough: Sequence[str] = ()
) -> dict[str, Any]:
    """The time of each way over that of the first, for each shape."""
    found: list[Times] = []
    for batch, tokens in shapes:
        calls = ways(inputs_of(bundle, batch, tokens))
        check_equal({name: call for name, call in calls.items() if name not in rough and "no adapter" not in name})
        found.append(interleaved(calls, pace, warm=True))
    first, *others = found[0]
    rows = [[name, *(asdict(ratio(times, name, first)) for times in found)] for name in (first, *others)]
    milliseconds = ", ".join(
        f"{1e3 * statistics.median(times[first]):.1f} ms at {batch} × {tokens}"
        for (batch, tokens), times in zip(shapes, found, strict=True)
    )
    columns = ["", *(f"{batch} × {tokens}" for batch, tokens in shapes)]
    note = f"Times over that of {first}, which takes {milliseconds} (batch × tokens)."
    if RECOMMENDED in others:
        longer = ", ".join(f"{ratio(times, WHOLE, RECOMMENDED).median:.2f}" for times in found)
        note = f"{note} {WHOLE}, over {RECOMMENDED}, call by call: {longer}."
    return {"title": title, "columns": columns, "rows": rows, "note": note}


def many(subject: Subject, lengths: Sequence[int], pace: Pace) -> dict[str, Any]:
    """Texts for as many adapters: all in one call, and one by one."""
    names, count = subject.names, len(subject.names)
    session = subject.bundle.session(threads=subject.threads, resident=count)
    split = adapterhub.composition.BatchSplit(*names, batch_sizes=[1] * count)
    first, rows = "one call of the bank", []
    for tokens in lengths:
        inputs = inputs_of(subject.bundle, count, tokens)
        torched = {name: torch.from_numpy(array) for name, array in inputs.items()}
        alone = [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(count)]

        def batch_split(torched: Mapping[str, torch.Tensor] = torched) -> torch.Tensor:
            subject.hub.set_active_adapters(split)
            return subject.hub(**torched).last_hidden_state

        def switched(torched: Mapping[str, torch.Tensor] = torched) -> torch.Tensor:
            results = []
            for row, name in enumerate(names):
                subject.hub.set_active_adapters(name)
                own = {key: tensor[row : row + 1] for key, tensor in torched.items()}
                results.append(subject.hub(**own).last_hidden_state)
            return torch.cat(results)

        calls: dict[str, Call] = {
            first: lambda inputs=inputs: session.run(inputs, adapters=names),
            "one by one, slots": lambda alone=alone: [
                session.run(own, name) for own, name in zip(alone, names, strict=True)
            ],
            "AdapterHub, BatchSplit": batch_split,
            "AdapterHub, one by one": switched,
        }
        check_equal(calls)
        times = interleaved(calls, pace)
        ratios = (asdict(ratio(times, name, first)) for name in calls)
        rows.append([f"{tokens} tokens", 1e3 * statistics.median(times[first]), *ratios])
    columns = [f"{count} texts for {count} adapters", f"{first}, ms", *calls]
    return {"title": "Many adapters at once", "columns": columns, "rows": rows, "note": f"Times over that of {first}."}


def check_equal(calls: Mapping[str, Call]) -> None:
    """Ways that do not compute the same cannot be compared."""
    expected, *others = (results_of(call()) for call in calls.values())
    for name, own in zip([*calls][1:], others, strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=SAME, err_msg=name)


def results_of(found: Any) -> np.ndarray:
    """The hidden states that a call returned."""
    if isinstance(found, list):
        return np.concatenate([results_of(one) for one in found])
    if isinstance(found, Mapping):
        return results_of(found["last_hidden_state"])
    return found.numpy() if isinstance(found, torch.Tensor | ort.OrtValue) else np.asarray(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("make", "measure"))
    parser.add_argument("folder", type=Path)
    for option in ("adapters", "bottleneck", "threads", "rounds"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--seconds", type=float)
    for option in ("lengths", "shapes"):
        parser.add_argument(f"--{option}")
    arguments = parser.parse_args()
    {"make": make, "measure": measure}[arguments.what](arguments.folder, arguments)
