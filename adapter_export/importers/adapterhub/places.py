"""Where the modules of AdapterHub's adapters are in a base: by their paths, else by the numbers of their layers.

A path in a file may have a prefix that the base's paths lack (`bert.`), and the base's a prefix that the file's lack. A
module that the base calls several times, as ALBERT calls its one layer, is several sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from adapter_export.errors import AdapterError
from adapter_export.importers.calls import check_calls
from adapter_export.sites.site import Role, Site, SiteMap

# The names of tensors in AdapterHub's files: which module of the base, which tensor of the adapter in it.
#
# A name is `<prefix><module>.<container>.<adapter>.<tensor>`: `bert.encoder.layer.0.output` . `adapters` . `task` .
# `adapter_up.weight`. The prefix is there or not, depending on the model class that saved the file.

Container = Literal["adapters", "loras", "invertible_adapters", "shared_parameters", "adapter_fusion_layer"]

_CONTAINERS: Mapping[str, Container] = {
    "adapters": "adapters",
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_adapters": "invertible_adapters",
    "invertible_lang_adapters": "invertible_adapters",
    "adapter_fusion_layer": "adapter_fusion_layer",
    "loras": "loras",
    "shared_parameters": "shared_parameters",
}
"""What holds the modules of adapters, and what it was called in old files (`AdapterLoader.legacy_weights_mapping`)."""


@dataclass(frozen=True)
class Key:
    """A tensor's name, taken apart.

    Attributes:
        full: the whole name, for messages.
        module: the path of the module, with its prefix: `bert.encoder.layer.0.output`; empty for what belongs to the
            whole model.
        container: what it lies in.
        tensor: the rest: `adapter_up.weight`.
    """

    full: str
    module: str
    container: Container
    tensor: str


def parse_key(full: str, adapter: str) -> Key | None:
    """Take a tensor's name apart; None if it is not one of this adapter."""
    segments = full.split(".")
    for at, segment in enumerate(segments[:-2]):
        if segment in _CONTAINERS and segments[at + 1] == adapter:
            return Key(full, ".".join(segments[:at]), _CONTAINERS[segment], ".".join(segments[at + 2 :]))
    return None


@dataclass(frozen=True)
class Module:
    """The tensors of one adapter in one module of the base.

    Attributes:
        path: the module's path, with its prefix.
        keys: the whole name of each tensor.
        container: what they lie in.
    """

    path: str
    keys: Mapping[str, str]
    container: Container


def modules_of(keys: Iterable[Key], container: Container) -> tuple[Module, ...]:
    """The modules with tensors in a container, in the order of their names in the file."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if key.container == container:
            found.setdefault(key.module, {})[key.tensor] = key.full
    return tuple(Module(path, names, container) for path, names in found.items())


_ENDS: tuple[tuple[str, Role], ...] = (
    ("attention_adapters", "attention"),
    ("output_adapters", "ffn"),
    ("cross_attention_adapters", "cross_attention"),
    ("crossattention.output", "cross_attention"),
    ("attention.output", "attention"),
    ("output", "ffn"),
)
"""How the path of a bottleneck's module ends, and what it acts behind: the library's own modules have the first names,
those of BERT and its kin are the base's."""

_PARTS: tuple[tuple[str, str], ...] = (
    (".query", "attention.query"),
    (".key", "attention.key"),
    (".value", "attention.value"),
    (".intermediate.dense", "ffn.up"),
    (".output.dense", "ffn.down"),
)
"""How the paths of linear layers end in BERT and its kin, for files whose modules have been renamed since."""

_BY_NUMBER = "the base's modules have other names than the file's: layers were matched by their numbers"


@dataclass(frozen=True)
class Block:
    """A bottleneck's place, from the path of its module.

    Attributes:
        module: the module.
        path: of what it lies in: `bert.encoder.layer.0`.
        role: of the sublayer behind which it acts.
    """

    module: Module
    path: str
    role: Role


@dataclass(frozen=True)
class Placed:
    """The site of each module, and how it was found."""

    sites: Mapping[str, Module]
    notes: tuple[str, ...] = ()


def place_blocks(modules: Iterable[Module], sites: SiteMap) -> Placed:
    """Find the sublayers behind which the bottlenecks of some modules act.

    Returns:
        The module of each site, by the site's name.

    Raises:
        AdapterError: the base has no site for some of them; all are listed.
    """
    blocks = [_block(module) for module in modules]
    for dropped in range(_longest(block.path for block in blocks)):
        found = {block.module.path: _sublayers(block, sites, dropped) for block in blocks}
        if blocks and all(found.values()):
            return _placed({block.module.path: block.module for block in blocks}, found)
    return _by_layer(blocks, sites)


