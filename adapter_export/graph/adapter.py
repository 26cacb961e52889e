"""Adapters: graphs at sites, weights, the prediction head and the record of their origin."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, TensorError, within
from adapter_export.graph.graph import HEAD_VALUES, SITE_VALUES, AdapterGraph, Cost, cost, stored
from adapter_export.graph.tasks import CLASSES, OUTPUT_SHAPES, HeadOutput, Task, head_result
from adapter_export.sites.site import Site
from adapter_export.tables import Described, number_of
from adapter_export.words import quoted

BASE_HEAD = "base-head"
"""The name of the base head among adapters."""

HEAD = "head"
"""Prefix of the head's tensors; a site's tensors have the site's name as prefix."""

SHARED = "shared"
"""Prefix of tensors shared by all sites of one graph: `shared.<graph>.<parameter>`."""

PREFIX = "prefix"
"""Prefix of the tensors of trained keys and values: `prefix.<cache>`, by the base's input."""

TOKENS = "tokens"
"""Axis of trained keys and values along which they are longer than another prefix."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of adapters, which become names of files on every operating system."""

_MOST_NODES = 1_000_000
"""Maximum nodes and parameters of graphs over all sites: a small file can name a large graph at many sites."""

_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))}
"""Names of devices on Windows, with any suffix and in any case."""


@dataclass(frozen=True)
class Placement:
    """One graph at one site, with a number for each of its symbols, such as `{"d": 384, "b": 64}`."""

    graph: str
    widths: Mapping[str, int]


@dataclass(frozen=True)
class Head:
    """A prediction head: a graph from the final hidden state to the result of its task, and the widths of its symbols.

    The result is logits or numbers [batch, classes], logits [batch, tokens, classes], or vectors [batch, width].
    Without a `task` only the raw outputs are returned, and answers are refused.
    """

    graph: AdapterGraph
    widths: Mapping[str, int]
    task: Task | None = None

    @property
    def output(self) -> HeadOutput:
        """The output that the head fills."""
        output = head_result(self.graph.shapes()[self.graph.result])
        assert output is not None  # as the adapter has checked
        return output

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names in the order of the logits; empty without classes."""
        return () if self.task is None else self.task.labels


@dataclass(frozen=True)
class Prefix:
    """Trained keys and values that a language model reads before the first token of each row.

    `shapes` are those of its tensors, by the inputs of the base with its caches: the axes of the cache without the
    batch, of which one is `tokens`.
    """

    tokens: int
    shapes: Mapping[str, tuple[int | str, ...]]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, by its name."""
        return {
            f"{PREFIX}.{cache}": tuple(self.tokens if axis == TOKENS else int(axis) for axis in shape)
            for cache, shape in self.shapes.items()
        }


