"""A format of another library: what it can express of an adapter, and how an adapter is written in it and read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from adapter_export.errors import AdapterError, argument, command, quoted
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph
from adapter_export.importers.base_view import BaseView
from adapter_export.sites.site import Site

WITHOUT_HEAD = f"give {argument('without_head', True)} to export the adapter alone"


@dataclass(frozen=True)
class ExportRequest:
    """An adapter to write for another library.

    Attributes:
        adapter: what is written.
        base: the base that it acts in; its sites have the module paths.
        base_name: the path or hub id of the base in the library, for the config.
        model_class: transformers' class of the bare base, such as `BertModel`, if it is known.
        base_file: the base in the other library's own format, where a format needs it.
        prefix: the module path of the base inside the library's model, such as `bert`.
        all_layers: true if the sites are all layers of the base, false if they are those with slots in a bundle.
    """

    adapter: Adapter
    base: BaseView
    base_name: str | None = None
    model_class: str | None = None
    base_file: Path | None = None
    prefix: str | None = None
    all_layers: bool = True

    @property
    def imported(self) -> Mapping[str, Any]:
        """The record of PEFT's folder that the adapter was imported from; empty for any other adapter."""
        found = self.adapter.training.get("imported")
        return found if isinstance(found, Mapping) else {}

    @property
    def imported_from(self) -> Mapping[str, Any]:
        """The record of AdapterHub's folder that the adapter was imported from; empty for any other adapter."""
        found = self.adapter.training.get("imported_from")
        return found if isinstance(found, Mapping) else {}

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
        classes: the ends of the names of classes with such a head; empty for the bare base.
        results: the number of its results.
    """

    classes: tuple[str, ...] = ()
    results: int = 0


@dataclass(frozen=True)
class Written:
    """Facts of an export.

    Attributes:
        form: what the adapter is called in the library, such as `LORA`.
        modules: the paths of the modules at which it acts there.
        tensors: the number of tensors.
        notes: differences that a user should know.
        loads_as: the model that loads it; `None` if that is not known.
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
        library: the library, in words.
        is_folder: true if it is a folder, false for one file.
        names_class: true if its config names the class of the model.
        allowed: maximum relative difference of what is read back, in float64. The default is float64's own: it rounds
            at 1.1e-16, and sums of ten thousand terms, the longest here, keep errors below that many times it.
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
            AdapterError: the format cannot express it; the message says what and why. Nothing is written.
        """

    @abstractmethod
    def read_back(self, request: ExportRequest, path: Path) -> Adapter:
        """Read what was written, independently of the adapter that it was written from."""

    def refusal(self, what: str, *, where: object, found: str, fix: str | None = None) -> AdapterError:
        """Return the error of what has no counterpart in the library."""
        others = f"export to another format with {argument('to', words='FORMAT')}, or merge it into the base"
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
            fix=f"give the model's own folder or archive with {argument('base', words='MODEL')}",
        )
    return site.path


def check_places(request: ExportRequest, library: str) -> None:
    """Refuse sites that the base lacks, and modules called several times with different weights.

    A module that the base calls several times has one set of weights in the library, so that all of its sites must have
    the same.
    """
    adapter, names = request.adapter, {site.name for site in request.base.sites}
    missing = [name for name in adapter.placements if name not in names]
    if missing:
        raise AdapterError(
            "acts at sites that the base does not have",
            where=f"adapter `{adapter.name}`",
            found=quoted(missing),
            fix=f"pass the base that it was trained on; {command('open_base(MODEL).sites', 'sites MODEL')} lists sites",
        )
    calls: dict[tuple[str, str], list[Site]] = {}
    for site in request.base.sites:
        if site.path is not None and site.role != "part":
            calls.setdefault((site.role, site.path), []).append(site)
    for (_, path), sites in calls.items():
        acting = [site for site in sites if site.name in adapter.placements]
        if acting and any(not _same(adapter, acting[0], site) for site in sites):
            raise AdapterError(
                f"cannot be exported to {library}: the base calls one module several times, and the adapter is not the "
                "same at each call",
                where=f"`{path}`",
                found=quoted(site.name for site in acting),
                expected=f"the same weights at {quoted(site.name for site in sites)}",
            )


def _same(adapter: Adapter, site: Site, other: Site) -> bool:
    if other.name not in adapter.placements:
        return False
    one, two = adapter.placements[site.name], adapter.placements[other.name]
    mine, its = adapter.parameters(site.name), adapter.parameters(other.name)
    same = one.graph == two.graph and dict(one.widths) == dict(two.widths)
    return same and all((mine[name] == its[name]).all() for name in mine)
