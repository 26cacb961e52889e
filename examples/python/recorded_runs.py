"""Compare recorded runs: the same ONNX Runtime on the same processor gives the same bits, or a tensor is another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from golden_cases import case_inputs
from safetensors.numpy import load_file

from adapter_export.runtime import Bundle

Arrays = Mapping[str, np.ndarray]
RunAdapter = Callable[[Arrays, str | None], Arrays]
"""Runs all rows of some inputs through one adapter, or through the base."""

_PROVIDER = "CPUExecutionProvider"
_NO_DIGEST = "its bits depend on the number of threads"
_OTHER_BASE = "the base's bits differ here: another processor, or another build of ONNX Runtime"


@dataclass(frozen=True)
class Uniform:
    """A graph whose rows all have one adapter.

    Attributes:
        name: name such as `slots`; `baked` for a graph with a built-in adapter.
        adapters: adapters of the graph; `None` is the base.
        run: runs the graph.
    """

    name: str
    adapters: tuple[str | None, ...]
    run: RunAdapter


@dataclass(frozen=True)
class Compared:
    """The result of the recorded runs of the base or an adapter; those that were not compared have a `reason`."""

    graph: str | None
    adapter: str | None
    is_same: bool = True
    reason: str | None = None


def compare_runs(bundle: Bundle, graphs: Sequence[Uniform]) -> Iterator[Compared]:
    """Compare the digests of each graph where they mean something: where the base gives the recorded bits."""
    recorded = bundle.manifest.recorded
    if recorded is None:
        return
    if (recorded.runtime, recorded.provider) != (ort.__version__, _PROVIDER):
        said = f"recorded with onnxruntime {recorded.runtime}, {recorded.provider}"
        yield Compared(None, None, reason=f"{said}; this is {ort.__version__}, {_PROVIDER}")
        return
    records = {None: bundle.manifest.golden, **{each.name: each.golden for each in bundle.manifest.adapters}}
    slots = next(graph for graph in graphs if graph.name == "slots")
    for graph in graphs:
        witness = slots if graph.name == "baked" else graph  # there is no base in a baked graph
        base = records[None].recorded.get(witness.name)
        if base is None or _digest(bundle, witness, None) != base:
            yield Compared(graph.name, None, reason=_NO_DIGEST if base is None else _OTHER_BASE)
            continue
        for name in graph.adapters:
            expected = records[name].recorded.get(graph.name)
            if expected is None:
                yield Compared(graph.name, name, reason=_NO_DIGEST)
            else:
                yield Compared(graph.name, name, name is None or _digest(bundle, graph, name) == expected)


def _digest(bundle: Bundle, graph: Uniform, name: str | None) -> str:
    """Return the sha256 of the outputs in the recorded cases, sorted by name within a case."""
    manifest = bundle.manifest
    golden = next((each.golden for each in manifest.adapters if each.name == name), manifest.golden)
    vectors, digest = load_file(bundle.folder / golden.path), hashlib.sha256()
    for case in () if manifest.recorded is None else manifest.recorded.cases:
        found = graph.run(case_inputs(manifest, vectors, case), name)
        for output in sorted(golden.absolute):
            expected, value = vectors[f"{case}.output.{output}"], found[output]
            is_stored_whole = output not in manifest.sketches and expected.ndim
            own = value[..., : expected.shape[-1]] if is_stored_whole else value
            digest.update(own.astype(own.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
