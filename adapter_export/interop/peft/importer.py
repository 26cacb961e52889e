"""A folder that PEFT wrote becomes an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adapter_export.errors import AdapterError, TensorError
from adapter_export.graph.adapter import Adapter
from adapter_export.interop.calls import check_calls
from adapter_export.interop.peft.folder import PeftFolder, read_folder
from adapter_export.interop.peft.head import BaseTensor, HeadChoice, HeadParts, make_head_parts
from adapter_export.interop.peft.numbers import lost_by_number, sites_by_number
from adapter_export.interop.peft.options import Options
from adapter_export.interop.peft.parts import Update, make_parts
from adapter_export.interop.peft.paths import Renaming, find_renaming
from adapter_export.interop.peft.targets import targeted
from adapter_export.interop.peft.tensors import Sorted, sort_tensors
from adapter_export.sites.site import Site, SiteMap


@dataclass(frozen=True)
class Imported:
    """An adapter, and what was decided on the way to it."""

    adapter: Adapter
    notes: tuple[str, ...]


def import_peft(
    folder: Path,
    sites: SiteMap,
    *,
    base: str,
    name: str,
    base_tensor: BaseTensor = lambda _: None,
    member: str | None = None,
    head: HeadChoice | None = None,
    by_number: bool = False,
) -> Imported:
    """Import a LoRA or an IA3.

    Args:
        folder: has `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`.
        sites: the sites of the base; its linear ones must have module paths.
        base: the base's fingerprint.
        name: what users will call the adapter.
        base_tensor: the base's tensors by their names there, such as `encoder.layer.0.output.dense.bias`. Needed where
            biases of the base were trained, and for heads that read a layer of the base.
        member: which adapter, in a folder of several.
        head: what is known of the head beside the folder.
        by_number: match layers by their numbers if no path agrees; a base without module paths leaves no other way.

    Raises:
        FileError, FormatError: as `folder.read_folder`.
        AdapterError: the adapter is of a kind, or has options, modules or a head, that cannot be expressed, or acts on
            modules that the base lacks, or calls elsewhere, too; all of them are listed.
        TensorError: tensors are missing, left over or do not fit; all of them are listed.
        UsageError: what is said of the head does not fit.
    """
    read = read_folder(folder, member)
    found = sort_tensors(read.tensors, read.options, read.path)
    in_base = _base_of(found, sites, base_tensor, by_number, read.path)
    parts = make_head_parts(found, read.options, in_base.tensor, sites.width, head or HeadChoice(), read.path)
    updates = _updates(found, in_base, parts, read)
    _check_complete(found, read.options, in_base, read.path)
    made = make_parts(_in_order(updates, sites), read.options, read.path)
    adapter = Adapter(
        name,
        read.options.kind,
        base,
        made.graphs,
        made.placements,
        made.weights | parts.weights,
        parts.head,
        {"imported": {"from": "peft", "config": dict(read.config)}},
    )
    return Imported(adapter, (*_renamed(in_base), *_patterns(found, read.options), *parts.notes))


@dataclass(frozen=True)
class _Base:
    """The base as the adapter sees it.

    Attributes:
        map: its sites.
        linear: the sites of each linear layer, by module path.
        norms: the site of each norm that a sum or the embeddings go through, and the value that the norm returns.
        read: a tensor of the base by its name there.
        renaming: from the adapter's paths to the base's.
        numbered: the site of each module of the adapter, where no path agrees.
    """

    map: SiteMap
    linear: Mapping[str, Sequence[Site]]
    norms: Mapping[str, tuple[Site, str]]
    read: BaseTensor
    renaming: Renaming = field(default_factory=Renaming)
    numbered: Mapping[str, Site] = field(default_factory=dict)

    def sites(self, path: str) -> Sequence[Site]:
        """The calls of a module of the adapter's model."""
        if path in self.numbered:
            return (self.numbered[path],)
        return self.linear.get(self.renaming(path) or "", ())

    def norm(self, path: str) -> tuple[Site, str] | None:
        """The site of a norm of the adapter's model, and the site value that the norm returns."""
        return self.norms.get(self.renaming(path) or "")

    def tensor(self, name: str) -> np.ndarray | None:
        """A tensor of the base by its name in the adapter's model."""
        known = self.renaming(name)
        return None if known is None else self.read(known)

    def lost(self, found: Sorted, options: Options) -> list[str]:
        """The modules that the config means and the adapter has no tensors for."""
        if not self.numbered:
            known = [path for path in map(self.renaming.back, self.linear) if path is not None]
            return [path for path in targeted(options, known) if path not in found.adapted]
        few = options.layers or options.excluded or isinstance(options.targets, str)
        return [] if few else lost_by_number(self.numbered, self.map)


def _base_of(found: Sorted, sites: SiteMap, read: BaseTensor, by_number: bool, where: object) -> _Base:
    linear = _by_path(sites)
    base = _Base(sites, linear, _norms(sites), read)
    renaming = find_renaming(found.adapted.keys(), linear.keys(), where)
    if renaming is not None:
        return replace(base, renaming=renaming)
    numbered = sites_by_number(found.adapted.keys(), sites)
    if not numbered or (linear and not by_number):
        fix = "if it is the same model with other names of modules, give `--by-number`; else the one it was trained on"
        raise _not_there(list(found.adapted), base, where, fix if numbered else None)
    return replace(base, numbered=numbered)