@dataclass(frozen=True, repr=False)
class Adapter(Described):
    """An adapter, validated on construction.

    `base` is the fingerprint of the base that it was trained on, `kind` what made its graphs (`custom` if written by
    hand), `placements` are by site in the order of the base. `weights` are float32 tensors `<site>.<parameter>`,
    `shared.<graph>.<parameter>`, `head.<parameter>` and `prefix.<cache>`. `training` is any JSON object.

    Raises `AdapterError` if graphs and head do not fit together, `TensorError` as `check_tensors`.
    """

    name: str
    kind: str
    base: str
    graphs: Mapping[str, AdapterGraph]
    placements: Mapping[str, Placement]
    weights: Weights
    head: Head | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    prefix: Prefix | None = None

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        task = None if self.task is None else self.task.type
        facts = {"name": self.name, "kind": self.kind, "sites": len(self.placements)}
        return {**facts, "parameters": self.cost().parameters, "task": task, "base": self.base[:19]}

    def __post_init__(self) -> None:
        check_name(self.name)
        with within(f"adapter `{self.name}`"):
            unknown = sorted({placement.graph for placement in self.placements.values()} ^ set(self.graphs))
            if unknown:
                raise AdapterError("graphs and placements differ", found=", ".join(unknown))
            if not self.placements and self.head is None and self.prefix is None:
                raise AdapterError("acts nowhere", expected="a placement, a head or a prefix")
            for reserved in {HEAD, SHARED, PREFIX} & set(self.placements):
                raise AdapterError(f"a site may not be called `{reserved}`")
            if self.prefix is not None:
                self._check_prefix(self.prefix)
            self._check_graphs()
            self._check_tensor_names()
        check_tensors(self.weights, self.tensor_shapes(), f"adapter `{self.name}`")

    @property
    def task(self) -> Task | None:
        """The task of its head; `None` without a head or task."""
        return None if self.head is None else self.head.task

    def _check_prefix(self, prefix: Prefix) -> None:
        """Check that the tensors of a prefix have one axis of tokens."""
        wrong = [
            cache
            for cache, shape in prefix.shapes.items()
            if list(shape).count(TOKENS) != 1 or not all(isinstance(axis, int) for axis in shape if axis != TOKENS)
        ]
        if wrong or not prefix.shapes:
            expected = f"a shape with numbers and one axis `{TOKENS}` for each cache"
            raise AdapterError("has a prefix without shapes", found=quoted(wrong) or "no caches", expected=expected)

    def _check_graphs(self) -> None:
        """Check that a site's graph reads site values and replaces one of them, and that a head's fits its task."""
        total = sum(len(graph.nodes) + len(graph.parameters) for _, graph, _ in self.components())
        if total > _MOST_NODES:
            expected = f"at most {_MOST_NODES:,}"
            raise AdapterError(
                "has too many nodes and parameters at all its sites", found=f"{total:,}", expected=expected
            )
        checked = set[tuple[object, ...]]()
        for owner, graph, widths in self.components():
            place = owner == HEAD, id(graph), *sorted(widths.items())
            if place in checked:  # the same graph at thousands of sites
                continue
            checked.add(place)
            values = HEAD_VALUES if owner == HEAD else SITE_VALUES
            with within(f"`{owner}`"):
                if not set(graph.inputs) <= set(values):
                    read, expected = ", ".join(graph.inputs), ", ".join(values)
                    raise AdapterError("a graph reads values that are not there", found=read, expected=expected)
                result, wanted = graph.shapes()[graph.result], SITE_VALUES[graph.replaces]
                if owner != HEAD and result != wanted:
                    raise AdapterError("a graph returns a wrong shape", found=list(result), expected=list(wanted))
                graph.check_widths(widths)
        if self.head is not None:
            with within(HEAD):
                _check_head(self.head)

    def _check_tensor_names(self) -> None:
        """Check that no two tensors have one name, and that a shared one has one shape at all sites."""
        owners = [owner for owner, _, _ in self.components()]
        tensors = {(prefix, name) for owner in owners for name, prefix in self._prefixes(owner).items()}
        names = Counter(f"{prefix}.{name}" for prefix, name in tensors)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise AdapterError("two tensors have one name", found=quoted(twice), fix="rename a parameter of its graphs")
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self._shapes():
            if shapes.setdefault(name, shape) != shape:
                raise AdapterError(
                    "a shared tensor has different shapes in different places",
                    where=f"`{name}`",
                    found=f"{list(shapes[name])} and {list(shape)}",
                    fix="give those places the same widths, or graphs of their own",
                )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor."""
        return dict(self._shapes())

    def tensor_names(self, owner: str) -> dict[str, str]:
        """Return the tensor name of each parameter of one site, or of the `head`; shared tensors have one name."""
        return {name: f"{prefix}.{name}" for name, prefix in self._prefixes(owner).items()}

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for owner, graph, widths in self.components():
            names = self.tensor_names(owner)
            yield from ((names[name], shape) for name, shape in graph.parameter_shapes(widths).items())
        if self.prefix is not None:
            yield from self.prefix.tensor_shapes().items()

    def _prefixes(self, owner: str) -> dict[str, str]:
        if owner == HEAD and self.head is not None:
            return dict.fromkeys(self.head.graph.parameters, HEAD)  # a head shares nothing
        name = self.placements[owner].graph
        graph, shared = self.graphs[name], set(self.graphs[name].shared)
        return {parameter: f"{SHARED}.{name}" if parameter in shared else owner for parameter in graph.parameters}

    def components(self) -> Iterator[tuple[str, AdapterGraph, Mapping[str, int]]]:
        """Yield every site with its graph and widths, then the head's under the name `head`."""
        for site, placement in self.placements.items():
            yield site, self.graphs[placement.graph], placement.widths
        if self.head is not None:
            yield HEAD, self.head.graph, self.head.widths

    def parameters(self, owner: str) -> Weights:
        """Return the tensors of one site, or of the `head`, by the parameter names of its graph."""
        return {name: self.weights[tensor] for name, tensor in self.tensor_names(owner).items()}

    def layers(self, sites: Iterable[Site]) -> dict[int, list[str]]:
        """Return its sites by layer of the base, lowest first; embeddings are in no layer."""
        layers: dict[int, list[str]] = {}
        for site in sites:
            if site.name in self.placements and site.layer is not None:
                layers.setdefault(site.layer, []).append(site.name)
        return dict(sorted(layers.items()))

    def without(self, places: Collection[str]) -> Adapter:
        """Return the adapter without these sites, with its head; AdapterError if nothing is left."""
        remaining = {site: placement for site, placement in self.placements.items() if site not in places}
        owners = [owner for owner, _, _ in self.components() if owner not in places]
        tensors = {tensor for owner in owners for tensor in self.tensor_names(owner).values()}
        used = {placement.graph for placement in remaining.values()}
        return replace(
            self,
            placements=remaining,
            graphs={name: graph for name, graph in self.graphs.items() if name in used},
            weights={name: tensor for name, tensor in self.weights.items() if name in tensors},
        )

    def without_prefix(self) -> Adapter | None:
        """Return the adapter without its prefix, or `None` if nothing is left."""
        if self.prefix is None:
            return self
        if not self.placements and self.head is None:
            return None
        weights = {name: tensor for name, tensor in self.weights.items() if not name.startswith(f"{PREFIX}.")}
        return replace(self, prefix=None, weights=weights)

    def without_head(self) -> Adapter:
        """Return the adapter without its head; AdapterError if nothing is left."""
        weights = {name: tensor for name, tensor in self.weights.items() if not name.startswith(f"{HEAD}.")}
        return replace(self, head=None, weights=weights)

    def cost(self) -> Cost:
        """Parameters, bytes and multiply-accumulates of all components; a shared tensor is stored once."""
        accumulates = sum(cost(graph, widths).multiply_accumulates for _, graph, widths in self.components())
        return stored(self.tensor_shapes().values(), accumulates)


