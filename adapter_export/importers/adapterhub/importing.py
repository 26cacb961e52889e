"""A folder of AdapterHub becomes an adapter for a base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter_export.errors import AdapterError, UsageError, within
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.importers.adapterhub.bottleneck import Parts, import_bottleneck, without_unused_inverse
from adapter_export.importers.adapterhub.config import Config, LoraConfig, read_config
from adapter_export.importers.adapterhub.folder import (
    AdapterFolder,
    Saved,
    contents_of,
    members,
    read_adapter_folder,
    read_head_folder,
)
from adapter_export.importers.adapterhub.heads import WITHOUT, ImportedHead, import_head
from adapter_export.importers.adapterhub.low_rank import import_low_rank, import_low_rank_average
from adapter_export.importers.adapterhub.places import parse_key
from adapter_export.importers.adapterhub.setup_parts import MEAN, import_setup
from adapter_export.importers.adapterhub.setups import Setup, read_setup_folder
from adapter_export.importers.adapterhub.tensors import Taken
from adapter_export.sites.site import Site, SiteMap

# Adapters that AdapterHub hooked into a model through its plug-in interface (`adapter_interface.json`).
#
# There the model itself adds the residual and applies its norm, and a bottleneck reads what a hook saw. Where its
# config
# reads the residual stream or the base's norm, what it saw depends on the interface, and one version of the library has
# a defect: its hooks share one variable, so that every layer applies the norm of the last one (`init_bottleneck`).


def check_interface(document: Mapping[str, Any] | None, config: BottleneckConfig | LoraConfig, sites: SiteMap) -> None:
    """Refuse what an adapter of the plug-in interface computed otherwise than the graphs here.

    Args:
        document: the JSON of the interface; none for adapters of the library's own models.
        config: the adapter's.
        sites: of the base.

    Raises:
        AdapterError: the message names the reason.
    """
    if document is None or isinstance(config, LoraConfig):
        return
    interface = document.get("interface")
    if not isinstance(interface, dict):
        raise AdapterError("the file of the plug-in interface holds none", found=f"keys {', '.join(document)}")
    for role, hook, norm in (
        ("attention", "layer_pre_self_attn", "layer_ln_1"),
        ("ffn", "layer_pre_ffn", "layer_ln_2"),
    ):
        if config.mh_adapter if role == "attention" else config.output_adapter:
            places = [site for site in sites.sublayers if site.role == role]
            _check_place(config, places, interface.get(hook), interface.get(norm))


def _check_place(config: BottleneckConfig, places: list[Site], hook: str | None, norm: str | None) -> None:
    _check_output(places, norm)
    if config.is_parallel or config.original_ln_before:
        _check_residual(places, hook)
    if config.original_ln_before and not config.is_parallel:
        _check_norm(places, norm)


def _check_output(places: list[Site], norm: str | None) -> None:
    """The hook is behind the output projection: a norm between it and the sum, as in Gemma 2, would come after."""
    other = [site.name for site in places if norm is not None and site.norm is None]
    if other:
        sites = ", ".join(f"`{name}`" for name in other)
        raise AdapterError(
            "acted behind the output projection, perhaps before a norm that this base has in front of the sum",
            found=f"`{norm}` in the plug-in interface, and no norm behind the sum at {sites}",
            expected="an interface without that norm, or a base that normalises the sum",
            fix="train it again with an interface that leaves `layer_ln_1` and `layer_ln_2` out",
        )


def _check_residual(places: list[Site], hook: str | None) -> None:
    if hook is None:
        raise AdapterError(
            "reads the residual stream, which the plug-in interface does not name",
            found="`layer_pre_self_attn` or `layer_pre_ffn` is null",
        )
    inside = [site.name for site in places if site.x != site.u and f".{hook}." in f".{site.path}."]
    if inside:
        raise AdapterError(
            "took what the sublayer reads, behind its norm, for the residual stream",
            found=f"`{hook}` at {', '.join(f'`{name}`' for name in inside)}",
            expected="an interface that hooks the norm before the sublayer",
            fix="train it again with such an interface",
        )


def _check_norm(places: list[Site], norm: str | None) -> None:
    if norm is not None and len(places) > 1:
        raise AdapterError(
            "was trained with a defect of AdapterHub's plug-in interface: every layer applied the norm of the "
            "last layer, because its hooks share one variable",
            found=f"`original_ln_before` with `{norm}`",
            expected="an adapter of the library's own model classes, or one that does not read the base's norm",
            fix="train it again there, or as `double_seq_bn`, which has no such norm",
        )
    unread = [site.name for site in places if norm is None and site.norm is not None]
    if unread:
        raise AdapterError(
            "read the sum without the norm that this base has behind it",
            found=", ".join(f"`{name}`" for name in unread),
            expected="an interface that names the norm",
        )


# Which of the heads in a setup folder is the composition's.


def setup_head(setup: Setup) -> Saved | None:
    """The head that was saved for the setup, else that of a stack's last adapter (`parse_heads_from_composition`).

    Raises:
        AdapterError: it was saved with several heads.
        FileError, FormatError, TensorError: it is missing or damaged.
    """
    if setup.head is True:
        return read_head_folder(setup.path)
    if isinstance(setup.head, str):
        return read_head_folder(setup.path / setup.head)
    if setup.head:
        raise AdapterError("was saved with several heads", where=setup.path, found=f"`{setup.head}`", fix=WITHOUT)
    last = setup.block.children[-1]
    return setup.members[last].folder.head if setup.block.kind == "Stack" and isinstance(last, str) else None


def head_notes(setup: Setup, used: Saved | None) -> Iterator[str]:
    """What became of the heads of its adapters."""
    heads = {name: member.folder.head for name, member in setup.members.items()}
    left = [name for name, head in heads.items() if head is not None and head is not used]
    if left:
        yield f"the heads of {', '.join(f'`{name}`' for name in left)} were left out"


# What AdapterHub calls a config whose name its files do not hold: the class is lost when it is saved.

Shape = tuple[object, ...]

_NAMES: dict[Shape, str] = {
    # parallel, norm before, norm after, attention, ffn, Kronecker products, learned factors
    (False, True, True, False, True, False, False): "seq_bn",
    (False, False, True, True, True, False, False): "double_seq_bn",
    (True, False, True, False, True, False, False): "par_bn",
    (True, False, True, False, True, False, "learned"): "scaled_par_bn",
    (False, True, False, False, True, False, "channel"): "adapter_plus",
    (False, False, True, True, True, True, False): "compacter",
    (False, True, True, False, True, True, False): "compacter++",
}


def kind_of(config: BottleneckConfig) -> str:
    """The name of the kind with these placements; `bottleneck` for those without one."""
    learned = config.scaling if isinstance(config.scaling, str) else False
    placements = (config.original_ln_before, config.original_ln_after, config.mh_adapter, config.output_adapter)
    return _NAMES.get((config.is_parallel, *placements, config.phm_layer, learned), "bottleneck")


_SWAPPED = "AdapterHub hands this model's attention adapters the residual in the place of the output, and the other way"


@dataclass(frozen=True)
class Imported:
    """An adapter, and what was done on the way."""

    adapter: Adapter
    notes: tuple[str, ...]


def choose(path: Path, name: str | None = None) -> Path:
    """What is meant: the given folder, or the folder of the adapter called `name` where there are several.

    A setup folder is meant as a whole where no adapter in it has that name, or none is named.

    Raises:
        FileError: nothing of AdapterHub's is there.
        UsageError: there are several and none is named, or there is none of that name.
    """
    contents = contents_of(path)
    if contents == "adapter" or (contents == "setup" and name not in members(path)):
        return path
    if contents == "fusion":
        raise UsageError(
            "a fusion layer has no meaning without the adapters that it fuses",
            where=path,
            fix="save the whole setup with `model.save_adapter_setup(folder, Fuse(…))`, and import that",
        )
    found = members(path)
    if name is None or name not in found:
        raise UsageError(
            "holds several adapters" if name is None else "holds no adapter of this name",
            where=path,
            found=", ".join(f"`{one}`" for one in found) if name is None else f"`{name}`",
            expected=None if name is None else ", ".join(f"`{one}`" for one in found),
            fix="give `--name` with one of them",
        )
    return found[name]


def import_folder(path: Path, sites: SiteMap, *, name: str, base: str, with_head: bool = True) -> Imported:
    """Make an adapter of a folder that `choose` has given: of one adapter, or of a setup as a whole.

    Raises:
        as `import_adapter` and `import_composition`.
    """
    if contents_of(path) == "setup":
        return import_composition(path, sites, name=name, base=base, with_head=with_head)
    return import_adapter(path, sites, name=name, base=base, with_head=with_head)


def import_adapter(path: Path, sites: SiteMap, *, name: str, base: str, with_head: bool = True) -> Imported:
    """Make an adapter of the folder of one.

    Args:
        path: the folder.
        sites: of the base.
        name: what users will call it.
        base: the fingerprint of the base.
        with_head: whether its head is imported, where it has one.

    Raises:
        FileError, FormatError, VersionError, TensorError: the folder's files break their format.
        AdapterError: it does not fit the base, or cannot be expressed; the message names what.
    """
    folder = read_adapter_folder(path)
    with within(folder.adapter.path):
        config = read_config(folder.adapter.document)
        _check_base(config, sites)
        check_interface(folder.interface, config.method, sites)
    with within(path):
        parts = _parts(config, folder, sites)
    head = import_head(folder.head, sites.width) if folder.head is not None and with_head else None
    weights = {**parts.weights, **(head.weights if head else {})}
    record = _record(config, folder)
    adapter = Adapter(
        name, parts.kind, base, parts.graphs, parts.placements, weights, head.head if head else None, record
    )
    return Imported(adapter, (*config.notes, *parts.notes, *_head_notes(folder, head, with_head)))


def import_composition(path: Path, sites: SiteMap, *, name: str, base: str, with_head: bool = True) -> Imported:
    """Make one adapter of the composition that a setup folder holds.

    Args:
        path: the folder.
        sites: of the base.
        name: what users will call it.
        base: the fingerprint of the base.
        with_head: whether its head is imported, where it has one.

    Raises:
        UsageError: it is a composition that is not imported as a whole.
        FileError, FormatError, VersionError, TensorError: the folder's files break their format.
        AdapterError: it does not fit the base, or cannot be expressed; the message names what.
    """
    setup = read_setup_folder(path)
    for member in setup.members.values():
        with within(member.folder.adapter.path):
            _check_base(member.config, sites)
            check_interface(member.folder.interface, member.config.method, sites)
    made = _composed(setup, sites, name, base)
    saved = setup_head(setup) if with_head else None
    head = None if saved is None else import_head(saved, sites.width)
    weights = {**made.adapter.weights, **(head.weights if head else {})}
    record = {"imported_from": {"library": "adapters", **_setup_record(setup)}}
    adapter = replace(made.adapter, weights=weights, head=head.head if head else None, training=record)
    return Imported(adapter, (*made.notes, *(head.notes if head else ()), *head_notes(setup, saved)))


def _composed(setup: Setup, sites: SiteMap, name: str, base: str) -> Imported:
    """Without a head."""
    members = setup.members.values()
    with within(setup.path):
        if all(isinstance(member.config.method, LoraConfig) for member in members):
            read = [
                import_adapter(setup.path / each, sites, name=each, base=base, with_head=False)
                for each in setup.members
            ]
            adapter = import_low_rank_average(setup, [one.adapter for one in read], sites, name)
            return Imported(adapter, (*dict.fromkeys(note for one in read for note in one.notes), MEAN))
        parts = import_setup(setup, sites)
    return Imported(Adapter(name, parts.kind, base, parts.graphs, parts.placements, parts.weights), parts.notes)


def _parts(config: Config, folder: AdapterFolder, sites: SiteMap) -> Parts:
    parsed = {full: parse_key(full, config.name) for full in folder.adapter.tensors}
    keys = tuple(key for key in parsed.values() if key is not None)
    taken = Taken(folder.adapter.tensors, f"`{folder.adapter.weights.name}`")
    if isinstance(config.method, LoraConfig):
        return import_low_rank(config.method, keys, taken, sites)
    method, note = without_unused_inverse(config.method, folder.adapter.document, keys)
    parts = import_bottleneck(method, keys, taken, sites, kind_of(method))
    return replace(parts, notes=(*parts.notes, *note))


def _check_base(config: Config, sites: SiteMap) -> None:
    if config.hidden_size != sites.width:
        raise AdapterError(
            "was trained on a base of another width",
            found=f"`hidden_size`: {config.hidden_size}",
            expected=f"{sites.width}",
            fix="give the model that it was trained on as `--base`",
        )
    method = config.method
    if isinstance(method, LoraConfig):
        return
    if config.model_type == "albert" and method.mh_adapter:
        raise AdapterError(f"{_SWAPPED} round, which cannot be expressed", found="`model_type`: `albert`, `mh_adapter`")
    if config.model_type == "gptj" and method.original_ln_before:
        raise AdapterError(
            "AdapterHub hands this model's output adapters the attention's output for the residual, "
            "which cannot be expressed",
            found="`model_type`: `gptj`, `original_ln_before`",
        )


def _head_notes(folder: AdapterFolder, head: ImportedHead | None, with_head: bool) -> Iterator[str]:
    if head is not None:
        yield from head.notes
    elif folder.head is not None and not with_head:
        yield "its head was left out"


def _record(config: Config, folder: AdapterFolder) -> dict[str, Any]:
    """Where the adapter came from, for its training record."""
    document = folder.adapter.document
    kept = {key: document[key] for key in ("model_name", "model_class", "model_type", "version") if document.get(key)}
    return {"imported_from": {"library": "adapters", "name": config.name, "config": dict(document["config"]), **kept}}


def _setup_record(setup: Setup) -> dict[str, Any]:
    """The composition, and the configs of its adapters."""
    configs = {name: dict(member.folder.adapter.document["config"]) for name, member in setup.members.items()}
    return {"setup": dict(setup.document), "members": configs}
