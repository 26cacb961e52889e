"""Base class of export formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError
from adapter_export.graph.adapter import Adapter, refuse_prefixes
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.ops import ACTIVATIONS, OPS
from adapter_export.plugins.formats.exporters.recognise import ops_of
from adapter_export.sites.site import Site
from adapter_export.words import argument, command, quoted

WITHOUT_HEAD = "pass " + argument("without_head", True) + " to export the adapter without its head"


@dataclass(frozen=True)
class ExportRequest:
    """An adapter to export.

    Attributes:
        adapter: the adapter.
        base: its base, whose sites contain module paths.
        base_name: path or hub id of the base in the library, for the config.
        model_class: transformers' class of the bare base, such as `BertModel`, if known.
        base_file: the base in the format of the other library, if required.
        prefix: module path of the base inside the library's model, such as `bert`.
        all_layers: true if the sites cover all layers of the base, false if only those with slots in a bundle.

    Raises:
        AdapterError: the adapter has a prefix.
    """

    adapter: Adapter
    base: BaseView
    base_name: str | None = None
    model_class: str | None = None
    base_file: Path | None = None
    prefix: str | None = None
    all_layers: bool = True

    def __post_init__(self) -> None:
        refuse_prefixes([self.adapter], "exported")

    @property
    def imported(self) -> Mapping[str, Any]:
        """Record of an import from PEFT; empty for other adapters."""
        record = self.adapter.training.get("imported")
        return record if isinstance(record, Mapping) else {}

    @property
    def imported_from(self) -> Mapping[str, Any]:
        """Record of an import from AdapterHub; empty for other adapters."""
        record = self.adapter.training.get("imported_from")
        return record if isinstance(record, Mapping) else {}

    def placed(self) -> Iterator[tuple[Site, AdapterGraph]]:
        """Yield each site of the adapter with its graph, in the order of the base."""
        for site in self.base.sites:
            placement = self.adapter.placements.get(site.name)
            if placement is not None:
                yield site, self.adapter.graphs[placement.graph]


@dataclass(frozen=True)
class LoadsAs:
    """The model that loads an export in its library: the bare base, or one with a head.

    Attributes:
        classes: suffixes of the names of classes with such a head; empty for the bare base.
        results: number of results.
    """

    classes: tuple[str, ...] = ()
    results: int = 0


@dataclass(frozen=True)
class Written:
    """Facts of an export.

    Attributes:
        form: name of the method in the library, such as `LORA`.
        modules: paths of the adapted modules in the library.
        tensors: the number of tensors.
        notes: notes on differences.
        loads_as: the model that loads it; `None` if unknown.
    """

    form: str
    modules: Sequence[str]
    tensors: int
    notes: Sequence[str] = ()
    loads_as: LoadsAs | None = None


class ExportFormat(ABC):
    """A format that adapters can be exported to.

    Attributes:
        name: its name on the command line.
        library: display name of the library.
        is_folder: whether it is a folder or a file.
        names_class: whether its config names the model's class.
        allowed: maximum relative difference after reading back, in float64. Default: the rounding unit 1.1e-16 times
            ten thousand, the number of terms in the longest sums.
    """

    name: ClassVar[str]
    library: ClassVar[str]
    is_folder: ClassVar[bool] = True
    names_class: ClassVar[bool] = False
    allowed: ClassVar[float] = 1e-12

    @abstractmethod
    def write(self, request: ExportRequest, path: Path) -> Written:
        """Write an adapter; `path` is an empty folder, or a file to create.

        Raises:
            AdapterError: the format cannot express the adapter. Nothing is written.
        """

    @abstractmethod
    def read_back(self, request: ExportRequest, path: Path) -> Adapter:
        """Read the export, independently of the original adapter."""

    def refusal(self, what: str, *, where: object, found: str, fix: str | None = None) -> AdapterError:
        """Return the error for a feature without counterpart in the library."""
        others = "export to another format with " + argument("to", words="FORMAT") + ", or merge it into the base"
        return AdapterError(
            f"cannot be exported to {self.library}: {what}", where=where, found=found, fix=fix or others
        )


def module_path(site: Site, library: str) -> str:
    """Return the module path of a site; AdapterError if the base does not record it."""
    if site.path is None:
        raise AdapterError(
            f"cannot be exported to {library}: the base records no module path there",
            where=f"site `{site.name}`",
            expected="a base exported or captured from torch, which records the path of every module",
            fix="pass the model's folder or archive with " + argument("base", words="MODEL"),
        )
    return site.path


def check_activation(target: ExportFormat, graph: AdapterGraph, where: str) -> None:
    """Reject an activation without a name in transformers; a name implies the default attributes."""
    for node in graph.nodes:
        row = OPS[node.op]
        if node.op not in ACTIVATIONS or (row.transformers and dict(node.attributes) == dict(row.defaults)):
            continue
        numbers = " and ".join(f"`{name}` {number:g}" for name, number in node.attributes.items())
        raise target.refusal(
            f"it has no activation `{node.op}`{f' with {numbers}' if numbers else ''}",
            where=where,
            found=ops_of(graph),
            fix=f"train it with one of {quoted(name for name in ACTIVATIONS if OPS[name].transformers)}",
        )


def check_places(request: ExportRequest, library: str) -> None:
    """Reject sites that the base lacks, and modules called several times with different weights.

    A module called several times has one set of weights in the library, so that all its sites must be equal.
    """
    adapter, names = request.adapter, {site.name for site in request.base.sites}
    missing = [name for name in adapter.placements if name not in names]
    if missing:
        raise AdapterError(
            "acts at sites that the base does not have",
            where=f"adapter `{adapter.name}`",
            found=quoted(missing),
            fix="pass the base that it was trained on; "
            + command("open_base(MODEL).sites", "sites MODEL")
            + " lists sites",
        )
    calls: dict[tuple[str, str], list[Site]] = {}
    for site in request.base.sites:
        if site.path is not None and site.role != "part":
            calls.setdefault((site.role, site.path), []).append(site)
    for (_, path), sites in calls.items():
        acting = [site for site in sites if site.name in adapter.placements]
        if acting and any(not _same(adapter, acting[0], site) for site in sites):
            raise AdapterError(
                f"cannot be exported to {library}: the base calls one module several times, and the adapter differs "
                "between calls",
                where=f"`{path}`",
                found=quoted(site.name for site in acting),
                expected=f"the same weights at {quoted(site.name for site in sites)}",
            )


def _same(adapter: Adapter, site: Site, other: Site) -> bool:
    if other.name not in adapter.placements:
        return False
    first, second = adapter.placements[site.name], adapter.placements[other.name]
    mine, its = adapter.parameters(site.name), adapter.parameters(other.name)
    same = first.graph == second.graph and dict(first.widths) == dict(second.widths)
    return same and all((mine[name] == its[name]).all() for name in mine)
