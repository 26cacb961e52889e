"""Run the reference and a graph side by side, value by value, to find the step of the graph that is wrong.

A step is the part of the graph between values that the reference has, too. It runs on the reference's values, so its
error is local: earlier errors do not count, and the first step over its budget is the fault. The graph also runs
unchanged; the errors of its values are cumulative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.bundle_reader import Graph
from adapter_export.bundle.golden.golden_vectors import Allowance, Case
from adapter_export.bundle.proof.compare_arrays import absolute_difference, compare
from adapter_export.bundle.report import BASE
from adapter_export.dtypes import FLOAT_TYPES, same_bits
from adapter_export.format.axes import estimated_elements
from adapter_export.format.check_report import Finding, Measurement, NodeRecord, WitnessRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.budget import EXACT, Budget, budget
from adapter_export.numerics.runner import Arrays, NodeValue, Runner
from adapter_export.onnx_backend.onnx_runner import Pieces
from adapter_export.onnx_backend.steps import Step, Steps, known_input

_HUGE = 1e30
"""Larger numbers count as infinite: a mask may use the lowest float32 on one side and -inf on the other."""


_MOST_ELEMENTS = 2**18
"""Elements of the largest output from which pieces are small: each value is kept with its float64 witness."""

_SMALL_PIECE = 2**21
"""Bytes of weights of a small piece."""


@dataclass
class Lockstep:
    """A bundle's graph and a reference, on one case, with one adapter or the base."""

    graph: Graph
    runner: Runner
    case: Case
    adapter: str | None
    allowance: Allowance

    @cached_property
    def steps(self) -> Steps:
        """The graph, split into steps."""
        return Steps(self.graph.bundle.model(self.graph.file), self.graph.bundle.home)

    @cached_property
    def known(self) -> list[str]:
        """Values that both sides have, by their names in the graph, in order of evaluation."""
        return self.steps.known(self.runner.node_dtypes(self.source))

    @cached_property
    def feeds(self) -> Arrays:
        """Inputs of the graph."""
        return self.graph.feeds(self.case.arrays, (self.adapter,) * self.case.batch)

    @property
    def _piece_bytes(self) -> int | None:
        """Size of pieces: small ones if the values of one piece may need more memory than the weights."""
        outputs = self.graph.bundle.manifest.base_outputs
        largest = max(estimated_elements(record, self.case.axes) for record in outputs)
        return _SMALL_PIECE if largest > _MOST_ELEMENTS else None

    @property
    def source(self) -> Adapter | None:
        """The adapter that was given to the build."""
        return None if self.adapter is None else self.graph.bundle.source(self.adapter)

    def local(self) -> Iterator[Measurement]:
        """Run every step on the reference's values, and compare the results.

        Raises:
            RequestError: one of the two cannot compute the case.
        """
        for name, actual, value in self._pairs(self.steps.alone(self.known, self._piece_bytes), exactly=True):
            yield self._record(name, actual, value)

    def cumulative(self, records: Sequence[Measurement]) -> tuple[list[Measurement], Finding]:
        """Run the graph with its values exposed; return records with cumulative errors, and a finding on its outputs.

        Exposing values must leave the outputs unchanged, or the values prove nothing.
        """
        errors: dict[str, float] = {}
        shown: Arrays = {}
        for name, actual, value in self._pairs(self.steps.whole(self.known, self._piece_bytes), shown):
            if actual.shape == value.value.shape:
                differ = absolute_difference(*_clipped(actual, value.value, value.vague)).astype(np.float64)
                errors[name] = float(differ[np.isfinite(differ)].max(initial=0.0))
        plain = self.steps.whole().run(self.feeds)
        changed = [name for name in sorted(plain) if not same_bits(plain[name], shown.get(name))]
        # float16 is computed in float32 and rounded where a value is exposed, which is not a fault
        wrong = [name for name in changed if not self._is_rounding(plain[name], shown.get(name))]
        detail = f"changed: {', '.join(wrong)}" if wrong else "every output, bit-exact"
        detail = detail if wrong or not changed else f"every output, except for rounding in {changed[0]}"
        result = Finding.tested("exposed values", f"{self.adapter or BASE}, {self.graph.file}", not wrong, detail)
        known = {record.name: record.node for record in records}
        nodes = {name: node and replace(node, cumulative=errors.get(name)) for name, node in known.items()}
        return [replace(record, node=nodes[record.name]) for record in records], result

    def _is_rounding(self, plain: np.ndarray, shown: np.ndarray | None) -> bool:
        return shown is not None and (compare(shown, plain, self.allowance.budget(plain)).passed or not plain.size)

    def step(self, name: str) -> Step:
        """Return the step that computes a value."""
        return self.steps.step(name, set(self.known))

    def values(self, names: Sequence[str]) -> dict[str, NodeValue]:
        """Return the reference's results for some values, by their names in the graph."""
        graph_names = {self.steps.names[name]: name for name in names}
        stream = self.runner.node_values(self.case.arrays, self.source, graph_names, exactly=False)
        return {graph_names[value.name]: value for value in stream}

    def _pairs(
        self, pieces: Pieces, others: Arrays | None = None, *, exactly: bool = False
    ) -> Iterator[tuple[str, np.ndarray, NodeValue]]:
        """Yield each known value as computed by the graph and by the reference; `others` collects the other outputs.

        Both sides advance only as far as the other needs, and values that are not read again are dropped to limit
        memory.
        """
        by_value = {self.steps.names[name]: name for name in self.known}
        stream = self.runner.node_values(self.case.arrays, self.source, by_value, exactly=exactly)
        arrived: dict[str, NodeValue] = {}
        compared = set[str]()
        outputs = {value.name for value in self.steps.model.graph.outputs}

        def fetch(name: str) -> NodeValue | None:
            while name not in arrived:
                value = next(stream, None)
                if value is None:
                    return None
                arrived[by_value[value.name]] = value
            return arrived[name]

        def read(name: str) -> np.ndarray | None:
            if not name.startswith(known_input("")):
                return self.feeds.get(name)
            value = fetch(name.removeprefix(known_input("")))
            return None if value is None else value.value

        for at, computed in enumerate(pieces.stream(read)):
            for name, array in computed.items():
                if others is not None and name in outputs:
                    others[name] = array
                value = fetch(name) if name in by_value.values() else None
                if value is not None:
                    compared.add(name)
                    yield name, array, value
            for name in compared & arrived.keys():
                if known_input(name) not in pieces.reads_after(at):
                    del arrived[name]

    def _record(self, name: str, actual: np.ndarray, value: NodeValue) -> Measurement:
        step = self.step(name)
        if actual.shape != value.value.shape and actual.size == value.value.size == 1:  # a scalar as a vector
            actual = actual.reshape(value.value.shape)
        first, second = _clipped(actual, value.value, value.vague)
        allowed = self._budget(value, second, len(step.nodes))
        result = compare(first, second, allowed)
        witness = _witness(first, second, value)
        if not result.passed and witness is not None and result.absolute > allowed.absolute >= witness.found:
            result = replace(result, verdict="passed", faults=())  # the reference has the error
        if not second.size:  # such as a cache of no tokens
            result = replace(result, verdict="passed", faults=())
        return Measurement(
            **vars(result),
            kind="node",
            name=name,
            against="reference",
            adapter=self.adapter,
            case=self.case.name,
            variant=self.graph.variant,
            level="none",
            axes=self.case.axes,
            path=value.path,
            node=NodeRecord(value.name, step.operators, value.line, len(step.nodes), witness, None),
        )

    def _budget(self, value: NodeValue, expected: np.ndarray, nodes: int) -> Budget:
        """Return the budget of a step: rounding relative to its result, or to the effect of its inputs' rounding."""
        dtype = expected.dtype.name
        if dtype not in FLOAT_TYPES:
            return EXACT
        sizes = [np.abs(expected.astype(np.float64))]
        if value.reach is not None and value.reach.shape == expected.shape:
            sizes.append(value.reach)
        scale = max(float(size[np.isfinite(size) & (size < _HUGE)].max(initial=0.0)) for size in sizes)
        inner, stored = self.allowance.inner, self.allowance.stored
        return budget(dtype, inner=inner, depth=max(1, nodes), scale=scale, rounded_to=stored)


def _clipped(
    actual: np.ndarray, expected: np.ndarray, vague: npt.NDArray[np.bool_] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides with infinite numbers clipped, and equal where they are undefined."""
    if expected.dtype.kind != "f" or actual.shape != expected.shape or actual.dtype != expected.dtype:
        return actual, expected
    limit = min(_HUGE, float(np.finfo(expected.dtype).max))
    first, second = np.clip(actual, -limit, limit), np.clip(expected, -limit, limit)
    return (first, second) if vague is None else (np.where(vague, second, first), second)


def _witness(actual: np.ndarray, expected: np.ndarray, value: NodeValue) -> WitnessRecord | None:
    """Return the distance of both sides from float64, where all three are finite."""
    exact = value.exact
    if exact is None or exact.shape != expected.shape or actual.shape != expected.shape or expected.dtype.kind != "f":
        return None
    finite = np.isfinite(actual) & np.isfinite(expected) & (np.abs(exact) < _HUGE)
    if value.vague is not None:
        finite &= ~value.vague
    errors = [float(np.abs(side.astype(np.float64) - exact)[finite].max(initial=0.0)) for side in (actual, expected)]
    return WitnessRecord(*errors)
