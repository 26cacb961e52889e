"""A neutral view of a dataflow graph for discovery, whichever framework the graph is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from adapter_export.sites.site import Norm

NodeKind = Literal["add", "product", "convolution", "attention", "norm", "activation", "layout", "other"]

Epilogue = Literal["bias", "rescale"]
"""The last step of a linear layer, behind its product: to add its bias, or to scale integers back."""

Dim = int | str | None
"""The length of an axis: a number, the graph's own name for an unknown number, or nothing known."""


@dataclass(frozen=True)
class Cut:
    """A slice [start, end) of one axis, counted from 0."""

    axis: int
    start: int
    end: int


@dataclass(frozen=True)
class FlowNode:
    """One operation on activations, by a unique name; `op` is the framework's own name, for tables.

    Attributes:
        kind: `norm` is a layer or RMS norm in one node; `activation` a non-linear function of each number, the softmax
            among them; `layout` a transposition, a reshape or a cut.
        inputs: the activations it reads, in order, without weights, constants, and what is computed from these and from
            the lengths of axes alone.
        weighted: whether one of the factors of a product is a trained weight.
        norm: of a norm, and of the last piece of one that is written out; `normed` is what that reads.
        linear: whether it is the product of a linear layer, of an activation and the trained matrix `weight` [in, out].
        operands: the activations among the factors of a product, first the one whose index the rows of the result are;
            query, key and value of a fused attention, or what holds all three.
        epilogue: the step of a linear layer that it is; `bias` of a product that adds its bias itself.
        cuts: of a layout that cuts one axis: the slice of its input that each output is.
        order: of a layout that moves whole axes: the axis of its input that each axis of its output is; none for a new
            one of length 1.
        packed: of an attention that reads one value with query, key and value: the slice that each of them is.
    """

    name: str
    kind: NodeKind
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weighted: bool
    path: str | None = None
    norm: Norm | None = None
    normed: str | None = None
    linear: bool = False
    weight: str | None = None
    operands: tuple[str, ...] = ()
    epilogue: Epilogue | None = None
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    order: tuple[int | None, ...] = ()
    packed: tuple[tuple[int, int], ...] = ()

    @property
    def multiplies(self) -> bool:
        """Return whether it mixes the features of a token or the tokens of a text: a product of any kind."""
        return self.kind in {"product", "convolution", "attention"}

    @property
    def mixes_tokens(self) -> bool:
        """Return whether it multiplies activations with activations, as attention alone does."""
        return self.kind == "attention" or (self.kind == "product" and not self.weighted)


@dataclass(frozen=True)
class FlowGraph:
    """A base seen as dataflow: the nodes that compute activations, in order, and the shapes that are known.

    `other_calls` counts linear layers of weights alone, by their module paths and the names of their matrices.
    """

    nodes: Sequence[FlowNode]
    shapes: Mapping[str, tuple[Dim, ...]]
    outputs: tuple[str, ...]
    other_calls: Mapping[str, int] = field(default_factory=dict)

    def rank(self, value: str) -> int | None:
        """The number of axes, if known."""
        shape = self.shapes.get(value)
        return None if shape is None else len(shape)

    def width(self, value: str) -> int | None:
        """The length of the last axis, if it is a known number."""
        shape = self.shapes.get(value)
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def alike(self, one: str, other: str) -> bool:
        """Return whether both have as many axes, of lengths that do not contradict each other.

        A number and a name do: the mean over the tokens is [batch, 1, d]. Two names may stand for one length.
        """
        first, second = self.shapes.get(one), self.shapes.get(other)
        if first is None or second is None or len(first) != len(second):
            return False
        pairs = zip(first, second, strict=True)
        return all(a == b or None in (a, b) or (isinstance(a, str) and isinstance(b, str)) for a, b in pairs)


def rows_first(equation: str, operands: tuple[str, ...]) -> tuple[str, ...]:
    """The two operands of an Einstein sum, that first whose index is not the last of the result."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    indices = terms.split(",")
    if not arrow or len(operands) != 2 or len(indices) != 2 or not result:
        return operands
    columns_first = result[-1] in indices[0] and result[-1] not in indices[1]
    return operands[::-1] if columns_first else operands
