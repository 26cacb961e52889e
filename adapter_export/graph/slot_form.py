"""The form of a graph in the slots of an exported graph, in three steps.

1. `inference_form`: dropout and identities are removed; a `phm_linear` becomes a dense `linear` with the parameter
`<node output>.weight`; a factor moves into the parameters of the linear or norm before it, or into the rows of the
linear after it, unless another node uses these parameters. `fold_weights` does the same to the weights.

2. `neutral_parameters`, with which the graph returns the replaced value, so that its slots can be unused: found by
following zeros and site values through the ops, all projections and norms being zero and learned factors one or zero.

3. `slot_form`: a site's graph without neutral parameters, because it has no residual or normalises the sum, gets a
switch: `keep ⊙ v + use · result`, with the replaced value `v`. 1 and 0 select `v` exactly, 0 and 1 the result.

`rounded` is an adapter in inference form, rounded as in files with fewer bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import AdapterPrecision, Weights, narrowed, widened
from adapter_export.errors import GraphError, NotNeutralError
from adapter_export.graph.adapter import HEAD, PREFIX, SHARED, Adapter, Placement
from adapter_export.graph.graph import (
    BORROWED_BIAS,
    BORROWED_WEIGHT,
    SITE_VALUES,
    AdapterGraph,
    Node,
    bypass,
    exchange,
    producer,
    readers,
    resolve,
    unused,
    users,
)
from adapter_export.graph.numpy_lowering import LOWERINGS, kronecker_sum
from adapter_export.graph.ops import OPS

Wide = dict[str, npt.NDArray[np.float64]]

_Step = tuple[AdapterGraph, Callable[[Wide], None]]
"""A graph after one change, and the change of the parameters."""

PRECISION = "adapter_precision"
"""Key of the training record with the precision that an adapter was rounded to."""


def inference_form(graph: AdapterGraph) -> AdapterGraph:
    """Return the graph without training-only nodes and without factors that `fold_weights` moves into weights."""
    while (step := next(_steps(graph), None)) is not None:
        graph = step[0]
    return graph


def fold_weights(graph: AdapterGraph, parameters: Mapping[str, np.ndarray]) -> Weights:
    """Return the parameters with which `inference_form(graph)` computes what `graph` computes with the given ones.

    Products are taken in float64. Raises `GraphError` if a factor takes a parameter out of the range of float32.
    """
    folded = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    while (step := next(_steps(graph), None)) is not None:
        graph, fold = step
        fold(folded)
    return {name: _float32(name, folded[name]) for name in graph.parameters}


def _float32(name: str, value: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise GraphError(
            f"the factors of parameter `{name}` exceed the range of float32",
            found=f"{np.abs(value).max():.3g}",
            expected=f"at most {np.finfo(np.float32).max:.3g}",
            fix="train with a smaller `scale`",
        )
    return narrow


def _steps(graph: AdapterGraph) -> Iterator[_Step]:
    for node in graph.nodes:
        if node.op == "phm_linear":
            yield _dense(graph, node)
        elif OPS[node.op].training_only:
            yield bypass(graph, node), lambda _: None
        elif OPS[node.op].factor is not None:
            yield from _absorbed(graph, node)


def _dense(graph: AdapterGraph, node: Node) -> _Step:
    rule, left, right = (node.parameters[role] for role in ("rule", "left", "right"))
    weight = unused(f"{node.output}.weight", graph.parameters)
    dims = graph.dimensions(node)
    dense = Node("linear", node.inputs, node.output, {"weight": weight, "bias": node.parameters["bias"]})
    shared = [weight] if {rule, left, right} <= set(graph.shared) else []
    changed = exchange(graph, node, dense, {weight: (dims["in"], dims["out"])}, shared)

    def fold(folded: Wide) -> None:
        folded[weight] = np.asarray(kronecker_sum(folded[rule], folded[left] @ folded[right]), np.float64)

    return changed, fold


def _absorbed(graph: AdapterGraph, node: Node) -> Iterator[_Step]:
    """Fold the factor into the op before it if possible, else into the op after it."""
    before = producer(graph, node.inputs[0])
    takes = {"feature", OPS[node.op].factor}  # one number for the whole goes into either, one for each feature does not
    if before is not None and OPS[before.op].linear_in_parameters in takes and readers(graph, before.output) == 1:
        names = tuple(before.parameters.values())

        def multiply(folded: Wide) -> None:
            for name in names:
                folded[name] = folded[name] * _factor(folded, node, folded[name].shape[-1])

        if _may_change(graph, node, names):
            yield bypass(graph, node), multiply
    behind = next((other for other in graph.nodes if other.op == "linear" and node.output in other.inputs), None)
    if behind is not None and readers(graph, node.output) == 1:
        weight = behind.parameters["weight"]

        def multiply_rows(folded: Wide) -> None:
            rows = folded[weight].shape[0]
            folded[weight] = folded[weight] * _factor(folded, node, rows)[:, None]

        if _may_change(graph, node, (weight,)):
            yield bypass(graph, node), multiply_rows


def _may_change(graph: AdapterGraph, factor: Node, names: tuple[str, ...]) -> bool:
    """Nothing else uses them, they are not the base's, and no factor of one place changes what all places share."""
    fixed = {BORROWED_WEIGHT, BORROWED_BIAS}
    if not set(factor.parameters.values()) <= set(graph.shared):
        fixed |= set(graph.shared)
    return all(users(graph, name) == 1 and name not in fixed for name in names)


