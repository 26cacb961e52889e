"""A folder that PEFT wrote becomes an adapter."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import AdapterError, FileError, TensorError
from adapter_export.format.canonical import read_json
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.importers.calls import check_calls
from adapter_export.importers.peft.head import BaseTensor, HeadChoice, HeadParts, make_head_parts
from adapter_export.importers.peft.options import Names, Options, is_off, read_options
from adapter_export.importers.peft.parts import Update, make_parts
from adapter_export.importers.peft.tensors import Sorted, sort_tensors
from adapter_export.importers.torch_file import read_torch_file
from adapter_export.sites.site import LAYERS, Site, SiteMap

# Which of the base's modules a config of PEFT means, to notice tensors that were lost.


def targeted(options: Options, paths: Iterable[str]) -> Iterator[str]:
    """Those of the module paths that the config means (`peft.tuners.tuners_utils.check_target_module_exists`)."""
    for path in paths:
        if _named(options.excluded, path) or _in_saved(options, path):
            continue
        if _named(options.targets, path) and (isinstance(options.targets, str) or _in_layers(options, path)):
            yield path


def _named(names: Names, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names or ())


def _in_saved(options: Options, path: str) -> bool:
    return any(f".{name}." in f".{path}." for name in options.saved)


def _in_layers(options: Options, path: str) -> bool:
    """Whether the first number behind the name of a list of layers is one of the named layers."""
    if not options.layers:
        return True
    patterns = [rf"(?:^|.*?\.){name}\.(?P<index>\d+)\." for name in options.layer_lists]
    found = (re.match(pattern, path) for pattern in patterns or [r".*?\.[^.]*\.(?P<index>\d+)\."])
    return any(match is not None and int(match["index"]) in options.layers for match in found)


# Module paths: those in the model that an adapter was trained in, and those in the base as it was captured.
#
# The two differ in what stands before them: PEFT saw `bert.encoder.layer.0…` in a model with a head, and the base was
# captured as `encoder.layer.0…`, or inside another module as `model.encoder.layer.0…`.


@dataclass(frozen=True)
class Renaming:
    """What is taken from the front of a path of the adapter, and what is put there.

    Attributes:
        drop: such as `bert`; empty for nothing.
        add: such as `model`; empty for nothing. Only one of the two is not empty.
    """

    drop: str = ""
    add: str = ""

    def __call__(self, path: str) -> str | None:
        """The path in the base; none for a module that is not below `drop`, such as a head."""
        if self.drop and not path.startswith(f"{self.drop}."):
            return None
        rest = path[len(self.drop) + 1 :] if self.drop else path
        return f"{self.add}.{rest}" if self.add else rest

    def back(self, path: str) -> str | None:
        """The path in the adapter's model of one in the base, if it has one."""
        return Renaming(self.add, self.drop)(path)


def find_renaming(adapter: Collection[str], base: Collection[str], where: object) -> Renaming | None:
    """The one renaming under which the base has the most of the adapter's modules.

    One path must be the end of the other: `decoder.block.0…` is never taken for `encoder.block.0…`. Nor may a number
    be dropped, so that layer 5 is never taken for the only layer of a small base.

    Args:
        adapter: paths of the modules that the adapter acts on.
        base: paths of the base's linear layers.
        where: names the adapter in messages.

    Returns:
        The renaming; none where the base has none of the modules.

    Raises:
        AdapterError: two renamings fit equally well.
    """
    hits = {renaming: _hits(renaming, adapter, base) for renaming in _candidates(adapter, base)}
    best = [renaming for renaming, count in hits.items() if count == max(hits.values())]
    if Renaming() in best or not best:
        return Renaming() if best else None
    if len(best) == 1:
        return best[0]
    raise AdapterError(
        "its modules cannot be told apart in the base",
        where=where,
        found=", ".join(f"`{path}`" for path in sorted(adapter)),
        expected=f"one prefix, not {' and '.join(f'`{one.drop or one.add}`' for one in best)}",
        fix="give the base that it was trained on, captured with the same names of modules",
    )


def _candidates(adapter: Iterable[str], base: Iterable[str]) -> list[Renaming]:
    found = {_difference(one, other) for one in adapter for other in base}
    return sorted(
        (one for one in found if one is not None and not _has_number(one.drop)), key=lambda one: (one.drop, one.add)
    )


def _difference(adapter: str, base: str) -> Renaming | None:
    if adapter == base:
        return Renaming()
    if adapter.endswith(f".{base}"):
        return Renaming(drop=adapter[: -len(base) - 1])
    if base.endswith(f".{adapter}"):
        return Renaming(add=base[: -len(adapter) - 1])
    return None


def _has_number(prefix: str) -> bool:
    return any(part.isdecimal() for part in prefix.split("."))


def _hits(renaming: Renaming, adapter: Iterable[str], base: Collection[str]) -> int:
    return sum(renaming(path) in base for path in adapter)


