"""Tensors of the library become parameters of graphs: looked up, held against their shapes, turned, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import FLOAT_TYPES, Weights
from adapter_export.errors import TensorError
from adapter_export.graph.graph import resolve
from adapter_export.graph.ops import Shape
from adapter_export.importers.adapterhub.folder import Tensors
from adapter_export.importers.adapterhub.places import Module

_MOST_LISTED = 40


@dataclass(frozen=True)
class Source:
    """A tensor of the library.

    Attributes:
        tensor: its name in its module.
        shape: in the symbols of the graph.
        shared: whether it belongs to the whole adapter instead of to one module.
    """

    tensor: str
    shape: Shape
    shared: bool = False


@dataclass(frozen=True)
class Recipe:
    """How one parameter is made of the library's tensors.

    Attributes:
        sources: what is needed; nothing for a parameter that the library does not have.
        make: the parameter, from those tensors in their order, or from its width where there are none.
        width: the symbol of that width.
    """

    sources: tuple[Source, ...]
    make: Callable[..., np.ndarray]
    width: str | None = None


def as_it_is(tensor: str, shape: Shape, *, shared: bool = False) -> Recipe:
    """The tensor itself."""
    return Recipe((Source(tensor, shape, shared),), np.asarray)


def transposed(tensor: str, shape: Shape) -> Recipe:
    """A matrix [in, out], which the library stores as [out, in], as torch does; `shape` is the parameter's."""
    return Recipe((Source(tensor, shape[::-1]),), np.transpose)


def zeros(width: str) -> Recipe:
    """A bias that the library does not have."""
    return Recipe((), np.zeros, width)


class Taken:
    """The tensors of a file, and what has become of them; the faults are collected, so that all of them are told.

    Args:
        tensors: by their names in the file.
        where: the file.
    """

    def __init__(self, tensors: Tensors, where: object) -> None:
        self._tensors = tensors
        self._where = where
        self._used: set[str] = set()
        self._faults: list[str] = []
        self.weights: Weights = {}

    def take(
        self,
        names: Mapping[str, str],
        recipes: Mapping[str, Recipe],
        widths: Mapping[str, int],
        module: Module,
        shared: Module | None = None,
    ) -> None:
        """Make the parameters of one place.

        Args:
            names: for each parameter of the graph, its name in the adapter's weights.
            recipes: for each parameter of the graph, how it is made.
            widths: a number for each symbol in the shapes.
            module: the tensors of the place.
            shared: those of the whole adapter.
        """
        for parameter, name in names.items():
            recipe = recipes[parameter]
            found = [self._find(source, widths, shared if source.shared else module) for source in recipe.sources]
            if recipe.width is not None:
                self._keep(name, recipe.make(widths[recipe.width]))
                continue
            present = [tensor for tensor in found if tensor is not None]
            if len(present) == len(found):
                self._keep(name, recipe.make(*present))

    def fault(self, text: str) -> None:
        """Add to what is wrong."""
        self._faults.append(text)

    def forget(self, names: Iterator[str]) -> None:
        """Tensors that have no effect are not left over."""
        self._used.update(names)

    def check(self) -> None:
        """Hold that nothing is missing, misshapen or left over.

        Raises:
            TensorError: listing every fault.
        """
        left = [f"`{name}` is left over" for name in self._tensors if name not in self._used]
        faults = [*self._faults, *left]
        if faults:
            more = f"; and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
            raise TensorError(
                f"{len(faults)} faults in what the config and the base ask for",
                where=self._where,
                found="; ".join(faults[:_MOST_LISTED]) + more,
                fix="give the model that it was trained on, and the folder as the library wrote it",
            )

    def notes(self) -> Iterator[str]:
        """What was done to element types."""
        for dtype in sorted({self._tensors[name].dtype.name for name in self._used} - {"float32"}):
            loss = "each number rounded once" if dtype == "float64" else "without loss"
            yield f"tensors of type {dtype} were converted to float32, {loss}"

    def _find(self, source: Source, widths: Mapping[str, int], module: Module | None) -> np.ndarray | None:
        full = None if module is None else module.keys.get(source.tensor)
        if full is None:
            self.fault(f"`{_name(source, module)}` is missing")
            return None
        self._used.add(full)
        tensor = self._tensors[full]
        shape = tuple(resolve(dim, widths) for dim in source.shape)
        if tensor.dtype.name not in FLOAT_TYPES:
            self.fault(f"`{full}` is {tensor.dtype}, not one of {', '.join(FLOAT_TYPES)}")
        elif tensor.shape != shape:
            self.fault(f"`{full}` has shape {list(tensor.shape)}, not {list(shape)}")
        elif not np.isfinite(tensor).all():
            self.fault(f"`{full}` holds {int(np.count_nonzero(~np.isfinite(tensor)))} NaN or Inf")
        else:
            return tensor
        return None

    def _keep(self, name: str, value: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(value, np.float32)
        if not np.isfinite(narrow).all():
            self.fault(f"`{name}` leaves the range of float32")
        self.weights[name] = narrow


def _name(source: Source, module: Module | None) -> str:
    if module is None:
        return f"shared_parameters.…{source.tensor}"
    example = next(iter(module.keys.items()), None)
    return source.tensor if example is None else example[1].removesuffix(example[0]) + source.tensor
