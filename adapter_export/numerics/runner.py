"""Runners, which compute the outputs of a base with or without an adapter, and the amplification of rounding errors.

Amplification is measured by running the reference itself. `budget` assumes that a rounding error reaches an output
about as large, relative to its scale, as it was made. A norm over features that hardly differ, attention between large
scores or a sharp mixture amplify it by factors that no formula covers. So the reference is run a few times with random
errors: each site's result and every tensor of the adapter are multiplied, element by element, by 1 ± the error that
`budget` allows a single product. The distance between the runs is the effect of such errors on an output (Monte Carlo
arithmetic, Parker 1997, UCLA CSD-970002).

An adapter injects the errors, so every runner supports it. It hides no wrong graph: the exported graph is not measured,
and an error of 0.001 at a site, hundreds of rounding steps, grows in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import FLOAT_TYPES, Weights
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.graph import unused
from adapter_export.graph.kinds import ia3_graph
from adapter_export.graph.tasks import HeadOutput
from adapter_export.sites.site import SiteMap

Arrays = dict[str, np.ndarray]
"""Inputs or outputs by name."""

_PREFIXES = ("", "adapter_", "adapter_head_")


def head_output(base_outputs: Collection[str], result: HeadOutput = "logits") -> str:
    """Return the name of a head's output: `logits`, or `adapter_logits` if the base has an output `logits`."""
    return next(f"{prefix}{result}" for prefix in _PREFIXES if f"{prefix}{result}" not in base_outputs)


Undefined = dict[str, npt.NDArray[np.bool_]]
"""Mask of the elements or positions that the reference does not define, by the name of the output."""


@dataclass(frozen=True)
class NodeValue:
    """An intermediate value of a reference.

    Attributes:
        name: name of the node in the reference's graph; `site_result` for an adapter's result at a site.
        value: value that the reference computed.
        exact: the same operation in float64 on the float32 inputs; `None` if unknown.
        reach: change of each element for a relative error of 1 in the inputs: its rounding errors are relative to
            that. `None` if only its own size is known.
        vague: elements that no formula defines: attention that may see no token.
        path: the module in the torch model, if there is one.
        line: the line of source that called it, such as `transformers/models/bert/modeling_bert.py:312`, if known.
    """

    name: str
    value: np.ndarray
    exact: npt.NDArray[np.float64] | None = None
    reach: npt.NDArray[np.float64] | None = None
    vague: npt.NDArray[np.bool_] | None = None
    path: str | None = None
    line: str | None = None


def site_result(site: str, replaced: str) -> str:
    """Return the name of the value with which an adapter replaces a site's `u`, `h` or `y`."""
    return f"{site}/result_{replaced}"


