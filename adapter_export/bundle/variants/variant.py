"""A graph variant: one way in which an exported graph receives the tensors of adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Weights
from adapter_export.format.manifest import Axis, BankRecord, FanoutRecord, Manifest, VariantName
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.rewrite.checksums import SlotChecksums
from adapter_export.onnx_backend.slots import HeadSum, SlotPlan

Interface = Mapping[str, tuple[str, Sequence[Axis]]]
"""Inputs or outputs by name: NumPy's name of the dtype, and the shape."""


@dataclass(frozen=True)
class GraphInterface:
    """The interface of one ONNX file of a bundle, as the manifest describes it.

    Attributes:
        file: its path in the bundle.
        inputs: every input of the graph, overridable initializers included.
        outputs: every output.
        overridable: the initializers that are inputs as well.
        model_version: the number that the graph shares with its adapter files; `None` where it may have any.
    """

    file: str
    inputs: Interface
    outputs: Interface
    overridable: tuple[str, ...] = ()
    model_version: int | None = None


@dataclass(frozen=True)
class Remade:
    """A graph made again, which a graph of the bundle must equal in every node and constant.

    Attributes:
        file: the path in the bundle of the graph to compare.
        model: the graph made again; `None` where the base is not at hand.
        source: the step that makes it, for messages.
    """

    file: str
    model: ir.Model | None
    source: str


class BundleView(Protocol):
    """The parts of an opened bundle that variants read."""

    @property
    def manifest(self) -> Manifest:
        """The manifest."""

    @property
    def plan(self) -> SlotPlan:
        """The plan of the slots."""

    def model(self, file: str) -> ir.Model:
        """Return a graph by its path in the bundle."""

    def tensors(self, name: str | None) -> Weights:
        """Return a tensor for every slot of an adapter; of the base, the defaults."""

    def source(self, name: str) -> Adapter:
        """Return an adapter as it was built in."""


