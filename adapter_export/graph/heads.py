"""Common prediction heads: functions that return their graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapter_export.errors import UsageError
from adapter_export.graph.adapter import Head
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import HEAD_VALUES, AdapterGraph
from adapter_export.graph.ops import ACTIVATIONS, POOLINGS, PROBABILITY
from adapter_export.graph.tasks import CLASSES, DEFAULT_TYPE, PROBLEM_TYPES, TASK_TYPES, ProblemType, Task
from adapter_export.words import quoted


@dataclass(frozen=True)
class HeadOptions:
    """Options of the common heads; AdapterHub's classification head is `pooling="first", dense=1`.

    `dense` is the number of linears, each followed by `activation`, before the last one. A head that classifies tokens
    has no pooling. `dropout` is the rate before every linear. For embeddings, `projection` adds a last linear to
    another width, and `l2_normalise` scales vectors to length 1, so that their dot product is their cosine.
    """

    pooling: str = "mean"
    dense: int = 0
    activation: str = "tanh"
    dropout: float = 0.0
    projection: bool = False
    l2_normalise: bool = False


def head_graph(task: ProblemType, options: HeadOptions | None = None) -> AdapterGraph:
    """Return the graph of a common head: `last(f(D₂ f(D₁ pool(hidden))))`, with the dense layers of the options.

    Parameters `dense_1.weight` [d, e1], `dense_1.bias` [e1], `dense_2.weight` [e1, e2] …, `classifier.weight` [..,
    classes] and `.bias`; of projected embeddings `projection.weight` [.., width]. Raises `UsageError` for an option's
    value that it cannot have, or that does not go with the task.
    """
    options = options or HeadOptions()
    if task not in PROBLEM_TYPES:
        expected = quoted(PROBLEM_TYPES)
        raise UsageError("unknown problem type", found=f"`{task}`", expected=expected)
    if options.pooling not in POOLINGS:
        raise UsageError("unknown pooling", found=f"`{options.pooling}`", expected=f"one of {quoted(POOLINGS)}")
    if options.activation not in ACTIVATIONS:
        raise UsageError("unknown activation", found=f"`{options.activation}`", expected=", ".join(ACTIVATIONS))
    if options.dropout not in PROBABILITY:
        raise UsageError("a dropout rate is a probability below 1", found=options.dropout, expected="0 ≤ rate < 1")
    if options.dense < 0:
        raise UsageError("a head has a number of dense layers", found=options.dense, expected="at least 0")
    kind = TASK_TYPES[task]
    if kind.has_fixed_head:
        return _sparse_head() if kind.pools else _token_head()
    if not kind.embeds and (options.projection or options.l2_normalise):
        raise UsageError("only an embedding is projected or normalised", found=f"the task `{task}`")
    chain, width = Chain("hidden"), "d"
    if kind.pools:
        row = POOLINGS[options.pooling]
        chain.op(row.name, "pooled", *["mask"][: row.arity.least - 1])

    def linear(name: str, output: str, width_out: str) -> str:
        chain.dropout(options.dropout, f"{output}_input")
        chain.linear(name, width, width_out, output=output)
        return width_out

    for number in range(1, options.dense + 1):
        width = linear(f"dense_{number}", f"dense_{number}", f"e{number}")
        chain.activation(options.activation, f"activated_{number}")
    if not kind.embeds:
        linear("classifier", kind.output, CLASSES)
    elif options.projection:
        linear("projection", "projected", "width")
    if options.l2_normalise:
        chain.op("l2_normalise", kind.output)
    return chain.graph(values=HEAD_VALUES)


def _token_head() -> AdapterGraph:
    """`W·hidden` of length 1 for each token, without a bias (Khattab and Zaharia 2020, §3.2)."""
    chain = Chain("hidden")
    chain.linear("dense_1", "d", "e1", bias=False)
    chain.op("l2_normalise", "l2_normalise_1")
    return chain.graph(values=HEAD_VALUES)


def _sparse_head() -> AdapterGraph:
    """`log(1 + max(maxₜ logits, 0))` over the tokens of the mask, by vocabulary entry (Formal et al. 2021, §3).

    The logarithm grows with its argument, so it need not be computed for every token.
    """
    chain = Chain("hidden")
    chain.op("max_pool", "max_pool_1", "mask")
    chain.op("log_relu", "log_relu_1")
    return chain.graph(values=HEAD_VALUES)


def classification_head(pooling: str = "mean") -> AdapterGraph:
    """`W·pool(hidden) + b`: logits [batch, classes] from the final hidden state, the pooling one of `POOLINGS`."""
    return head_graph(DEFAULT_TYPE, HeadOptions(pooling))


def make_head(
    task: ProblemType | Task = DEFAULT_TYPE,
    *,
    width: int,
    labels: Sequence[str] = (),
    numbers: int = 1,
    hidden: int | None = None,
    options: HeadOptions | None = None,
) -> Head:
    """Return a common head for a base of the given `width`, with dense layers of width `hidden` (default: `width`).

    `task` is a whole record, or a problem type, which goes with `labels`. `numbers` is how many numbers a regression
    gives, or how wide the vectors of a projected embedding are. Raises as `head_graph`; AdapterError as `Task`.
    """
    options = options or HeadOptions()
    problem = task.type if isinstance(task, Task) else task
    graph = head_graph(problem, options)
    record = task if isinstance(task, Task) else Task(problem, tuple(labels) if TASK_TYPES[problem].has_labels else ())
    if record.kind.embeds:
        record = replace(record, **embedding_facts(graph))
    classes = len(record.labels) or record.kind.width or numbers
    fixed = {"d": width, CLASSES: classes, "width": numbers} | ({"e1": numbers} if record.kind.has_fixed_head else {})
    return Head(graph, {name: fixed.get(name, hidden or width) for name in graph.symbols()}, record)


def embedding_facts(graph: AdapterGraph) -> dict[str, Any]:
    """Facts of an embedding in its graph: the `pooling`, if it is a usual one, and if vectors have length 1."""
    ops = [node.op for node in graph.nodes]
    pooling = next((name for name, row in POOLINGS.items() if row.name in ops), None)
    return {"pooling": pooling, "normalised": ops[-1:] == ["l2_normalise"]}
