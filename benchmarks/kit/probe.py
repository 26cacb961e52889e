"""A process that holds adapters, calls each, and tells its memory; `memory.py` starts it.

python benchmarks/kit/probe.py loaded|on_demand|sessions COUNT BUNDLE cpu|cuda
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.runtime import Bundle
from adapter_export.runtime.graphs import Provider, open_session

_TOKENS = 16

Inputs = Mapping[str, np.ndarray]
Hold = Callable[[Bundle, int, Provider], Callable[[Inputs], None]]
"""Opens and loads; the result makes a call with every adapter."""


def loaded(bundle: Bundle, count: int, provider: Provider, *, on_demand: bool = False) -> Callable[[Inputs], None]:
    """One session with any number of adapters."""
    session = bundle.session(provider=provider, threads=1, on_demand=on_demand)
    path = bundle.folder / bundle.manifest.adapters[0].onnx_adapter
    for number in range(1, count):
        session.load(f"b{number}", path, on_demand=on_demand)

    def call(inputs: Inputs) -> None:
        for name in session.adapters:
            session.run(inputs, name)

    return call


def on_demand(bundle: Bundle, count: int, provider: Provider) -> Callable[[Inputs], None]:
    """The same, but their files are read when a call needs them."""
    return loaded(bundle, count, provider, on_demand=True)


def sessions(bundle: Bundle, count: int, provider: Provider) -> Callable[[Inputs], None]:
    """A graph for each adapter, the adapter a constant of it."""
    path = bundle.folder / (bundle.manifest.adapters[0].baked or "")
    opened = [open_session(path, provider, "all", 1) for _ in range(count)]

    def call(inputs: Inputs) -> None:
        for session in opened:
            session.run(None, dict(inputs))

    return call


WAYS: Mapping[str, Hold] = {"loaded": loaded, "on_demand": on_demand, "sessions": sessions}


def main(way: str, count: str, folder: str, provider: Provider) -> None:
    """Open, load, call, and print bytes and seconds as JSON."""
    bundle = Bundle.open(folder)
    began = time.perf_counter()
    call = WAYS[way](bundle, int(count), provider)
    seconds = time.perf_counter() - began
    records = bundle.manifest.inputs
    batches = {record.axes[0] for record in records if record.axes}
    axes = {axis for record in records for axis in record.axes if isinstance(axis, str)}
    shape = {axis: 1 if axis in batches else _TOKENS for axis in axes}
    call(input_cases(records, seed=0, shapes=[shape])[0].arrays)
    print(json.dumps({"bytes": _proportional_bytes(), "seconds": seconds}))


def _proportional_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type] # `memory.py` passes valid arguments