def _factor(folded: Wide, node: Node, width: int) -> npt.NDArray[np.float64]:
    """Return the factors of the features [width]: the op applied to ones."""
    owned = {role: folded[name] for role, name in node.parameters.items()}
    return np.asarray(LOWERINGS[node.op](node, (np.ones(width),), owned), np.float64)


NEUTRAL_WIDTH = 1
"""Width of a neutral bottleneck. Not 0: an empty tensor through `Gelu` kills onnxruntime 1.21 to 1.28 (SIGFPE)."""

NEUTRAL_NORM_WIDTH = 2
"""Width of a neutral bottleneck with a norm: onnxruntime 1.21 refuses to normalise over one feature."""

_ZERO = "zero"
_UNKNOWN = "unknown"

_LEARNED = {name: row.factor for name, row in OPS.items() if row.factor is not None and row.parameters}
_PER_FEATURE = frozenset(name for name, factor in _LEARNED.items() if factor == "feature")

_ONES = (frozenset(_LEARNED), _PER_FEATURE, frozenset[str]())
"""Learned factors that are 1, tried in this order, and then each of those per feature by itself; the others are 0."""


def neutral_widths(graph: AdapterGraph, site_widths: Mapping[str, int]) -> dict[str, int]:
    """Return the narrowest widths: the site's own widths, 1 for all others, 2 for normalised values."""
    normed = {graph.dimensions(node)["in"] for node in graph.nodes if OPS[node.op].trained_norm}
    narrowest = {symbol: NEUTRAL_NORM_WIDTH if symbol in normed else NEUTRAL_WIDTH for symbol in graph.symbols()}
    return {symbol: site_widths.get(symbol, width) for symbol, width in narrowest.items()}


def neutral_parameters(graph: AdapterGraph, widths: Mapping[str, int]) -> Weights:
    """Parameters for which a site's graph returns the value that it replaces, or a head's graph returns zeros.

    Raises `NotNeutralError` if there are none, with what arrives at the result instead.
    """
    ones = _neutral_ones(graph)
    if ones is None:
        reached = _follow(graph, _parameters_of(graph, _ONES[-1]))[graph.result]
        raise NotNeutralError(
            "an adapter graph has no neutral parameters",
            where=f"result `{graph.result}`",
            found=f"{reached} with all projections and norms at zero",
            expected=f"`{_wanted(graph)}`",
            fix="take its `slot_form`, which has a switch",
        )
    shapes = graph.parameter_shapes(widths)
    return {name: (np.ones if name in ones else np.zeros)(shape, np.float32) for name, shape in shapes.items()}


def has_neutral_parameters(graph: AdapterGraph) -> bool:
    """Return true if the graph has neutral parameters."""
    return _neutral_ones(graph) is not None


