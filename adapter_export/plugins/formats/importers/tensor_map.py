"""Mapping of checkpoint tensors to parameters of an adapter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapter_export.bases.base_view import ReadPickle
from adapter_export.dtypes import FLOAT_TYPES, Weights
from adapter_export.errors import MissingExtraError, TensorError
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import HEAD, SHARED, Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph, resolve
from adapter_export.graph.ops import Shape
from adapter_export.sites.site import Site
from adapter_export.tables import number_of, verb_for

Tensors = Mapping[str, np.ndarray]

_MOST_LISTED = 40


@dataclass(frozen=True)
class Imported:
    """An imported adapter, and notes for the user."""

    adapter: Adapter
    notes: tuple[str, ...]


def read_file(path: Path, read_pickle: ReadPickle | None) -> Tensors:
    """Read the tensors of a file, bfloat16 as float32; MissingExtraError for a pickle without `read_pickle`."""
    if path.suffix == ".safetensors":
        return read_tensors(path, widen=True)
    if read_pickle is None:
        raise MissingExtraError("torch", extra="torch", needed_for=f"reading `{path.name}`, a pickle of tensors,")
    return read_pickle(path)


@dataclass(frozen=True)
class Source:
    """A tensor of the library by its name in its module, or in the whole adapter if `shared`.

    Its shape uses the symbols of the graph.
    """

    tensor: str
    shape: Shape
    shared: bool = False


@dataclass(frozen=True)
class Recipe:
    """Recipe for one parameter: `make` receives the tensors of the sources, or the value of the symbol `width`.

    `undo` recovers the tensors of the first sources from the parameter, for exporters; `None` if impossible.
    """

    sources: tuple[Source, ...]
    make: Callable[..., np.ndarray]
    width: str | None = None
    undo: Callable[[np.ndarray], Sequence[np.ndarray]] | None = None


Recipes = Mapping[str, Recipe]
"""Recipes by parameter name."""


def as_it_is(tensor: str, shape: Shape, *, shared: bool = False) -> Recipe:
    """Copy a tensor."""
    return Recipe((Source(tensor, shape, shared),), np.asarray, undo=lambda parameter: (parameter,))


def transposed(tensor: str, shape: Shape) -> Recipe:
    """Transpose a matrix stored as [out, in], as in torch; `shape` is the parameter's, [in, out]."""
    return Recipe((Source(tensor, shape[::-1]),), np.transpose, undo=lambda parameter: (parameter.T,))


def flattened(tensor: str, shape: Shape) -> Recipe:
    """Flatten a vector that the library stores as a matrix with one row or column."""
    return Recipe((Source(tensor, shape),), np.ravel, undo=lambda parameter: (parameter,))


def zeros(width: str) -> Recipe:
    """Fill a bias that the library lacks with zeros."""
    return Recipe((), np.zeros, width, undo=lambda _: ())


def library_tensors(
    recipes: Recipes, parameters: Tensors, widths: Mapping[str, int], *, exact: bool = True
) -> dict[Source, np.ndarray] | None:
    """Recover the library tensors from which the recipes make these parameters, bit-exact in float32.

    `None` if a recipe cannot be undone, or no library tensors make these parameters; without `exact`, elements without
    effect may differ.
    """
    by_source: dict[Source, np.ndarray] = {}
    for name, parameter in parameters.items():
        recipe = recipes[name]
        if recipe.undo is None:
            return None
        for source, tensor in zip(recipe.sources, recipe.undo(parameter), strict=False):
            shape = tuple(resolve(dim, widths) for dim in source.shape)
            if tensor.size != math.prod(shape):
                return None
            if not np.array_equal(by_source.setdefault(source, tensor.reshape(shape)), tensor.reshape(shape)):
                return None
    for name, parameter in parameters.items():
        recipe = recipes[name]
        if not by_source.keys() >= set(recipe.sources):
            return None
        tensors = [by_source[source] for source in recipe.sources]
        rebuilt = recipe.make(*tensors) if recipe.width is None else recipe.make(widths[recipe.width])
        if exact and not np.array_equal(rebuilt, parameter):
            return None
    return by_source


def unfit(tensor: np.ndarray) -> str | None:
    """Return the reason why an array cannot be a tensor of an adapter, or `None`."""
    if tensor.dtype.name not in FLOAT_TYPES:
        return f"is {tensor.dtype}, not one of {', '.join(FLOAT_TYPES)}"
    if 0 in tensor.shape:
        return f"has an empty shape {list(tensor.shape)}"
    with np.errstate(over="ignore"):
        wrong = int(np.count_nonzero(~np.isfinite(tensor.astype(np.float32, copy=False))))
    return f"contains {wrong} NaN, Inf or numbers beyond float32" if wrong else None


