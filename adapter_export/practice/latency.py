"""The time of calls with an adapter over that of the base alone, in ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from adapter_export.bundle.write import FLAVOURS
from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.base.external import write_model
from adapter_export.onnx_backend.graft.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.practice.plan import Latency, Setup, sample
from adapter_export.runtime.graphs import open_session, run_session

_ROUNDS, _WARM_UP = 15, 2


def latencies(base: OnnxBase, adapters: Sequence[Adapter], setup: Setup) -> list[Latency]:
    """Time the graph with slots, fed each adapter, beside the base: one row, one thread, calls in turns.

    Raises:
        RequestError: ONNX Runtime cannot compute such a row.
    """
    inputs = sample(base.inputs, 1, setup.tokens, None)
    found = []
    alone = open_session(base.path, threads=1)
    for adapter in adapters:
        plan = plan_slots([adapter], base.sites)
        with TemporaryDirectory(prefix="adapter-export-") as folder:
            path = Path(folder) / FLAVOURS["slots"]
            write_model(insert_slots(base, plan), path, copy_weights=False)
            slots = open_session(path, threads=1)
            fed = {**inputs, **slot_tensors(plan, adapter)}
            calls = ((alone, inputs), (slots, fed))
            ratios = []
            for turn in range(-_WARM_UP, _ROUNDS):
                times = [0.0, 0.0]
                for which in (0, 1) if turn % 2 else (1, 0):
                    session, feeds = calls[which]
                    began = time.perf_counter()
                    run_session(session, feeds)
                    times[which] = time.perf_counter() - began
                if turn >= 0:
                    ratios.append(times[1] / times[0])
            low, _, high = quantiles(ratios, n=4)
            found.append(Latency(median(ratios), low, high))
    return found