def repeated_zeros(graph: AdapterGraph, fixed: Collection[str]) -> frozenset[str]:
    """Return the parameters that may be one long along their last axis where all of their numbers are zero.

    Those are matrices of which both axes have `fixed` lengths, such as `Q`, `K` and `V` of a fusion, and biases beside
    them, if all readers of their results broadcast a single number. In this form, they take no space while idle.
    """
    users = {name: [node for node in graph.nodes if name in node.parameters.values()] for name in graph.parameters}
    matrices = {
        name
        for name, shape in graph.parameters.items()
        if len(shape) == 2 and set(shape) <= set(fixed) and all(node.op == "linear" for node in users[name])
    }
    while True:
        narrow = _made_by(graph, matrices)
        wide = set[str]().union(*(names for value, names in narrow.items() if not _is_repeated(graph, value, narrow)))
        if not wide:
            break
        matrices -= wide
    biases = {name for name, shape in graph.parameters.items() if len(shape) == 1 and users[name]}
    beside = {name for name in biases if all(node.parameters.get("weight") in matrices for node in users[name])}
    return frozenset(matrices | beside)


def _made_by(graph: AdapterGraph, matrices: Collection[str]) -> dict[str, set[str]]:
    """Return the values that are as wide as the results of some matrices, each with those that it comes from."""
    sources: dict[str, set[str]] = {}
    for node in graph.nodes:
        op = OPS[node.op]
        values = op.scaled_by(node.inputs)
        if node.op == "linear" and node.parameters["weight"] in matrices:
            sources[node.output] = {node.parameters["weight"]}
        elif (op.factor == "whole" or op.linear_in == "mixed") and sources.keys() >= set(values):
            sources[node.output] = set().union(*(sources[name] for name in values))
    return sources


def _is_repeated(graph: AdapterGraph, value: str, narrow: Collection[str]) -> bool:
    """Return true if every reader of a value computes the same for one number as for that number repeated."""
    reading = [node for node in graph.nodes if value in node.inputs]
    return value != graph.result and all(
        node.op == "dot"
        or (node.op != "linear" and node.output in narrow)
        or (node.op == "add" and not set(node.inputs) <= set(narrow))
        for node in reading
    )


def degree_idle(graph: AdapterGraph) -> int:
    """Return the highest power of the site values that is computed where all projections and norms are zero.

    Idle, a graph of high powers could turn the base's values into infinity, and 0 times infinity is no number.
    """
    zero = _follow(graph, _parameters_of(graph, _PER_FEATURE))
    degrees = dict.fromkeys(graph.inputs, 1)
    for node in graph.nodes:
        degree = OPS[node.op].degree([degrees[name] for name in node.inputs])
        degrees[node.output] = 0 if zero[node.output] == _ZERO else degree
    return max(degrees.values())


def _wanted(graph: AdapterGraph) -> str:
    return _ZERO if graph.reads_head_values() else graph.replaces


def _neutral_ones(graph: AdapterGraph) -> frozenset[str] | None:
    """Return the parameters that are one, with all others zero, where the graph is neutral; `None` if it never is."""
    choices = [_parameters_of(graph, ops) for ops in _ONES]
    choices += [frozenset({name}) for name in sorted(_parameters_of(graph, _PER_FEATURE))]
    return next((ones for ones in choices if _follow(graph, ones)[graph.result] == _wanted(graph)), None)


def _parameters_of(graph: AdapterGraph, ops: frozenset[str]) -> frozenset[str]:
    """Return the parameters that only these ops use."""
    inside, outside = (
        {name for node in graph.nodes if (node.op in ops) is wanted for name in node.parameters.values()}
        for wanted in (True, False)
    )
    return frozenset(inside - outside)


def _follow(graph: AdapterGraph, ones: frozenset[str]) -> dict[str, str]:
    """Return each value where the other parameters are zero: the name of a site value, zero, or unknown."""
    known = {name: name for name in graph.inputs}
    for node in graph.nodes:
        known[node.output] = _transfer(node, [known[name] for name in node.inputs], ones)
    return known


def _transfer(node: Node, inputs: list[str], ones: frozenset[str]) -> str:
    op = OPS[node.op]
    if op.training_only or (node.parameters and set(node.parameters.values()) <= ones):
        return inputs[0]
    if op.is_zero_by_parameters or op.is_zero([value == _ZERO for value in inputs]):
        return _ZERO
    if node.op == "add" and _ZERO in inputs:
        return inputs[1] if inputs[0] == _ZERO else inputs[0]
    return _UNKNOWN


