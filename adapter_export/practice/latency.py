"""The time of calls with an adapter over that of the base alone, in ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.write import FLAVOURS
from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.base.external import write_model
from adapter_export.onnx_backend.graft.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.practice.plan import Latency, Setup, sample
from adapter_export.runtime.graphs import open_session, run_session

_ROUNDS, _WARM_UP = 15, 2

Call = tuple[ort.InferenceSession, Mapping[str, np.ndarray]]
"""A session and what it is fed."""


def latencies(base: OnnxBase, adapters: Sequence[Adapter], setup: Setup) -> list[Latency]:
    """Time the graph with slots, fed each adapter, beside the base: one row, one thread, calls in turns.

    Raises:
        RequestError: ONNX Runtime cannot compute such a row.
    """
    inputs = sample(base.inputs, 1, setup.tokens, None)
    alone = open_session(base.path, threads=1)
    found = []
    for adapter in adapters:
        with slots_call(base, adapter, adapter, inputs) as call:
            found.append(ratio(times((alone, inputs), call), 1, 0))
    return found


@contextmanager
def slots_call(base: OnnxBase, built: Adapter, fed: Adapter, inputs: Mapping[str, np.ndarray]) -> Iterator[Call]:
    """The graph with the slots of one adapter, fed another one that has no others."""
    plan = plan_slots([built], base.sites)
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        path = Path(folder) / FLAVOURS["slots"]
        write_model(insert_slots(base, plan), path, copy_weights=False)
        yield open_session(path, threads=1), {**inputs, **slot_tensors(plan, fed)}


def times(*calls: Call) -> np.ndarray:
    """The seconds of calls [rounds, calls], which take turns, each first in its turn.

    Raises:
        RequestError: ONNX Runtime cannot compute one.
    """
    found = np.zeros((_WARM_UP + _ROUNDS, len(calls)))
    for turn, own in enumerate(found):
        for which in np.roll(np.arange(len(calls)), turn):
            session, feeds = calls[which]
            began = time.perf_counter()
            run_session(session, feeds)
            own[which] = time.perf_counter() - began
    return found[_WARM_UP:]


def ratio(found: np.ndarray, one: int, other: int) -> Latency:
    """The time of one call over that of another of `times`: the median of the rounds, and its quartiles."""
    low, middle, high = np.quantile(found[:, one] / found[:, other], (0.25, 0.5, 0.75))
    return Latency(float(middle), float(low), float(high))