def conversions(tensors: Iterable[np.ndarray]) -> Iterator[str]:
    """Yield notes on the conversion of tensors that are not float32."""
    counts = Counter(tensor.dtype.name for tensor in tensors)
    for dtype in sorted(counts.keys() & (FLOAT_TYPES.keys() - {"float32"})):
        loss = "each number rounded once" if dtype == "float64" else "without loss"
        yield f"{number_of(counts[dtype], 'tensor')} of {dtype} converted to float32, {loss}"


class TensorMap:
    """The tensors of one file, and what has become of them; `check` raises with all faults at once."""

    def __init__(self, tensors: Tensors, where: object) -> None:
        self.tensors = tensors
        self.graphs: dict[str, AdapterGraph] = {}
        self.placements: dict[str, Placement] = {}
        self.weights: Weights = {}
        self.where = where
        self._used: set[str] = set()
        self._faults: dict[str, None] = {}

    def place(
        self,
        site: Site,
        graph_name: str,
        graph: AdapterGraph,
        recipes: Recipes,
        widths: Mapping[str, int],
        keys: Mapping[str, str],
        shared: Mapping[str, str] | None = None,
    ) -> None:
        """Put a graph at a site, and take its parameters.

        `widths` has a number for each symbol in the shapes, `keys` the name in the file of each tensor of the module,
        `shared` of each tensor of the whole adapter.
        """
        self.graphs.setdefault(graph_name, graph)
        self.placements[site.name] = Placement(graph_name, {symbol: widths[symbol] for symbol in graph.symbols()})
        owners = {name: f"{SHARED}.{graph_name}" if name in graph.shared else site.name for name in graph.parameters}
        self.take({name: f"{owner}.{name}" for name, owner in owners.items()}, recipes, widths, keys, shared)

    def take_head(self, head: Head, recipes: Recipes, keys: Mapping[str, str]) -> None:
        """Take the parameters of a prediction head."""
        self.take({name: f"{HEAD}.{name}" for name in head.graph.parameters}, recipes, head.widths, keys)

    def take(
        self,
        names: Mapping[str, str],
        recipes: Recipes,
        widths: Mapping[str, int],
        keys: Mapping[str, str],
        shared: Mapping[str, str] | None = None,
    ) -> None:
        """Make parameters; `names` are those in the adapter's weights, the other arguments those of `place`."""
        for parameter, name in names.items():
            recipe = recipes[parameter]
            if recipe.width is not None:
                self._keep(name, recipe.make(widths[recipe.width]))
                continue
            tensors = [
                self._find(source, widths, (shared or {}) if source.shared else keys) for source in recipe.sources
            ]
            present = [tensor for tensor in tensors if tensor is not None]
            if len(present) == len(tensors):
                self._keep(name, recipe.make(*present))

    def tensor(self, full: str, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
        """Return a tensor by its name in the file; record a fault and return `None` if it is unfit or misshapen."""
        self._used.add(full)
        tensor = self.tensors[full]
        fault = unfit(tensor)
        if fault is None and shape is not None and tensor.shape != shape:
            fault = f"has shape {list(tensor.shape)}, not {list(shape)}"
        if fault is not None:
            self.fault(f"`{full}` {fault}")
        return tensor if fault is None else None

    def fault(self, text: str) -> None:
        """Record a fault."""
        self._faults[text] = None

    def forget(self, names: Iterable[str]) -> None:
        """Mark tensors without effect as used."""
        self._used.update(names)

    def check(self) -> None:
        """Raise TensorError, listing missing, misshapen and unused tensors."""
        faults = [*self._faults, *(f"`{name}` is left over" for name in self.tensors if name not in self._used)]
        if faults:
            more = f"; and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
            raise TensorError(
                f"{number_of(len(faults), 'tensor')} {verb_for(len(faults), 'do')} not match the config and the base",
                where=self.where,
                found="; ".join(faults[:_MOST_LISTED]) + more,
                fix="pass the model that it was trained on, and the unchanged folder of the library",
            )

    def notes(self) -> Iterator[str]:
        """Yield notes on the conversion of dtypes."""
        return conversions(self.tensors[name] for name in self._used)

    def _find(self, source: Source, widths: Mapping[str, int], keys: Mapping[str, str]) -> np.ndarray | None:
        full = keys.get(source.tensor)
        if full is None:
            example = next(iter(keys.items()), ("", "…"))
            self.fault(f"`{example[1].removesuffix(example[0])}{source.tensor}` is missing")
            return None
        return self.tensor(full, tuple(resolve(dim, widths) for dim in source.shape))

    def _keep(self, name: str, value: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(value, np.float32)
        if not np.isfinite(narrow).all():
            self.fault(f"`{name}` exceeds the range of float32")
        self.weights[name] = narrow