KEEP, USE = "switch.keep", "switch.use"
"""The parameters of a switch, as wide as the value that is replaced, and [1]."""

_MOST_IDLE = 2
"""Highest power of site values that a neutral graph may compute: a square leaves float32 at 1e19, as norms do."""


def slot_form(graph: AdapterGraph) -> AdapterGraph:
    """Return the inference form of a graph; with a switch if it is that of a site and has no neutral parameters.

    The form of a form is that form. Raises `NotNeutralError` for a switched graph of high powers (`degree_idle`).
    """
    form = inference_form(graph)
    return inference_form(_switched(form)) if _needs_switch(form) else form


def slot_weights(graph: AdapterGraph, parameters: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> Weights:
    """Return the parameters with which `slot_form(graph)` computes what `graph` computes with the given ones.

    `widths` are the symbols that the site fixes, such as `d`. Raises as `slot_form` and `fold_weights`.
    """
    folded, form = fold_weights(graph, parameters), inference_form(graph)
    if not _needs_switch(form):
        return folded
    keep, use = (unused(name, form.parameters) for name in (KEEP, USE))
    width = resolve(SITE_VALUES[form.replaces][-1], widths)
    return fold_weights(_switched(form), {**folded, keep: np.zeros(width), use: np.ones(1)})


def _needs_switch(form: AdapterGraph) -> bool:
    if form.reads_head_values() or has_neutral_parameters(form):
        return False
    if degree_idle(form) > _MOST_IDLE:
        raise NotNeutralError(
            "an adapter graph cannot lie idle: with weights of zero it neither returns its input nor stays small",
            where=f"result `{form.result}`",
            found=f"a power of {degree_idle(form)} of the base's values",
            expected=f"`{form.replaces}`, or at most squares",
            fix=f"let the result be `{form.replaces}` plus what the weights make, or put a norm before the products",
        )
    return True


def _switched(form: AdapterGraph) -> AdapterGraph:
    keep, use = (unused(name, form.parameters) for name in (KEEP, USE))
    unchanged, used, result = (unused(name, form.shapes()) for name in ("kept", "used", "switched"))
    value = form.replaces
    nodes = (
        Node("scale_features", (value,), unchanged, {"weight": keep}),
        Node("learned_scale", (form.result,), used, {"weight": use}),
        Node("add", (unchanged, used), result),
    )
    return replace(
        form,
        inputs=tuple(name for name in SITE_VALUES if name in {*form.inputs, value}),
        parameters={**form.parameters, keep: SITE_VALUES[value][-1:], use: (1,)},
        nodes=(*form.nodes, *nodes),
        result=result,
    )


def rounded(adapter: Adapter, precision: AdapterPrecision) -> Adapter:
    """Return the adapter rounded to a precision, its factors moved into its weights.

    Factors come first, since a rounded number times a factor is not a rounded one. What only training needs is gone.

    Raises:
        TensorError: a number exceeds the range of float16.
        GraphError: a factor takes a number out of the range of float32.
    """
    if precision == "float32":
        return adapter
    weights = {name: tensor for name, tensor in adapter.weights.items() if name.startswith(f"{PREFIX}.")}
    for owner, graph, _ in adapter.components():
        shared = set() if owner == HEAD else set(inference_form(graph).shared)
        common = "" if owner == HEAD else f"{SHARED}.{adapter.placements[owner].graph}"
        for name, tensor in fold_weights(graph, adapter.parameters(owner)).items():
            weights[f"{common if name in shared else owner}.{name}"] = tensor
    graphs = {name: inference_form(graph) for name, graph in adapter.graphs.items()}
    placements = {
        site: Placement(place.graph, {symbol: place.widths[symbol] for symbol in graphs[place.graph].symbols()})
        for site, place in adapter.placements.items()
    }
    head = adapter.head
    if head is not None:
        form = inference_form(head.graph)
        head = replace(head, graph=form, widths={symbol: head.widths[symbol] for symbol in form.symbols()})
    return replace(
        adapter,
        graphs=graphs,
        placements=placements,
        head=head,
        weights=widened(narrowed(weights, precision)),
        training={**adapter.training, PRECISION: precision},
    )
