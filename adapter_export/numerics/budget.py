"""The allowed deviation between two correct floating-point computations of one output, and its derivation.

Every product, norm and activation rounds its result, and a dot product also rounds while it adds up its terms. These
errors have random signs, so they add up in quadrature: over the terms of a sum, and over the products that follow each
other. With eps the distance from 1 to the next number, of the type that values are stored or added up in:

    allowed = scale·√depth·(ROUNDING·eps(stored) + ACCUMULATION·√inner·eps(added))

ACCUMULATION has a value in theory. Add n terms of equal variance one by one: the partial sum after k of them grows as
√k, each is rounded by up to eps/2 of itself (variance eps²/12), and the n roundings leave an error of standard
deviation eps·√(n/24), 0.204·√n·eps, times that of the sum. Kernels that add in blocks do better; the most extreme
element of a large output does somewhat worse. ROUNDING is what a product and its activation need without any sum:
torch's and onnxruntime's float32 activations are off by up to 2.3·eps.

Both were calibrated against float64 by `benchmarks/calibrate_budget.py`: activations, adapters, mixtures by attention,
heads and stacks of up to 24 adapters with random weights, widths 32 to 4096, in NumPy, torch and onnxruntime. With
ROUNDING 3, the worst would have needed ACCUMULATION 0.247; it is 0.28. MiniLM with a random adapter at every site uses
a quarter of its budget, which is about 1e-5 of the scale, so a scaling of 1.001 instead of 1 fails.

`amplification` also measures the effect of such errors on an output: where the reference itself moves by more than the
formula allows, `AMPLIFIED` times that counts, up to `MOST_AMPLIFIED` of the scale. With some forty adapters (weights of
std 0.2, sharp mixtures among them) ONNX Runtime and torch differed by 0.05 to 0.46 of the reference's movement, whether
it was half of the formula or eighty times as much. Among the 700 adapters of `make peers`, whose bases have random
weights of std 0.2 throughout, the largest was 1.3: an OFT on BART, where one bit of the weights moves a logit as far.

A base that rounds its activations more coarsely than float32 has a larger eps(stored). That of 8 bits is one step of
255 over a range of at most twice the largest value, 2/255: a difference in the last float32 bit now and then moves a
value by a whole step, so two correct computations end up as far apart as two independent roundings. Measured on MiniLM
in dynamic int8 with adapters of std 0 to 0.2, ONNX Runtime unoptimised against optimised: at most 0.6 of this budget,
which is about a fifth of the scale. A fault within it shows at the sites, which are each compared in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adapter_export.dtypes import FLOAT_TYPES, ROUNDING_STEPS, Stored
from adapter_export.errors import UsageError
from adapter_export.graph.graph import AdapterGraph, Node, resolve
from adapter_export.graph.ops import OPS, TOKENS, Dim
from adapter_export.sites.view import FlowGraph

_PRODUCTS_IN_ATTENTION = 2
"""Queries with keys, and attention weights with values."""


@dataclass(frozen=True)
class Extent:
    """Arithmetic size of a base: its longest known dot product and its longest chain of products."""

    inner: int
    depth: int


def extent(flow: FlowGraph) -> Extent:
    """Count the products on the longest way through a base, and the terms of the longest of them.

    A fused attention may include the projections before it.
    """
    depths: dict[str, int] = {}
    for node in flow.nodes:
        attends = node.kind == "attention"
        products = _PRODUCTS_IN_ATTENTION + node.weighted if attends else int(node.multiplies)
        depth = max((depths.get(name, 0) for name in node.inputs), default=0) + products
        depths.update(dict.fromkeys(node.outputs, depth))
    terms = [node.terms or flow.width(node.inputs[0]) or 1 for node in flow.nodes if node.multiplies and node.inputs]
    return Extent(max(terms, default=1), max(depths.values(), default=1) or 1)


ROUNDING = 3.0
ACCUMULATION = 0.28
"""Roundings of a product, and of a sum per root of its terms: calibrated, as the module's docstring describes."""

AMPLIFIED = 2.0
"""Allowed multiple of the measured movement of the reference, which few draws of errors underestimate."""

MOST_AMPLIFIED = 1e-3
"""Largest part of the scale that a measured error may add: beyond it, float32 decides nothing."""

