"""Folders of AdapterHub's library: files, module and tensor names, and setups of several adapters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapter_export.bases.base_view import ReadPickle
from adapter_export.errors import AdapterError, FileError, FormatError, UsageError, within
from adapter_export.graph.compose.members import OWN
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_config import Config, read_config
from adapter_export.plugins.formats.importers.match import Target
from adapter_export.plugins.formats.importers.tensor_map import Tensors, read_file
from adapter_export.safe_io.documents import read_json
from adapter_export.sites.site import Role, SiteMap
from adapter_export.tables import number_of
from adapter_export.words import argument, command, quoted

ADAPTER_CONFIG = "adapter_config.json"
FUSION_CONFIG = "adapter_fusion_config.json"
SETUP_CONFIG = "adapter_setup.json"
HEAD_CONFIG = "head_config.json"
INTERFACE_CONFIG = "adapter_interface.json"

_WEIGHTS = {
    ADAPTER_CONFIG: ("adapter.safetensors", "pytorch_adapter.bin"),
    HEAD_CONFIG: ("model_head.safetensors", "pytorch_model_head.bin"),
    FUSION_CONFIG: ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"),
}
"""Tensor files that accompany a config."""

_PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Saved:
    """A config and its tensors by their names in the library, with the paths of both files."""

    path: Path
    document: Mapping[str, Any]
    weights: Path
    tensors: Tensors


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter, with the head saved with it, if any.

    `interface` describes the plug-in interface to the base, if it was used.
    """

    path: Path
    adapter: Saved
    head: Saved | None
    interface: Mapping[str, Any] | None


def choose(path: Path, name: str | None = None) -> Path:
    """Return the folder, or the folder of the adapter named `name` if there are several.

    A setup folder is returned as a whole if `name` is `None`, or no adapter in it has that name.
    """
    names_there = adapters_in(path)
    if is_setup(path) and name not in names_there:
        return path
    if not is_setup(path) and (path / ADAPTER_CONFIG).is_file():
        return path
    if (path / FUSION_CONFIG).is_file():
        raise UsageError(
            "a fusion layer needs the adapters that it fuses",
            where=path,
            fix="save the whole setup with `model.save_adapter_setup(folder, Fuse(…))`, and import it",
        )
    if not names_there:
        raise FileError(
            "is not an AdapterHub folder",
            where=path,
            found=_listed(path) if path.is_dir() else "no such folder",
            expected=f"`{ADAPTER_CONFIG}` and `{'` or `'.join(_WEIGHTS[ADAPTER_CONFIG])}`, or folders with them",
            fix="pass the folder written by `model.save_adapter(folder, name)`",
        )
    if name is None or name not in names_there:
        names = quoted(names_there)
        raise UsageError(
            "contains several adapters" if name is None else "contains no adapter with this name",
            where=path,
            found=names if name is None else f"`{name}`",
            expected=None if name is None else names,
            fix="pass " + argument("member", option="name") + " with one of them",
        )
    return names_there[name]


def is_setup(path: Path) -> bool:
    """Return whether a folder contains a composition."""
    return (path / SETUP_CONFIG).is_file()


def adapters_in(path: Path) -> dict[str, Path]:
    """Return the folders of the adapters in a folder, by adapter name, which is the folder's."""
    if not path.is_dir():
        return {}
    return {child.name: child for child in sorted(path.iterdir()) if (child / ADAPTER_CONFIG).is_file()}


def read_adapter_folder(path: Path, read_pickle: ReadPickle | None) -> AdapterFolder:
    """Read one adapter with its head; errors for missing or damaged files, and pickles without `read_pickle`."""
    if any((path / name).is_file() for name in _PEFT_WEIGHTS):  # PEFT uses the same name for its config
        raise FileError(
            "is a PEFT folder, not an AdapterHub folder",
            where=path,
            found=_listed(path),
            fix="run " + command(f"import_peft({str(path)!r}, BASE)", f"import peft {path} --base MODEL -o OUT"),
        )
    adapter = read_saved(path / ADAPTER_CONFIG, read_pickle)
    head = read_saved(path / HEAD_CONFIG, read_pickle) if (path / HEAD_CONFIG).is_file() else None
    interface = path / INTERFACE_CONFIG
    return AdapterFolder(path, adapter, head, read_object(interface) if interface.is_file() else None)


def read_saved(config: Path, read_pickle: ReadPickle | None) -> Saved:
    """Read a config of an adapter, head or fusion layer, and its tensors; for errors see `read_adapter_folder`."""
    document, names = read_object(config), _WEIGHTS[config.name]
    present = [config.with_name(name) for name in names if config.with_name(name).is_file()]
    if not present:
        raise FileError(
            "has no weights",
            where=config,
            found=_listed(config.parent),
            expected=f"`{'` or `'.join(names)}`",
            fix="copy the whole folder; on the Hub, weights are the large file",
        )
    tensors, *others = (read_file(path, read_pickle) for path in present)
    for other in others:
        if tensors.keys() != other.keys() or not all(np.array_equal(tensors[name], other[name]) for name in tensors):
            raise FormatError(
                "two weight files differ",
                where=config.parent,
                found=" and ".join(f"`{path.name}`" for path in present),
                fix="remove the wrong one",
            )
    return Saved(config, document, present[0], tensors)


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; FileError or FormatError if the file cannot be read or contains another value."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise FormatError("is not an object", where=path, found=type(document).__name__, expected="a JSON object")
    return document


