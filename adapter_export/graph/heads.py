"""The usual prediction heads, each a function that returns its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapter_export.errors import UsageError
from adapter_export.graph.adapter import Head
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.ops import ACTIVATIONS, OPS, Dim, Shape
from adapter_export.graph.tasks import CLASSES, DEFAULT_TASK, TASKS, Task

POOLINGS = ("mean", "first")
"""What stands for a text: the mean over the tokens that the mask keeps, or the first token."""

_POOLS = {"mean": ("mean_pool", ("hidden", "mask")), "first": ("first_token", ("hidden",))}


@dataclass(frozen=True)
class HeadOptions:
    """What the usual heads have in common.

    Attributes:
        pooling: of `POOLINGS`; a head that classifies tokens pools nothing.
        dense: how many linears with the activation behind them stand before the last one. AdapterHub's classification
            head is `pooling="first", dense=1`.
        activation: one of `ACTIVATIONS`.
        dropout: the rate before every linear, in training.
        projection: for embeddings, whether a last linear gives the vector another width; always so for other tasks.
        l2_normalise: for embeddings, whether vectors have length 1, so that their dot product is their cosine.
    """

    pooling: str = "mean"
    dense: int = 0
    activation: str = "tanh"
    dropout: float = 0.0
    projection: bool = False
    l2_normalise: bool = False


def head_graph(task: Task, options: HeadOptions | None = None) -> AdapterGraph:
    """The graph of a usual head: `last(f(D₂ f(D₁ pool(hidden))))`, with as many dense layers as the options say.

    Parameters `dense_1.weight` [d, e1], `dense_1.bias` [e1], `dense_2.weight` [e1, e2] and so on, and
    `classifier.weight` [.., classes], `classifier.bias` [classes]. For embeddings the last one is
    `projection.weight` [.., width], if there is one.

    Raises:
        UsageError: an option has a value that it cannot have, or does not go with the task.
    """
    options = options or HeadOptions()
    _check(task, options)
    chain = _Chain(options)
    if task != "token_classification":
        op, inputs = _POOLS[options.pooling]
        chain.put(Node(op, inputs, "pooled"))
    for number in range(1, options.dense + 1):
        chain.linear(f"dense_{number}", f"dense_{number}", f"e{number}")
        slope = {"slope": 0.01} if options.activation == "leaky_relu" else {}
        chain.put(Node(options.activation, (chain.value,), f"activated_{number}", attributes=slope))
    if task != "embedding":
        chain.linear("classifier", "token_logits" if task == "token_classification" else "logits", CLASSES)
    elif options.projection:
        chain.linear("projection", "projected", "width")
    if options.l2_normalise:
        chain.put(Node("l2_normalise", (chain.value,), "embedding"))
    return chain.graph()


def classification_head(pooling: str = "mean") -> AdapterGraph:
    """`W·pool(hidden) + b`: logits [batch, classes] from the final hidden state.

    Args:
        pooling: `mean` over the tokens that the mask keeps, or the `first` token.
    """
    return head_graph("sequence_classification", HeadOptions(pooling))


def make_head(
    task: Task = DEFAULT_TASK,
    *,
    width: int,
    labels: Sequence[str] = (),
    numbers: int = 1,
    hidden: int | None = None,
    options: HeadOptions | None = None,
) -> Head:
    """A usual head with its widths.

    Args:
        task: what it is for.
        width: that of the base's final hidden state.
        labels: the classes of a classification.
        numbers: how many numbers a regression gives, or how wide the vectors of an embedding with a projection are.
        hidden: the width of its dense layers; `width` if not given.
        options: what it looks like.

    Raises:
        UsageError: an option has a value that it cannot have, or does not go with the task.
    """
    graph = head_graph(task, options)
    fixed = {"d": width, CLASSES: len(labels) or numbers, "width": numbers}
    return Head(graph, {name: fixed.get(name, hidden or width) for name in graph.symbols()}, tuple(labels), task)


class _Chain:
    """Nodes one after the other, each reading the one before; dropout stands before every linear."""

    def __init__(self, options: HeadOptions) -> None:
        self.value = "hidden"
        self._width: Dim = "d"
        self._dropout = options.dropout
        self._nodes: list[Node] = []
        self._parameters: dict[str, Shape] = {}

    def put(self, node: Node) -> None:
        self._nodes.append(node)
        self.value = node.output

    def linear(self, name: str, output: str, width: Dim) -> None:
        if self._dropout:
            self.put(Node("dropout", (self.value,), f"{output}_input", attributes={"rate": self._dropout}))
        weight, bias = f"{name}.weight", f"{name}.bias"
        self._parameters |= {weight: (self._width, width), bias: (width,)}
        self.put(Node("linear", (self.value,), output, {"weight": weight, "bias": bias}))
        self._width = width

    def graph(self) -> AdapterGraph:
        read = {name for node in self._nodes for name in node.inputs}
        inputs = tuple(name for name in ("hidden", "mask") if name in read)
        return AdapterGraph(inputs, self._parameters, tuple(self._nodes), self.value)


def _check(task: Task, options: HeadOptions) -> None:
    if task not in TASKS:
        raise UsageError("unknown task", found=f"`{task}`", expected=", ".join(f"`{name}`" for name in TASKS))
    if options.pooling not in POOLINGS:
        expected = " or ".join(f"`{name}`" for name in POOLINGS)
        raise UsageError("unknown pooling", found=f"`{options.pooling}`", expected=expected)
    if options.activation not in ACTIVATIONS:
        raise UsageError("unknown activation", found=f"`{options.activation}`", expected=", ".join(ACTIVATIONS))
    if options.dense < 0:
        raise UsageError("a head has a number of dense layers", found=options.dense, expected="at least 0")
    if options.dropout not in OPS["dropout"].attributes["rate"]:
        raise UsageError("a dropout rate is a probability below 1", found=options.dropout, expected="0 ≤ rate < 1")
    if task != "embedding" and (options.projection or options.l2_normalise):
        raise UsageError("only an embedding is projected or normalised", found=f"the task `{task}`")