_ADDED_IN = {"float16": "float32", "float32": "float32", "float64": "float64"}
"""Accumulation type of kernels, by stored type."""


@dataclass(frozen=True)
class Budget:
    """An allowed deviation of an element, and its derivation in a sentence."""

    absolute: float
    reason: str


EXACT = Budget(0.0, "integers are compared exactly")


def product_error(dtype: str, *, inner: int, rounded_to: Stored = "float32") -> float:
    """Return the error of one product and its activation, relative to its largest result. Raises as `budget`."""
    if dtype not in FLOAT_TYPES:
        raise UsageError("no budget for this type", found=f"`{dtype}`", expected=", ".join(FLOAT_TYPES))
    step = max(FLOAT_TYPES[dtype], ROUNDING_STEPS[rounded_to])
    return ROUNDING * step + ACCUMULATION * math.sqrt(inner) * FLOAT_TYPES[_ADDED_IN[dtype]]


def budget(
    dtype: str, *, inner: int, depth: int, scale: float, rounded_to: Stored = "float32", moved: float = 0.0
) -> Budget:
    """Return the allowed deviation between two computations of an output stored in `dtype`.

    `inner` is the length of the longest dot product, `depth` how many products follow each other.
    `scale` is the largest absolute value of the reference output over all cases of a check, or of values on the way
    that are far larger (a saturated tanh): rounding errors follow the terms of a sum, so a small element, or a whole
    small case, is no more exact than its neighbours; and the worst deviation grows with the number of elements as the
    largest value does, not the root mean square. `rounded_to` is the coarsest type on the way, where coarser than
    `dtype`; `moved` the result of `amplification`.

    Raises `UsageError` for another type, or a number out of range.
    """
    if inner < 1 or depth < 1 or not 0 <= scale < math.inf:
        shown = f"inner {inner}, depth {depth}, scale {scale}"
        raise UsageError("no budget for these numbers", found=shown, expected="inner and depth ≥ 1, scale ≥ 0, finite")
    per_product = product_error(dtype, inner=inner, rounded_to=rounded_to)
    _, name = max((FLOAT_TYPES[dtype], dtype), (ROUNDING_STEPS[rounded_to], rounded_to))
    absolute = scale * math.sqrt(depth) * per_product
    reason = (
        f"{absolute:.1e} = scale {scale:.3g} · √{depth} products"
        f" · ({ROUNDING:g} roundings in {name} + {ACCUMULATION:g}·√{inner} terms added in {_ADDED_IN[dtype]})"
    )
    if min(moved, MOST_AMPLIFIED * scale) <= absolute:
        return Budget(absolute, reason)
    amplified = min(AMPLIFIED * moved, MOST_AMPLIFIED * scale)
    limit = "" if amplified < MOST_AMPLIFIED * scale else f", and at most {MOST_AMPLIFIED:g} of the scale {scale:.3g}"
    measured = (
        f"{amplified:.1e}: {AMPLIFIED:g} times {moved:.1e}, by which errors of {per_product:.1e} at its sites move the "
        f"reference{limit}"
    )
    return Budget(amplified, f"{measured}; without that {reason}")


def graph_budget(
    dtype: str, graph: AdapterGraph, widths: Mapping[str, int], *, scale: float, tokens: int = 1
) -> Budget:
    """Return the budget of an adapter graph's result, every product and norm of the graph counted.

    `scale` is the largest absolute value of the reference result, or `rounding_scale`; `tokens` is the number of tokens
    that a pooling or a gate sums.
    """
    sums = [terms for node in graph.nodes for terms in _sums(graph, node, widths, tokens)]
    return budget(dtype, inner=max(sums, default=1), depth=max(len(sums), 1), scale=scale)


def _sums(graph: AdapterGraph, node: Node, widths: Mapping[str, int], tokens: int) -> tuple[int, ...]:
    """Return the number of terms of each sum in a node."""
    dims = graph.dimensions(node)
    return tuple(tokens if name == TOKENS else _number(dims[name], widths) for name in OPS[node.op].sums)


def _number(dim: Dim, widths: Mapping[str, int]) -> int:
    """Return a dimension as a number; one without a parameter counts as the largest known width."""
    if isinstance(dim, str) and dim not in widths:
        return max(widths.values(), default=1)
    return resolve(dim, widths)