def _listed(path: Path) -> str:
    names = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
    return quoted(names[:8]) + (" …" if len(names) > 8 else "") or "an empty folder"


# A tensor's name is `<prefix><module>.<container>.<adapter>.<tensor>`: `bert.encoder.layer.0.output` . `adapters` .
# `task` . `adapter_up.weight`. The prefix depends on the model class that saved the file.

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
"""Current names of modules that contain adapters, by old name (`AdapterLoader.legacy_weights_mapping`)."""

Keys = Mapping[str, str]
"""Full name of each tensor of a module, by its name in the module: `adapter_up.weight`."""


@dataclass(frozen=True)
class Names:
    """The tensors of one adapter or fusion layer in a file; `others` belong to another one.

    Modules are keyed by container and path with prefix: `bert.encoder.layer.0.output`.
    """

    modules: Mapping[Container, Mapping[str, Keys]]
    others: tuple[str, ...]

    def of(self, container: Container) -> Mapping[str, Keys]:
        """Return the modules in a container."""
        return self.modules.get(container, {})

    @property
    def shared(self) -> Keys:
        """Return the tensors shared by the whole adapter, with any prefix."""
        return {name: full for keys in self.of("shared_parameters").values() for name, full in keys.items()}

    @property
    def inverse(self) -> Keys | None:
        """Return the tensors of the invertible adapter, if any."""
        return next(iter(self.of("invertible_adapters").values()), None)


def names_of(tensors: Iterable[str], adapter: str) -> Names:
    """Parse the names in a file."""
    modules: dict[Container, dict[str, dict[str, str]]] = {}
    others = []
    for full in tensors:
        parts = full.split(".")
        at = next((at for at, part in enumerate(parts[:-2]) if part in _CONTAINERS and parts[at + 1] == adapter), None)
        if at is None:
            others.append(full)
        else:
            module = modules.setdefault(_CONTAINERS[parts[at]], {}).setdefault(".".join(parts[:at]), {})
            module[".".join(parts[at + 2 :])] = full
    return Names(modules, tuple(others))


CONTAINERS_BEHIND: dict[str, Role] = {
    "attention_adapters": "attention",
    "cross_attention_adapters": "cross_attention",
    "output_adapters": "ffn",
}
"""The library's modules in a layer, and the role of the sublayer before them."""

MODULES_BEHIND: dict[str, Role] = {
    "crossattention.output": "cross_attention",
    "attention.output": "attention",
    "output": "ffn",
}
"""Roles of the base's own modules in BERT and similar models, by the suffix of the module path."""


def sublayer_target(path: str, sites: SiteMap) -> Target:
    """Return the target of a module's bottleneck; AdapterError if the layer before it is unknown.

    Other module names, such as T5's `decoder.block.0.layer.1`, are supported if they contain one sublayer of the base.
    """
    for end, role in (CONTAINERS_BEHIND | MODULES_BEHIND).items():
        if f".{path}".endswith(f".{end}"):
            return Target(path, path if end in MODULES_BEHIND else path[: -len(end)].rstrip("."), role)
    names = path.split(".")
    for start in range(len(names)):  # the base may have another prefix
        inside = f".{'.'.join(names[start:])}."
        roles = {site.role for site in sites.sublayers if inside in f".{site.path}."}
        if roles:
            break
    if len(roles) == 1 and any(name.isdecimal() for name in names[start:]):
        return Target(path, path, roles.pop())
    raise AdapterError(
        "a bottleneck in an unknown module",
        found=f"`{path}`",
        expected=", ".join(f"`….{end}`" for end in (*CONTAINERS_BEHIND, *MODULES_BEHIND))
        + ", or a module of the base with one sublayer",
    )


# Setups: compositions of adapters (`composition.py` of the library).

_NESTED: Mapping[str, tuple[str, ...]] = {
    "Stack": ("single", "Fuse", "Average"),
    "Average": ("single", "Stack"),
    "Fuse": ("single", "Stack"),
}
"""Nesting allowed by the library (`ALLOWED_NESTINGS`), except blocks that split a batch or a text."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SWITCH = "switch"
"""Prefix of the parameter of a switch, which follows a graph that cannot become the identity."""


@dataclass(frozen=True)
class Block:
    """A composition of compositions and adapter names; only averages have weights, one for each child."""

    kind: Literal["Stack", "Average", "Fuse"]
    children: tuple[Block | str, ...]
    weights: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its adapters, in order."""
        return tuple(name for child in self.children for name in ((child,) if isinstance(child, str) else child.names))

    @property
    def last_names(self) -> tuple[str, ...]:
        """Last adapter of each child, which identify a fusion in the library."""
        return tuple(child if isinstance(child, str) else child.names[-1] for child in self.children)

    def blocks(self) -> Iterator[Block]:
        """Yield this block and all nested blocks."""
        yield self
        for child in self.children:
            if isinstance(child, Block):
                yield from child.blocks()


