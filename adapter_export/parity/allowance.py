"""The budget of every output of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import FLOAT_TYPES, Stored
from adapter_export.format.manifest import GoldenRecord, Manifest
from adapter_export.parity.cases import Case
from adapter_export.reference.budget import EXACT, Budget, budget, product_error
from adapter_export.reference.runner import Runner
from adapter_export.sites.extent import Extent


@dataclass(frozen=True)
class Allowance:
    """What decides the budgets of all outputs.

    Attributes:
        inner: the length of the longest dot product.
        depth: how many products follow each other.
        stored: the coarsest type that the base rounds its activations to.
    """

    inner: int
    depth: int
    stored: Stored = "float32"

    @classmethod
    def of(cls, found: Extent, cases: Iterable[Case], stored: Stored = "float32") -> Allowance:
        """The allowance of a graph for some inputs: attention and pooling add up as many terms as there are tokens."""
        longest = max((length for case in cases for length in case.axes.values()), default=1)
        return cls(max(found.inner, longest), found.depth, stored)

    def error(self, runner: Runner) -> float | None:
        """The relative errors that a reference also runs with; none where it does not, as in golden vectors."""
        measured = runner.keeps_weights and self.stored == "float32"
        return product_error("float32", inner=self.inner) if measured else None

    def budget(self, *expected: np.ndarray, moved: float = 0.0) -> Budget:
        """The budget of an output, from what the reference gives for it in all cases.

        Args:
            expected: what it gives.
            moved: how far errors move the output.
        """
        dtype = expected[0].dtype.name
        if dtype not in FLOAT_TYPES:
            return EXACT
        largest = max(map(scale, expected))
        return budget(dtype, inner=self.inner, depth=self.depth, scale=largest, rounded_to=self.stored, moved=moved)


@dataclass(frozen=True)
class Tolerance:
    """The budgets of outputs that are compared with each other and not with a reference.

    Attributes:
        allowance: of the graph.
        known: budgets by adapter and output, with what the reference has been seen to need; none is the base.
    """

    allowance: Allowance
    known: Mapping[tuple[str | None, str], Budget]

    def __call__(self, adapter: str | None, output: str, expected: np.ndarray) -> Budget:
        """The budget of an output, from what is expected of it; no less than what is known of it.

        Args:
            adapter: the adapter that gives it; none for the base alone.
            output: its name.
            expected: its values.
        """
        found = self.allowance.budget(expected)
        return max(self.known.get((adapter, output), found), found, key=lambda budget: budget.absolute)


def stored_budgets(manifest: Manifest) -> dict[tuple[str | None, str], Budget]:
    """What golden vectors allow, by adapter and output."""
    records: dict[str | None, GoldenRecord] = {None: manifest.golden}
    records |= {record.name: record.golden for record in manifest.adapters}
    return {
        (adapter, output): Budget(absolute, stored_reason(golden, output))
        for adapter, golden in records.items()
        for output, absolute in golden.absolute.items()
    }


def stored_reason(golden: GoldenRecord, output: str) -> str:
    """Where the allowed deviation of golden vectors comes from."""
    said = golden.reasons.get(output)
    return f"stored with the golden vectors of {golden.reference}{'' if said is None else f': {said}'}"


def scale(values: np.ndarray) -> float:
    """The largest absolute value of the finite elements, 0 if there are none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