class GraphView(Protocol):
    """One graph of an opened bundle, at one optimization level."""

    @property
    def bundle(self) -> BundleView:
        """The bundle."""

    def compute(self, file: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run another graph of the bundle at the same level, and return all of its outputs."""


@dataclass
class GraphDraft:
    """The graphs of a bundle while they are written.

    Attributes:
        folder: the bundle's folder.
        plan: the slots.
        heads: the outputs that heads fill.
        adapters: the adapters of the bundle, in the order of the rows of a bank.
        model: the graph with slots.
        checksums: the checksums that graphs give; `None` for graphs without them.
        bake: the adapters that get a graph in which they are constant.
        copy_weights: whether the base's weights are copied instead of hard-linked.
        bank: the record of the bank, once it is written.
        bank_model: the graph of the bank, once it is written.
        fanout: the record of the bank in two parts, once these are written.
        baked: the path of each adapter's baked graph.
    """

    folder: Path
    plan: SlotPlan
    heads: Sequence[HeadSum]
    adapters: Sequence[Adapter]
    model: ir.Model
    checksums: SlotChecksums | None = None
    bake: Sequence[str] = ()
    copy_weights: bool = False
    bank: BankRecord | None = None
    bank_model: ir.Model | None = None
    fanout: FanoutRecord | None = None
    baked: dict[str, str] = field(default_factory=dict)


class Variant(ABC):
    """One way in which an exported graph receives the tensors of adapters.

    Attributes:
        name: its key in the manifest's `graphs`, and in reports.
        file: the file of its graph in a bundle.
        summary: the choice that a call has, for tables.
        standard: whether `build` writes it by default.
        optional: whether `build` goes on without it where the base or the adapters do not allow it.
        needs: the variant that it is made from, if that is not the graph with slots.
        holds: the form of an adapter in its graphs, if these hold any, for the names of checks.
        by_row: whether each row of a batch chooses an adapter.
        by_text: whether each row of a batch chooses a text as well.
        runs_as: the variant with the same operators, whose runs round alike; default: none but itself.
        witnesses: the variants whose base shows that this machine rounds as when the bundle was built.
    """

    name: ClassVar[VariantName]
    file: ClassVar[str]
    summary: ClassVar[str]
    standard: ClassVar[bool] = True
    optional: ClassVar[bool] = False
    needs: ClassVar[VariantName | None] = None
    holds: ClassVar[str] = "tensors"
    by_row: ClassVar[bool] = False
    by_text: ClassVar[bool] = False
    runs_as: ClassVar[VariantName | None] = None

    @property
    def witnesses(self) -> tuple[VariantName, ...]:
        """The variants of which one must give the recorded bits of the base for this one to be compared."""
        return (self.name,)

    def is_wanted(self, names: Sequence[str] | None, _bake: Sequence[str]) -> bool:
        """Return whether a build writes it.

        Args:
            names: the variants that the user chose; `None` chooses the standard ones.
            bake: the adapters to bake.
        """
        return self.standard if names is None else self.name in names

    @abstractmethod
    def write(self, draft: GraphDraft, base: OnnxBase) -> None:
        """Write its files into a bundle, and keep their records in `draft`.

        Raises:
            AdapterError: the adapters cannot share such a graph.
            BaseModelError: the base cannot have one.
        """

    def refill(self, draft: GraphDraft, bundle: BundleView) -> None:  # noqa: B027
        """Write its files again for other adapters, without the base; the default needs none of it.

        Args:
            draft: with the adapters of the bundle as it will be.
            bundle: the bundle as it was.
        """

    def refilled(self, _manifest: Manifest) -> tuple[str, ...]:
        """Return the files that `refill` writes."""
        return ()

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the graphs of a bundle that are run as this variant."""
        return (manifest.graphs[self.name],) if self.name in manifest.graphs else ()

    def adapters(self, manifest: Manifest, _file: str) -> tuple[str | None, ...]:
        """Return the adapters that a graph can run; `None` is the base."""
        return (None, *(record.name for record in manifest.adapters))

    @abstractmethod
    def interfaces(self, manifest: Manifest) -> Iterator[GraphInterface]:
        """Yield the interface of each of its files."""

    def default_faults(self, _manifest: Manifest, _held: Mapping[str, np.ndarray]) -> Iterator[str]:
        """Yield each fault in the values of its overridable initializers, as a clause for a message.

        Args:
            manifest: that of the bundle.
            held: the values by name; one that the graph lacks is absent.
        """
        yield from ()

    def compare_tensors(self, _bundle: BundleView, _name: str | None) -> tuple[Sequence[str], int] | None:
        """Compare the tensors of an adapter in its graphs with those in its files, bit by bit.

        Returns:
            The names of those that differ, and the number of all; `None` if its graphs hold no tensors of this adapter.
        """
        return None

    @abstractmethod
    def feeds(self, graph: GraphView, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return everything that a run is fed with.

        Args:
            graph: the graph that runs.
            arrays: the data inputs.
            chosen: the adapter of each row; a variant that is not `by_row` takes the first.
        """

    @abstractmethod
    def remade(self, bundle: BundleView, base: OnnxBase | None) -> Iterator[Remade]:
        """Yield each of its graphs as it is made again: from the graph with slots, or from the base.

        Args:
            bundle: the bundle.
            base: the base made again; `None` where it cannot be.
        """

    def common(self, constants: Iterable[str]) -> list[str]:
        """Return which constants of the graph with slots it holds, too."""
        return list(constants)


def data_inputs(manifest: Manifest) -> Interface:
    """Return the data inputs of a bundle as an interface."""
    return {one.name: (one.dtype, one.axes) for one in manifest.inputs}


def outputs_of(manifest: Manifest) -> Interface:
    """Return the outputs of a bundle as an interface."""
    return {one.name: (one.dtype, one.axes) for one in manifest.outputs}


def slot_inputs(manifest: Manifest) -> Interface:
    """Return the slots as inputs of a graph."""
    return {slot.name: ("float32", slot.graph_axes) for slot in manifest.slots}


def initializers(model: ir.Model, names: Iterable[str]) -> Weights:
    """Return the values of initializers by name, without those that the graph lacks."""
    held = model.graph.initializers
    values = {name: held[name].const_value for name in names if name in held}
    return {name: np.asarray(value.numpy()) for name, value in values.items() if value is not None}