def place_linears(modules: Iterable[Module], sites: SiteMap) -> Placed:
    """Find the linear layers around which LoRA or IA3 act in some modules.

    Returns:
        The module of each site, by the site's name.

    Raises:
        AdapterError: the base has no site for some of them, or calls them elsewhere, too; all are listed.
    """
    known = {module.path: module for module in modules}
    for dropped in range(_longest(known)):
        found = {path: _linears(path, sites, dropped) for path in known}
        if known and all(found.values()):
            return _called_once(_placed(known, found), sites)
    renamed = {path: _renamed(path, sites) for path in known}
    missing = [path for path, places in renamed.items() if not places]
    if missing:
        names = [f"{site.name} ({site.path})" if site.path else site.name for site in sites.of_roles(("linear",))]
        raise _not_there(missing, "linear layers", names)
    return _called_once(replace(_placed(known, renamed), notes=(_BY_NUMBER,)), sites)


def _called_once(placed: Placed, sites: SiteMap) -> Placed:
    check_calls((site for site in sites if site.name in placed.sites), "LoRA and IA3")
    return placed


def _block(module: Module) -> Block:
    for end, role in _ENDS:
        if module.path == end or module.path.endswith(f".{end}"):
            return Block(module, module.path[: -len(end)].rstrip("."), role)
    raise AdapterError(
        "a bottleneck in a module of an unknown name",
        found=f"`{module.path}`",
        expected=", ".join(f"`….{end}`" for end, _ in _ENDS),
    )


def _longest(paths: Iterable[str]) -> int:
    """How many leading parts of the paths can be dropped, at least one number left behind."""
    return max((path.count(".") for path in paths), default=0)


def _tail(path: str, dropped: int) -> str:
    return ".".join(path.split(".")[dropped:])


def _sublayers(block: Block, sites: SiteMap, dropped: int) -> tuple[Site, ...]:
    tail = f".{_tail(block.path, dropped)}."
    if not any(part.isdecimal() for part in tail.split(".")) or tail.count(".") < 3:
        return ()
    return tuple(site for site in sites.of_roles((block.role,)) if site.path and tail in f".{site.path}.")


def _linears(path: str, sites: SiteMap, dropped: int) -> tuple[Site, ...]:
    tail = f".{_tail(path, dropped)}"
    if not any(part.isdecimal() for part in tail.split(".")):
        return ()
    return tuple(site for site in sites.of_roles(("linear",)) if site.path and f".{site.path}".endswith(tail))


def _renamed(path: str, sites: SiteMap) -> tuple[Site, ...]:
    """The layer of a number and a part, where the base's modules have other names than the file's, or none."""
    numbers = [int(part) for part in path.split(".") if part.isdecimal()]
    parts = [name for ending, name in _PARTS if path.endswith(ending)]
    return tuple(
        site
        for site in sites.of_roles(("linear",))
        if numbers and parts and site.name == f"layers.{numbers[-1]}.{parts[0]}"
    )


def _placed(modules: Mapping[str, Module], found: Mapping[str, tuple[Site, ...]]) -> Placed:
    placed: dict[str, Module] = {}
    for path, places in found.items():
        for site in places:
            if site.name in placed:
                raise AdapterError(
                    "two modules of the adapter act at one site",
                    found=f"`{placed[site.name].path}` and `{path}`",
                    where=f"`{site.name}`",
                    expected="one bottleneck at each site",
                )
            placed[site.name] = modules[path]
    return Placed(placed)


def _by_layer(blocks: Iterable[Block], sites: SiteMap) -> Placed:
    """The last number in the path is the layer's, where the base's modules have other names or none."""
    placed: dict[str, Module] = {}
    missing = []
    for block in blocks:
        numbers = [int(part) for part in block.path.split(".") if part.isdecimal()]
        near = [site for site in sites.of_roles((block.role,)) if not site.name.startswith(("encoder.", "decoder."))]
        places = [site for site in near if numbers and site.layer == numbers[-1]]
        if len(places) == 1 and places[0].name not in placed:
            placed[places[0].name] = block.module
        else:
            missing.append(block.module.path)
    if missing:
        known = [f"{site.name} ({site.path})" if site.path else site.name for site in sites.sublayers]
        raise _not_there(missing, "sublayers", known)
    return Placed(placed, (_BY_NUMBER,))


def _not_there(missing: list[str], what: str, known: list[str]) -> AdapterError:
    return AdapterError(
        f"acts where the base has no {what} of these names",
        found=", ".join(f"`{path}`" for path in missing),
        expected=", ".join(known) or f"a base with {what} that are found",
        fix="give the model that it was trained on; `adapter-export sites MODEL` lists what was found",
    )