@dataclass(frozen=True)
class SetupMember:
    """One adapter of a setup; `label` is its name within parameter names."""

    label: str
    folder: AdapterFolder
    config: Config


@dataclass(frozen=True)
class Setup:
    """A setup folder; `document` is the composition in the file, and members have its order.

    `head` is the file's value for heads: a name, a list of names, true for the model's head, or `None`.
    """

    path: Path
    block: Block
    members: Mapping[str, SetupMember]
    document: Mapping[str, Any]
    head: object


def read_setup(path: Path, read_pickle: ReadPickle | None) -> Setup:
    """Read the composition and its adapters; raises if it cannot be imported as a whole."""
    whole = read_object(path / SETUP_CONFIG)
    document = whole.get("adapter_setup")
    with within(path / SETUP_CONFIG):
        if not isinstance(document, dict) or "type" not in document or not isinstance(document.get("children"), list):
            raise FormatError(
                "contains no composition",
                found=f"keys {', '.join(whole)}",
                expected='an object `adapter_setup` with "type" and "children"',
            )
        block = _block(document, path)
        twice = [name for name, count in Counter(block.names).items() if count > 1]
        if twice:
            raise AdapterError("an adapter occurs twice in its composition", found=quoted(twice))
    members = {}
    for number, name in enumerate(block.names, 1):
        folder = read_adapter_folder(path / name, read_pickle)
        fits = _LABEL.fullmatch(name) and not OWN.fullmatch(name) and not name.startswith(_SWITCH)
        with within(folder.adapter.path):
            config = read_config(folder.adapter.document)
        members[name] = SetupMember(name if fits else f"member{number}", folder, config)
    return Setup(path, block, members, document, whole.get("head_setup"))


def _block(document: Mapping[str, Any], path: Path, outside: str = "") -> Block:
    kind, children = document.get("type"), document.get("children")
    if kind not in ("Stack", "Average", "Fuse"):
        raise _not_whole(path, f"`{kind}`", str(kind))
    if not isinstance(children, list) or not children or not all(isinstance(child, dict) for child in children):
        raise FormatError("a composition without children", found=f"`children`: {children}")
    allowed = ("single",) if outside == "Fuse" else _NESTED[kind]
    unknown = [str(child.get("type")) for child in children if child.get("type") not in allowed]
    if unknown:
        behind = f" in a `{outside}`" if outside == "Fuse" else ""
        raise _not_whole(path, f"`{unknown[0]}` in a `{kind}`{behind}", unknown[0])
    read: list[Block | str] = []
    for child in children:
        names = child.get("children")
        if child["type"] != "single":
            read.append(_block(child, path, kind))
        elif isinstance(names, list) and len(names) == 1 and isinstance(names[0], str):
            read.append(folder_name(names[0]))
        else:
            raise FormatError("a single adapter without a name", found=f"`children`: {names}")
    return Block(kind, tuple(read), _weights(document, len(read)) if kind == "Average" else ())


def folder_name(name: str) -> str:
    """Return the name of an adapter or head, checked to be a folder name."""
    if not re.fullmatch(r"[^\x00-\x1f/\\:]+", name) or name in (".", ".."):
        raise FormatError("the name of an adapter is not a valid folder name", found=f"`{name}`")
    return name


def _weights(document: Mapping[str, Any], count: int) -> tuple[float, ...]:
    def finite(number: object) -> bool:
        return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)

    kwargs = document.get("kwargs") or {}
    weights = kwargs.get("weights", [1 / count] * count) if isinstance(kwargs, dict) else None
    if not isinstance(weights, list) or len(weights) != count or not all(map(finite, weights)):
        raise FormatError(
            "the weights of an average do not match its children",
            found=f"`kwargs`: {kwargs}",
            expected=number_of(count, "finite number"),
        )
    return tuple(float(np.float32(weight)) for weight in weights)  # as the library rounds them


_BY_ROW = ("Parallel", "BatchSplit", "MultiTask")


def _not_whole(path: Path, content: str, kind: str = "") -> UsageError:
    names = quoted(adapters_in(path))
    what = "its composition cannot be imported as a whole"
    fix = "pass " + argument("member", option="name") + f" with one of its adapters: {names}"
    if kind in _BY_ROW:
        what = "selects an adapter per row of a batch, Aᵢ(h) in row i, which is a choice of each request"
        fix += "; build all of them into one bundle, and select one per row: `session.run(inputs, adapters=[…])`"
    elif kind == "Split":
        what = "selects an adapter per part of a text, Aᵢ(h) from token sᵢ on, and sites do not provide token positions"
    return UsageError(
        what,
        where=path,
        found=content,
        expected="`Stack`, `Average` and `Fuse`, nested as the library allows it",
        fix=fix,
    )