class Runner(Protocol):
    """A base with a choice of adapter per call: the torch reference, the cut ONNX reference, a session."""

    @property
    def description(self) -> str:
        """A name for reports: `torch 2.13.0 float32`."""

    @property
    def sites(self) -> SiteMap:
        """The sites of the base, at which adapters can act."""

    @property
    def keeps_weights(self) -> bool:
        """Return true if the base stays in memory, so that another run costs only its arithmetic."""

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays:
        """Return all outputs of the base and, for an adapter with a head, its result as `head_output`."""

    def find_undefined(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Undefined:
        """Return the elements of these outputs that depend on attention of a query whose mask allows no token.

        A softmax over nothing is undefined, and backends differ. Outputs without such elements are omitted.
        """

    def node_values(
        self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None, names: Collection[str], *, exactly: bool = True
    ) -> Iterator[NodeValue]:
        """Return the values of these names in the order of evaluation, without unknown names.

        With `exactly` each has what float64 says of it, where that is known. Raises `RequestError` if the base cannot
        compute the inputs.
        """

    def node_dtypes(self, adapter: Adapter | None) -> Mapping[str, str]:
        """Return the NumPy type of each value that `node_values` can give, by its name."""

    def exact(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays | None:
        """Return all outputs of `run` computed in float64, or `None` if the base cannot run in float64."""


def run(
    runner: Runner,
    inputs: Mapping[str, np.ndarray],
    adapter: Adapter | None,
    base_outputs: Collection[str],
    output: str | None,
) -> Arrays:
    """Return the outputs of `runner.run`, with the result of the adapter's head named `output`."""
    return _renamed(runner.run(inputs, adapter), adapter, base_outputs, output)


def exact(
    runner: Runner,
    inputs: Mapping[str, np.ndarray],
    adapter: Adapter | None,
    base_outputs: Collection[str],
    output: str | None,
) -> Arrays | None:
    """Return the outputs of `runner.exact`, by the names that `run` gives them."""
    outputs = runner.exact(inputs, adapter)
    return None if outputs is None else _renamed(outputs, adapter, base_outputs, output)


def find_undefined(
    runner: Runner,
    inputs: Mapping[str, np.ndarray],
    adapter: Adapter | None,
    base_outputs: Collection[str],
    output: str | None,
) -> Undefined:
    """Return the elements of `runner.find_undefined`, by the names that `run` gives the outputs."""
    return _renamed(runner.find_undefined(inputs, adapter), adapter, base_outputs, output)


def _renamed(outputs: Arrays, adapter: Adapter | None, base_outputs: Collection[str], output: str | None) -> Arrays:
    if adapter is None or adapter.head is None or output is None:
        return outputs
    of_head = head_output(base_outputs, adapter.head.output)
    return {output if name == of_head else name: value for name, value in outputs.items()}


DRAWS = 4
"""Number of runs of the reference with errors. Only errors in one direction may be amplified, which a single run may
miss; all of them rarely underestimate it by the factor of 5 that separates this from the deviation of two backends."""

Compute = Callable[[Mapping[str, np.ndarray], Adapter], Arrays]
"""From inputs and an adapter to outputs."""


def measure_rounding(
    compute: Compute,
    inputs: Sequence[Mapping[str, np.ndarray]],
    adapter: Adapter | None,
    *,
    sites: SiteMap,
    base: str,
    step: float,
) -> dict[str, float]:
    """Return the distance by which errors of the relative size `step` move each output of floats.

    It is the largest difference of an element between two runs, over √2, as that of two errors is so much larger than
    one. NaN and Inf do not count. `base` is the fingerprint; without an adapter the base is measured.
    """
    signs = [np.random.default_rng(draw) for draw in range(DRAWS)]
    disturbed = with_errors(adapter, sites, base, [(step, rng) for rng in signs])
    moved: dict[str, float] = {}
    for arrays in inputs:
        runs = [compute(arrays, each) for each in disturbed]
        for name in runs[0]:
            if runs[0][name].dtype.name in FLOAT_TYPES:
                moved[name] = max(moved.get(name, 0.0), _apart([run[name] for run in runs]))
    return moved


def with_errors(
    adapter: Adapter | None, sites: SiteMap, base: str, errors: Sequence[tuple[float, np.random.Generator]]
) -> list[Adapter]:
    """Copies of an adapter with relative errors in its tensors, and at every site at which it does not act.

    `errors` are the size of the errors and the source of their signs, for each copy.
    """
    acts = {} if adapter is None else adapter.placements
    graphs = {} if adapter is None else adapter.graphs
    name = unused("rounding", graphs)
    # a lookup copies a row, without rounding
    idle = {
        site.name: Placement(name, {"d": site.width})
        for site in sites
        if site.name not in acts and site.role != "lookup"
    }
    plain: Weights = {f"{site}.scaling.weight": np.ones(place.widths["d"], np.float32) for site, place in idle.items()}
    if not idle and adapter is not None:
        whole = adapter
    elif adapter is None:
        whole = Adapter("rounding", "custom", base, {name: ia3_graph()}, idle, plain)
    else:
        whole = replace(
            adapter,
            graphs={**graphs, name: ia3_graph()},
            placements={**acts, **idle},
            weights={**adapter.weights, **plain},
        )
    return [replace(whole, weights=_disturbed(whole.weights, step, rng)) for step, rng in errors]


def _disturbed(weights: Weights, step: float, rng: np.random.Generator) -> Weights:
    return {
        name: (tensor * (1 + step * rng.choice((-1.0, 1.0), tensor.shape))).astype(np.float32)
        for name, tensor in weights.items()
    }


def _apart(values: Sequence[npt.NDArray[np.floating]]) -> float:
    finite = np.logical_and.reduce([np.isfinite(value) for value in values])
    wide = [value[finite].astype(np.float64) for value in values]
    return max(float(np.abs(first - second).max(initial=0.0)) for first, second in combinations(wide, 2)) / math.sqrt(2)
