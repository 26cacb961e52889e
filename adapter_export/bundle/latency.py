"""Times of calls that take turns, such as calls with an adapter and calls of the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.variants import VARIANTS
from adapter_export.dtypes import Array
from adapter_export.errors import UsageError
from adapter_export.format.axes import axis_names, length, names
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import InputRecord, token_lengths
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.external import is_large, write_model
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import open_session, run_session
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.words import argument

_ROUNDS, _WARM_UP = 15, 2

_SHORT_TEXT, _FEW_TOKENS = 64, 8
"""Tokens of the text that two bases are timed with, and of the one for large bases, which take seconds for each."""

_LEAST_SECONDS, _MOST_SECONDS, _FEWEST_ROUNDS = 0.001, 2.0, 3
"""Shortest call that is timed, time for all rounds, and minimum rounds."""

Call = tuple[ort.InferenceSession, Mapping[str, np.ndarray]]
"""A session and its inputs."""


@dataclass(frozen=True)
class Setup:
    """Batch size and length for which memory and latency are estimated.

    Attributes:
        batch: rows per training step.
        tokens: tokens per row; ignored by a base with fixed lengths.
    """

    batch: int = 32
    tokens: int = 128


@dataclass(frozen=True)
class Latency:
    """The time of a call of the graph with slots over that of the base, in ONNX Runtime, one row, calls in turns.

    Attributes:
        ratio: the median over the rounds.
        low: the lower quartile.
        high: the upper quartile.
    """

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def latencies(base: OnnxBase, adapters: Sequence[Adapter], setup: Setup) -> list[Latency]:
    """Time the graph with slots, with each adapter, and the base: one row, one thread, calls in turns.

    Raises:
        RequestError: ONNX Runtime cannot compute such a row.
    """
    inputs = sample(base.inputs, 1, setup.tokens, base.lengths)
    alone = open_session(base.path, threads=1)
    ratios = []
    for adapter in adapters:
        with slots_call(base, adapter, adapter, inputs) as call:
            ratios.append(ratio(times((alone, inputs), call), 1, 0))
    return ratios


@contextmanager
def slots_call(base: OnnxBase, built: Adapter, fed: Adapter, inputs: Mapping[str, np.ndarray]) -> Iterator[Call]:
    """Open the graph with the slots of `built`; the call feeds `fed`, which fills no other slots."""
    plan = plan_slots([built], base.sites)
    with temporary_folder() as folder:
        path = folder / VARIANTS["slots"].file
        write_model(insert_slots(base, plan), path, copy_weights=False)
        yield open_session(path, threads=1), {**inputs, **slot_tensors(plan, fed)}


def beside(base: OnnxBase, other: OnnxBase) -> Latency | None:
    """Time a short text in a base over the time in another one: one thread, calls in turns.

    `None` if a call takes less than a millisecond, most of which is not the base's arithmetic.

    Raises:
        RequestError: ONNX Runtime cannot compute such a row.
    """
    inputs = sample(other.inputs, 1, _FEW_TOKENS if is_large(other.model) else _SHORT_TEXT, other.lengths)
    calls = [partial(run_session, open_session(model.path, threads=1), inputs) for model in (base, other)]
    (once,) = interleaved(calls, 1)
    if once[1] < _LEAST_SECONDS:
        return None
    rounds = int(np.clip(_MOST_SECONDS / once.sum(), _FEWEST_ROUNDS, _ROUNDS))
    return ratio(interleaved(calls, rounds), 0, 1)


def times(*calls: Call) -> Array:
    """Return the seconds of calls [rounds, calls], which take turns.

    Raises:
        RequestError: ONNX Runtime cannot compute a call.
    """
    return interleaved([partial(run_session, session, feeds) for session, feeds in calls])


def interleaved(calls: Sequence[Callable[[], object]], rounds: int = _ROUNDS) -> Array:
    """Return the seconds of each call in each round [rounds, calls]; each call comes first in its turn.

    Turns spread a temporary slowdown of the machine over all calls. The first rounds warm up and are left out.
    """
    seconds = np.zeros((_WARM_UP + rounds, len(calls)))
    for turn, row in enumerate(seconds):
        for which in np.roll(np.arange(len(calls)), turn).tolist():
            began = time.perf_counter()
            calls[which]()
            row[which] = time.perf_counter() - began
    return seconds[_WARM_UP:]


def quartiles(values: Array) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def ratio(seconds: Array, numerator: int, denominator: int) -> Latency:
    """Return the ratio of two calls' times: the median over the rounds, and its quartiles."""
    low, middle, high = quartiles(seconds[:, numerator] / seconds[:, denominator])
    return Latency(middle, low, high)


def supported_tokens(records: Sequence[InputRecord], lengths: Bounds, usual: int, chosen: int | None) -> int:
    """Return the tokens of a timed text: those that the user chose, or the supported number near the usual one.

    Raises:
        UsageError: the base takes no text of the chosen length.
    """
    allowed = token_lengths(records, lengths)
    if chosen is not None and chosen not in allowed:
        where = argument("tokens")
        raise UsageError("the base takes no text of this length", where=where, found=chosen, expected=str(allowed))
    return allowed.near(usual) if chosen is None else chosen


def sample(records: Sequence[InputRecord], rows: int, tokens: int, lengths: Bounds) -> Mapping[str, np.ndarray]:
    """Return random inputs of rows; axes other than the batch are as close to `tokens` as `lengths` allow.

    A decoder's past is shorter where the past and the new tokens would exceed its positions.
    """
    batch, wanted = {record.axes[0] for record in records if record.axes}, token_lengths(records, lengths).near(tokens)
    shape = {name: rows if name in batch else axis_lengths(name, lengths).near(wanted) for name in axis_names(records)}
    for axis, allowed in lengths.items():
        past, *new = names(axis)
        if new and past in shape:
            total = length(axis, shape)
            shape[past] = max(0, shape[past] - max(0, total - allowed.near(total)))
    return input_cases(records, seed=0, shapes=[shape])[0].arrays
