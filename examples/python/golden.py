"""Compare a bundle with its golden data: vectors and parts in every variant, texts, batches, and recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from golden_answers import Fault
from golden_batches import replay_batches
from golden_cases import case_inputs, comparable, expected_output
from golden_parts import replay_parts
from golden_texts import replay_texts
from recorded_runs import RunAdapter, Uniform, compare_runs
from safetensors.numpy import load_file

from adapter_export.dtypes import widened
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.graphs import open_session, run_session

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, list[str | None]], Arrays]
"""Runs inputs, each row through the adapter of its name."""

TEXTS, BATCHES, PARTS, RECORDED = "texts", "batches", "parts", "recorded"


@dataclass(frozen=True)
class Finding:
    """Deviation of an adapter, or the base, from its golden vectors in one variant; 1 is the maximum.

    The variants `texts` and `batches` are the golden texts and batches: infinitely far if anything but a number
    differs. `parts` are the golden parts, and `recorded` the recorded runs, each in a `graph`: infinitely far if bits
    differ. Runs that are not comparable on this machine are skipped with a `reason`.
    """

    variant: str
    adapter: str | None
    mixed: bool
    worst: float
    faults: tuple[Fault, ...] = ()
    graph: str | None = None
    reason: str | None = None

    @property
    def passed(self) -> bool:
        return self.worst <= 1 and not self.faults  # NaN fails

    def as_dict(self) -> dict[str, Any]:
        worst = self.worst if np.isfinite(self.worst) else None  # JSON has no other number for it
        found = {**asdict(self), "worst": worst, "passed": self.passed}
        found = {key: value for key, value in found.items() if value is not None or key in ("adapter", "worst")}
        if self.variant == RECORDED:
            return {**found, "compared": self.reason is None}
        return {**found, "tokenized": True} if self.variant == TEXTS else found


def findings(bundle: Bundle) -> Iterator[Finding]:
    """The base and every adapter in each variant, and mixed batches of all where the variant can do them."""
    names = [None, *(record.name for record in bundle.manifest.adapters)]
    session = bundle.session()
    # where a manifest does not tell checksums apart, a session returns them, too
    plain = replace(bundle.manifest, checksums=None)
    showing = session if plain == bundle.manifest else Bundle(bundle.folder, plain, verified=True).session()
    runs = _runs(bundle, showing)
    for variant, run in runs.items():
        for name in names:
            yield Finding(variant, name, False, _worst(bundle, run, [name]))
        if variant in ("bank", "fanout") and bundle.manifest.batch_invariant:
            yield Finding(variant, None, True, _worst(bundle, run, names))
    baked = {one.name: _plain(bundle, one.baked) for one in bundle.manifest.adapters if one.baked is not None}
    for adapter, run in baked.items():
        yield Finding("baked", adapter, False, _worst(bundle, run, [adapter]))
    adapters = {name: (None, *(one.name for one in bundle.manifest.adapters)) for name in runs}
    graphs = [Uniform(variant, adapters[variant], _all_rows(run)) for variant, run in runs.items()]
    graphs += [Uniform("baked", (name,), _all_rows(run)) for name, run in baked.items()]
    yield from _of_graphs(bundle, graphs)
    for name, worst, faults in replay_texts(bundle, session):
        yield Finding(TEXTS, name, False, worst, faults)
    batches = replay_batches(bundle, session)
    if batches is not None:
        yield Finding(BATCHES, None, True, *batches)


def _of_graphs(bundle: Bundle, graphs: Sequence[Uniform]) -> Iterator[Finding]:
    """The golden parts of each adapter, and the recorded runs, in each graph."""
    for graph in graphs:
        for record in bundle.manifest.adapters:
            if record.golden.parts is not None and record.name in graph.adapters:
                worst, faults = replay_parts(bundle, record.golden.parts, partial(graph.run, name=record.name))
                yield Finding(PARTS, record.name, False, worst, tuple(faults), graph.name)
    for one in compare_runs(bundle, graphs):
        yield Finding(RECORDED, one.adapter, False, 0 if one.is_same else np.inf, (), one.graph, one.reason)


def _all_rows(run: Run) -> RunAdapter:
    """Run all rows through one adapter."""
    return lambda inputs, name: run(inputs, [name] * len(next(iter(inputs.values()))))


def _runs(bundle: Bundle, session: Session) -> dict[str, Run]:
    runs: dict[str, Run] = {"slots": lambda inputs, names: session.run(inputs, names[0], allow_padding=True)}
    if "inputs" in bundle.manifest.graphs:
        runs["inputs"] = _with_tensors(bundle, _plain(bundle, bundle.manifest.graphs["inputs"]))
    if "bank" in bundle.manifest.graphs:
        runs["bank"] = lambda inputs, names: session.run(inputs, adapters=names, allow_padding=True)
    if "fanout" in bundle.manifest.graphs:
        runs["fanout"] = lambda inputs, names: _twice(session, inputs, names)
    return runs


def _twice(session: Session, inputs: Arrays, names: list[str | None]) -> Arrays:
    """Run every row twice, through its adapter and through that of the last: rows that are alike take this graph."""
    both = {name: np.concatenate([array, array]) for name, array in inputs.items()}
    outputs = session.run(both, adapters=[*names, *reversed(names)], allow_padding=True)
    return {name: value[: len(names)] for name, value in outputs.items()}


def _plain(bundle: Bundle, path: str) -> Run:
    """A graph in ONNX Runtime, as it is; `Bundle.session` has no use for these two variants."""
    session = open_session(bundle.home / path)
    return lambda inputs, _: run_session(session, inputs)


def _with_tensors(bundle: Bundle, run: Run) -> Run:
    """Feed every slot: with an adapter's tensors, or for the base with neutral ones."""
    neutral = {s.name: np.full(s.neutral, s.neutral_value, np.float32) for s in bundle.manifest.slots}
    tensors = {None: neutral}
    tensors |= {each.name: widened(load_file(bundle.folder / each.safetensors)) for each in bundle.manifest.adapters}
    return lambda inputs, names: run({**inputs, **tensors[names[0]]}, names)


def _worst(bundle: Bundle, run: Run, names: list[str | None]) -> float:
    """Return the largest deviation over the allowed one, NaN if there is a NaN; each row has its own adapter."""
    records = {None: bundle.manifest.golden, **{each.name: each.golden for each in bundle.manifest.adapters}}
    vectors = {name: load_file(bundle.folder / records[name].path) for name in names}
    worst = np.float64(0)
    for case in records[None].cases:
        inputs = case_inputs(bundle.manifest, vectors[names[0]], case)
        rows = len(next(iter(inputs.values())))
        dealt = [names[row % len(names)] for row in range(rows)]
        found = comparable(bundle.manifest, run(inputs, dealt))
        for row, name in enumerate(dealt):
            for output, allowed in records[name].absolute.items():
                expected = expected_output(bundle.manifest, vectors[name], case, output)[row]
                own = found[output][row][..., : expected.shape[-1]]
                off = np.abs(own - expected).max()
                worst = np.maximum(worst, off / allowed if allowed else np.float64(0 if off == 0 else np.inf))
    return float(worst)
