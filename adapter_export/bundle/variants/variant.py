"""Graph variant: one way in which an exported graph receives the tensors of adapters."""

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
"""Inputs or outputs by name: NumPy's dtype name, and the shape."""


@dataclass(frozen=True)
class GraphInterface:
    """Interface of one ONNX file of a bundle, according to the manifest.

    Attributes:
        file: its path in the bundle.
        inputs: every input of the graph, including overridable initializers.
        outputs: every output.
        overridable: initializers that are also inputs.
        model_version: number that the graph shares with its adapter files; `None` if it may have any.
    """

    file: str
    inputs: Interface
    outputs: Interface
    overridable: tuple[str, ...] = ()
    model_version: int | None = None


@dataclass(frozen=True)
class RebuiltGraph:
    """A graph derived again, which a graph of the bundle must equal in every node and constant.

    Attributes:
        file: path in the bundle of the graph to compare.
        model: the derived graph; `None` if the base is not available.
        source: noun phrase for messages, such as "a new export of the model".
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
        """Slot plan."""

    def model(self, file: str) -> ir.Model:
        """Return a graph by its path in the bundle."""

    def tensors(self, name: str | None) -> Weights:
        """Return a tensor for every slot of an adapter; for the base, the defaults."""

    def source(self, name: str) -> Adapter:
        """Return the bundle's copy of an adapter."""


class GraphView(Protocol):
    """One graph of an opened bundle, at one optimization level."""

    @property
    def bundle(self) -> BundleView:
        """The bundle."""

    def compute(self, file: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run another graph of the bundle at the same level, and return all of its outputs."""


@dataclass
class GraphDraft:
    """The graphs of a bundle during the build.

    Attributes:
        folder: the bundle's folder.
        plan: the slots.
        heads: the outputs of heads.
        adapters: the adapters of the bundle, in the order of the rows of a bank.
        model: the graph with slots.
        checksums: checksums that graphs return; `None` for graphs without them.
        bake: adapters that get a graph in which they are constant.
        copy_weights: whether to copy the base's weights instead of hard-linking them.
        bank: record of the bank, once it is written.
        bank_model: graph of the bank, once it is written.
        fanout: record of the bank in two parts, once they are written.
        baked: path of each adapter's baked graph.
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
        optional: whether `build` continues without it if the base or the adapters do not allow it.
        needs: the variant it is derived from, if that is not the graph with slots.
        holds: the form of an adapter in its graphs, if they contain any, for the names of checks.
        by_row: whether each row of a batch selects an adapter.
        by_text: whether each row of a batch also selects a text.
        runs_as: the variant with the same operators, whose runs round identically; default: itself.
        witnesses: variants whose base shows that this machine rounds the way the build's did.
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
        """Variants of which one must reproduce the recorded bits of the base before this one is compared."""
        return (self.name,)

    def is_wanted(self, names: Sequence[str] | None, _bake: Sequence[str]) -> bool:
        """Return whether a build writes it.

        Args:
            names: variants that the user chose; `None` chooses the standard ones.
            bake: adapters to bake.
        """
        return self.standard if names is None else self.name in names

    @abstractmethod
    def write(self, draft: GraphDraft, base: OnnxBase) -> None:
        """Write its files into a bundle, and add their records to `draft`.

        Raises:
            AdapterError: the adapters cannot share such a graph.
            BaseModelError: the base does not allow it.
        """

    def refill(self, draft: GraphDraft, bundle: BundleView) -> None:  # noqa: B027
        """Rewrite its files for other adapters, without the base; the default does nothing.

        Args:
            draft: has the future adapters of the bundle.
            bundle: the previous bundle.
        """

    def refilled(self, _manifest: Manifest) -> tuple[str, ...]:
        """Return the files that `refill` writes."""
        return ()

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the graphs of a bundle that run as this variant."""
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
            manifest: the bundle's manifest.
            held: the values by name, without those that the graph lacks.
        """
        yield from ()

    def compare_tensors(self, _bundle: BundleView, _name: str | None) -> tuple[Sequence[str], int] | None:
        """Compare the tensors of an adapter in its graphs with those in its files, bit by bit.

        Returns:
            The names of those that differ, and the total number; `None` if its graphs contain no tensors of this
            adapter.
        """
        return None

    @abstractmethod
    def feeds(self, graph: GraphView, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return all feeds of a run.

        Args:
            graph: the graph to run.
            arrays: data inputs.
            chosen: adapter of each row; variants that are not `by_row` use the first.
        """

    @abstractmethod
    def rebuild(self, bundle: BundleView, base: OnnxBase | None) -> Iterator[RebuiltGraph]:
        """Yield each of its graphs, derived again from the graph with slots or from the base.

        Args:
            bundle: the bundle.
            base: the base, exported again; `None` if that is impossible.
        """

    def common(self, constants: Iterable[str]) -> list[str]:
        """Return the constants of the graph with slots that it also contains."""
        return list(constants)


def data_inputs(manifest: Manifest) -> Interface:
    """Return the data inputs of a bundle as an interface."""
    return {record.name: (record.dtype, record.axes) for record in manifest.inputs}


def outputs_of(manifest: Manifest) -> Interface:
    """Return the outputs of a bundle as an interface."""
    return {record.name: (record.dtype, record.axes) for record in manifest.outputs}


def slot_inputs(manifest: Manifest) -> Interface:
    """Return the slots as inputs of a graph."""
    return {slot.name: ("float32", slot.graph_axes) for slot in manifest.slots}


def initializers(model: ir.Model, names: Iterable[str]) -> Weights:
    """Return the values of initializers by name, without those that the graph lacks."""
    held = model.graph.initializers
    values = {name: held[name].const_value for name in names if name in held}
    return {name: np.asarray(value.numpy()) for name, value in values.items() if value is not None}