def _check_head(head: Head) -> None:
    """Check that the result of a head is one that heads may have, and the one that its task needs."""
    shape = head.graph.shapes()[head.graph.result]
    result, task = head_result(shape), head.task
    if result is None or (task is not None and result != task.output):
        expected = " or ".join(OUTPUT_SHAPES.values())
        if task is not None:
            expected = f"{OUTPUT_SHAPES[task.output]} for the problem type `{task.type}`"
        raise AdapterError("a graph returns a wrong shape", found=list(shape), expected=expected)
    if task is None or CLASSES not in shape:
        return
    classes = head.widths.get(CLASSES, len(task.labels))
    if task.kind.has_labels and classes != len(task.labels):
        raise AdapterError(
            "labels and classes differ", found=number_of(len(task.labels), "label"), expected=f"{classes}"
        )
    wanted = task.kind.width or classes
    if classes != wanted:
        raise AdapterError(f"a head for `{task.type}` gives another number of columns", found=classes, expected=wanted)


def refuse_prefixes(adapters: Iterable[Adapter], purpose: str) -> None:
    """Raise an `AdapterError` for an adapter with a prefix, which no change at a site expresses."""
    for adapter in adapters:
        if adapter.prefix is not None:
            raise AdapterError(
                f"has keys and values before the first token, which cannot be {purpose}",
                where=f"adapter `{adapter.name}`",
                found=f"a prefix of {number_of(adapter.prefix.tokens, 'token')}",
                expected="an adapter with sites",
            )


def check_name(name: str) -> str:
    """Return the name if an adapter may have it; raises `AdapterError` if not."""
    if name.partition(".")[0].upper() in _DEVICES:
        raise AdapterError(
            "a name that no file may have on Windows", found=f"`{name}`", fix="choose another, such as `my-adapter`"
        )
    if not _NAME.fullmatch(name):
        raise AdapterError(
            "a name that no adapter may have",
            found=f"`{name}`",
            expected="letters, digits, `.`, `_` and `-`, a letter or digit first",
            fix="choose another name",
        )
    return name


def check_tensors(tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare tensors with the shapes that they must have.

    Raises `TensorError`, listing every tensor that is missing, left over, misshapen, not float32 or not finite.
    """
    faults = [f"`{name}` is missing" for name in expected if name not in tensors]
    faults += [f"`{name}` is left over" for name in tensors if name not in expected]
    for name, shape in expected.items():
        if (tensor := tensors.get(name)) is None:
            continue
        if 0 in shape:
            faults.append(f"`{name}` has an empty shape {list(shape)}")
        if tensor.shape != shape:
            faults.append(f"`{name}` has shape {list(tensor.shape)}, not {list(shape)}")
        if tensor.dtype != np.float32:
            faults.append(f"`{name}` is {tensor.dtype}, not float32")
        elif not np.isfinite(tensor).all():
            faults.append(f"`{name}` holds {int(np.count_nonzero(~np.isfinite(tensor)))} NaN or Inf")
    if faults:
        raise TensorError("tensors do not fit", where=where, found="; ".join(faults), fix="write the adapter again")