# Layers by their numbers and names, for bases whose modules have other paths than the adapter's, or none.
#
# Models are renamed: ViT's `encoder.layer.0.attention.attention.query` is `layers.0.attention.q_proj` in
# transformers 5.
# Graphs of other exporters have no module paths at all. Sites have names of their own, and this room knows what the
# layers of transformers that become such sites are called. It is asked only where no path agrees, and the user is told.

_NAMES: Mapping[str, tuple[str, ...]] = {
    "attention.output": ("attention.output.dense", "o_proj", "out_proj", "out_lin"),
    "attention.query": ("query", "q_proj", "q_lin"),
    "attention.key": ("key", "k_proj", "k_lin"),
    "attention.value": ("value", "v_proj", "v_lin"),
    "ffn.up": ("intermediate.dense", "up_proj", "fc1", "lin1"),
    "ffn.gate": ("gate_proj",),
    "ffn.down": ("output.dense", "down_proj", "fc2", "lin2"),
}
"""The ends of paths by the names of sites; the first that fits counts."""

_ELSEWHERE = ("decoder", "cross", "encoder_attn", "EncDec")
"""Words in paths of layers that are not those of the same number in an encoder."""


def sites_by_number(paths: Collection[str], sites: SiteMap) -> dict[str, Site]:
    """The site of each module, by the number of its layer and its name.

    Returns:
        A site for every path; nothing at all where one has no number, or several, a name that is not known, or a layer
        that the base has not, or where two would be one site.
    """
    known = {site.name: site for site in sites.of_roles(LAYERS)}
    found = {path: known.get(_site_name(path) or "") for path in paths}
    complete = {path: site for path, site in found.items() if site is not None}
    apart = len({site.name for site in complete.values()}) == len(paths)
    return complete if apart and len(complete) == len(paths) else {}


def lost_by_number(found: Mapping[str, Site], sites: SiteMap) -> list[str]:
    """The sites of other layers whose like the adapter acts at."""
    kinds = {_kind(site) for site in found.values()}
    taken = {site.name for site in found.values()}
    return [site.name for site in sites.of_roles(LAYERS) if _kind(site) in kinds and site.name not in taken]


def _kind(site: Site) -> str:
    return site.name.partition(".")[2].partition(".")[2]


def _site_name(path: str) -> str | None:
    numbers = [part for part in path.split(".") if part.isdecimal()]
    names = [name for name, ends in _NAMES.items() if f".{path}".endswith(tuple(f".{end}" for end in ends))]
    if len(numbers) != 1 or not names or any(word in path for word in _ELSEWHERE):
        return None
    return f"layers.{int(numbers[0])}.{names[0]}"


# The folder of one adapter of PEFT: `adapter_config.json`, and its tensors beside it.

CONFIG_FILE = "adapter_config.json"
TENSOR_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Where the tensors may lie; the first that is there is read."""

_WHOLE_MODELS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class PeftFolder:
    """What lies in one.

    Attributes:
        path: the folder.
        config: its config as it stands there, without what is off.
        options: what it says of what is computed.
        tensors: by PEFT's keys.
    """

    path: Path
    config: Mapping[str, Any]
    options: Options
    tensors: Mapping[str, np.ndarray]


def read_folder(folder: Path, name: str | None = None) -> PeftFolder:
    """Read the folder of an adapter, or the one called `name` in a folder of several.

    Raises:
        FileError: files are missing or cannot be read, or several adapters are there and none is named.
        FormatError: a file breaks its format.
        AdapterError: the adapter is of a kind, or has options, that cannot be imported.
    """
    path = _adapter_in(folder, name)
    document: Any = read_json(path / CONFIG_FILE)
    options = read_options(document, path / CONFIG_FILE)
    config = {key: value for key, value in document.items() if not is_off(value)}
    return PeftFolder(path, config, options, _read(path))


def _adapter_in(folder: Path, name: str | None) -> Path:
    if (folder / CONFIG_FILE).is_file():
        return folder
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
    if name in inside:
        return folder / name
    if len(inside) == 1:
        return folder / inside[0]
    raise FileError(
        "is not the folder of a PEFT adapter",
        where=folder,
        found=_instead(folder, inside),
        expected=f"a folder with `{CONFIG_FILE}` and `{TENSOR_FILES[0]}`",
        fix="name one of them with `--name`" if inside else "give the folder that `save_pretrained` of PEFT wrote",
    )


def _instead(folder: Path, inside: list[str]) -> str:
    if inside:
        return f"the adapters {', '.join(f'`{name}`' for name in inside)} in it"
    if not folder.is_dir():
        return "no folder"
    if any((folder / name).is_file() for name in _WHOLE_MODELS):
        return "a whole model, perhaps one that an adapter was merged into: it is a base of its own"
    return f"no `{CONFIG_FILE}`"


def _read(path: Path) -> Mapping[str, np.ndarray]:
    safe, pickled = (path / name for name in TENSOR_FILES)
    if safe.is_file():
        return read_tensors(safe, widen=True)
    if pickled.is_file():
        return read_torch_file(pickled)
    raise FileError(
        "has no tensors",
        where=path,
        expected=" or ".join(f"`{name}`" for name in TENSOR_FILES),
        fix="copy both files of the adapter",
    )


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