def _not_there(paths: Sequence[str], base: _Base, where: object, fix: str | None = None) -> AdapterError:
    shown = ", ".join(f"`{path}`" for path in list(base.linear)[:3])
    return AdapterError(
        "acts on modules that the base does not have",
        where=where,
        found=", ".join(f"`{path}`" for path in paths),
        expected=f"some of its {len(base.linear)} linear layers with a path" + (f", such as {shown}" if shown else ""),
        fix=fix or "run `adapter-export sites MODEL` for what the base has, and give the one that it was trained on",
    )


def _by_path(sites: SiteMap) -> dict[str, list[Site]]:
    """The linear sites by module path; a module that is called several times has several."""
    found: dict[str, list[Site]] = {}
    for site in sites.of_roles(("linear",)):
        if site.path is not None:
            found.setdefault(site.path, []).append(site)
    return found


def _norms(sites: SiteMap) -> dict[str, tuple[Site, str]]:
    """By module path: norms behind the sum of a sublayer, and the one behind the embeddings."""
    found = {site.path: (site, "h") for site in sites.of_roles(("embeddings",)) if site.path is not None}
    for site in sites.sublayers:
        if site.norm is not None and site.norm.bias is not None:
            found[site.norm.bias.removesuffix(".bias")] = (site, "y")
    return found


def _updates(found: Sorted, base: _Base, head: HeadParts, read: PeftFolder) -> list[Update]:
    shifts = _shifts(found, base, head, read.path)
    missing = [path for path in found.adapted if not base.sites(path) and path not in head.used]
    if missing:
        raise _not_there(missing, base, read.path)
    check_calls((site for path in found.adapted for site in base.sites(path)), read.path)
    updates = [
        Update(path, site, found.adapted.get(path, {}), shifts.get(path))
        for path in dict.fromkeys([*found.adapted, *shifts])
        for site in base.sites(path)
    ]
    norms = {path: base.norm(path) for path in shifts if not base.sites(path)}
    return updates + [Update(path, norm[0], {}, shifts[path], norm[1]) for path, norm in norms.items() if norm]


def _shifts(found: Sorted, base: _Base, head: HeadParts, where: object) -> dict[str, np.ndarray]:
    """What each trained bias adds to that of the base; nothing for those that training left alone."""
    shifts, faults = {}, []
    for path, bias in found.biases.items():
        own = base.tensor(f"{path}.bias")
        if own is None or own.shape != bias.shape:
            faults.append(f"the base has no `{path}.bias` {list(bias.shape)} to compare with")
        elif (shift := bias.astype(np.float64) - own).any():
            shifts[path] = shift
    faults += [
        f"`{path}.bias` belongs to no linear layer and no norm behind a sum"
        for path in shifts
        if not (base.sites(path) or base.norm(path) or path in head.used)
    ]
    if faults:
        raise AdapterError(
            "has trained biases of the base that cannot be expressed",
            where=where,
            found="; ".join(faults),
            expected="biases of linear layers, and of norms behind sums and embeddings",
            fix="train it with `bias='none'` or `'lora_only'`",
        )
    return shifts


def _check_complete(found: Sorted, options: Options, base: _Base, where: object) -> None:
    """A file that lost the tensors of some layers would be read as an adapter that leaves them alone."""
    lost = base.lost(found, options)
    if lost:
        raise TensorError(
            "tensors are missing for modules that the config names",
            where=where,
            found=", ".join(f"`{path}`" for path in lost),
            fix="take the file from its source again; if it is right, name these in `exclude_modules` of the config",
        )


def _in_order(updates: Iterable[Update], sites: SiteMap) -> list[Update]:
    order = {site.name: number for number, site in enumerate(sites)}
    return sorted(updates, key=lambda update: order[update.site.name])


def _renamed(base: _Base) -> Iterator[str]:
    if base.renaming.drop:
        yield f"the adapter's modules `{base.renaming.drop}.…` are the base's without that beginning"
    if base.renaming.add:
        yield f"the adapter's modules are the base's behind `{base.renaming.add}.`"
    if base.numbered:
        yield "the base's modules have other names than the adapter's: layers were matched by their numbers"


def _patterns(found: Sorted, options: Options) -> Iterator[str]:
    """Where PEFT itself reads patterns otherwise than their author may have meant."""
    for pattern in options.idle_patterns(found.adapted):
        yield f"the pattern `{pattern}` matches no module of the adapter, in PEFT neither"
    for path in found.adapted:
        if rivals := options.rivals(path):
            names = ", ".join(f"`{one}`" for one in rivals)
            yield (
                f"`{path}` matches the patterns {names} for alpha: the first counts, as when PEFT loads the folder; "
                "it saves patterns sorted, so that another may have been the first in training"
            )
