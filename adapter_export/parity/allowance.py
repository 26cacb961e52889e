"""The budget of every output of a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import FLOAT_TYPES, Stored
from adapter_export.parity.cases import Case
from adapter_export.reference.budget import Budget, budget
from adapter_export.sites.extent import Extent

EXACT = Budget(0.0, "integers are compared exactly")


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

    def budget(self, *expected: np.ndarray) -> Budget:
        """The budget of an output, from what the reference gives for it in all cases."""
        dtype = expected[0].dtype.name
        if dtype not in FLOAT_TYPES:
            return EXACT
        largest = max(map(scale, expected))
        return budget(dtype, inner=self.inner, depth=self.depth, scale=largest, rounded_to=self.stored)


def scale(values: np.ndarray) -> float:
    """The largest absolute value of the finite elements, 0 if there are none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
