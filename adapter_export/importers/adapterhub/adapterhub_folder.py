"""The folders that AdapterHub's library writes: files, names of modules and tensors in them, and setups of several."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapter_export.errors import AdapterError, FileError, FormatError, UsageError, argument, command, quoted, within
from adapter_export.graph.compose.members import OWN
from adapter_export.importers.adapterhub.adapterhub_config import Config, read_config
from adapter_export.importers.match import Target
from adapter_export.importers.tensor_map import ReadPickle, Tensors, read_file
from adapter_export.safe_io.documents import read_json
from adapter_export.sites.site import Role, SiteMap

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
"""The files of tensors that lie beside a config."""

_PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Saved:
    """A config and its tensors by their names in the library; the paths are those of both files."""

    path: Path
    document: Mapping[str, Any]
    weights: Path
    tensors: Tensors


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter, with the head that was saved with it, if one was.

    `interface` is how the library hooked it into the base, if it did so through its plug-in interface.
    """

    path: Path
    adapter: Saved
    head: Saved | None
    interface: Mapping[str, Any] | None


def choose(path: Path, name: str | None = None) -> Path:
    """Return the given folder, or the folder of the adapter called `name` where there are several.

    A setup folder is meant as a whole where no adapter in it has that name, or none is named. An error says what lies
    there instead.
    """
    found = adapters_in(path)
    if is_setup(path) and name not in found:
        return path
    if not is_setup(path) and (path / ADAPTER_CONFIG).is_file():
        return path
    if (path / FUSION_CONFIG).is_file():
        raise UsageError(
            "a fusion layer has no meaning without the adapters that it fuses",
            where=path,
            fix="save the whole setup with `model.save_adapter_setup(folder, Fuse(…))`, and import that",
        )
    if not found:
        raise FileError(
            "is not a folder of AdapterHub",
            where=path,
            found=_listed(path) if path.is_dir() else "no such folder",
            expected=f"`{ADAPTER_CONFIG}` and `{'` or `'.join(_WEIGHTS[ADAPTER_CONFIG])}`, or folders with them",
            fix="give the folder that `model.save_adapter(folder, name)` wrote",
        )
    if name is None or name not in found:
        names = quoted(found)
        raise UsageError(
            "holds several adapters" if name is None else "holds no adapter of this name",
            where=path,
            found=names if name is None else f"`{name}`",
            expected=None if name is None else names,
            fix=f"give {argument('member', option='name')} with one of them",
        )
    return found[name]


def is_setup(path: Path) -> bool:
    """Return whether a folder holds a composition."""
    return (path / SETUP_CONFIG).is_file()


def adapters_in(path: Path) -> dict[str, Path]:
    """The folders of adapters in a folder, by the adapters' names, which are their own."""
    if not path.is_dir():
        return {}
    return {child.name: child for child in sorted(path.iterdir()) if (child / ADAPTER_CONFIG).is_file()}


def read_adapter_folder(path: Path, read_pickle: ReadPickle | None) -> AdapterFolder:
    """Read one adapter with its head; files that are missing or damaged, or pickles that nothing reads, are errors."""
    if any((path / name).is_file() for name in _PEFT_WEIGHTS):  # PEFT calls its config by the same name
        raise FileError(
            "is a folder of PEFT, not of AdapterHub",
            where=path,
            found=_listed(path),
            fix="run " + command(f"import_peft({str(path)!r}, BASE)", f"import peft {path} --base MODEL -o OUT"),
        )
    adapter = read_saved(path / ADAPTER_CONFIG, read_pickle)
    head = read_saved(path / HEAD_CONFIG, read_pickle) if (path / HEAD_CONFIG).is_file() else None
    interface = path / INTERFACE_CONFIG
    return AdapterFolder(path, adapter, head, read_object(interface) if interface.is_file() else None)


def read_saved(config: Path, read_pickle: ReadPickle | None) -> Saved:
    """Read a config, of an adapter, a head or a fusion layer, and the tensors beside it; errors as above."""
    document, names = read_object(config), _WEIGHTS[config.name]
    present = [config.with_name(name) for name in names if config.with_name(name).is_file()]
    if not present:
        raise FileError(
            "has no weights beside it",
            where=config,
            found=_listed(config.parent),
            expected=f"`{'` or `'.join(names)}`",
            fix="copy the whole folder; on the Hub, weights are the large file",
        )
    tensors, *others = (read_file(path, read_pickle) for path in present)
    for other in others:
        if tensors.keys() != other.keys() or not all(np.array_equal(tensors[name], other[name]) for name in tensors):
            raise FormatError(
                "there are two files of weights, and they differ",
                where=config.parent,
                found=" and ".join(f"`{path.name}`" for path in present),
                fix="remove the one that is not meant",
            )
    return Saved(config, document, present[0], tensors)


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; a FileError or FormatError if it cannot be read, or is something else."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise FormatError("is not an object", where=path, found=type(document).__name__, expected="a JSON object")
    return document


def _listed(path: Path) -> str:
    names = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
    return quoted(names[:8]) + (" …" if len(names) > 8 else "") or "an empty folder"


# A tensor's name is `<prefix><module>.<container>.<adapter>.<tensor>`: `bert.encoder.layer.0.output` . `adapters` .
# `task` . `adapter_up.weight`. The prefix is there or not, depending on the model class that saved the file.

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
"""Current names of the modules that hold adapters, by old names (`AdapterLoader.legacy_weights_mapping`)."""

Keys = Mapping[str, str]
"""The whole name of each tensor of a module, by its name there: `adapter_up.weight`."""


@dataclass(frozen=True)
class Names:
    """The tensors of one adapter or fusion layer in a file, and the names of `others`, which belong to another one.

    Modules are by container and by their path with its prefix: `bert.encoder.layer.0.output`.
    """

    modules: Mapping[Container, Mapping[str, Keys]]
    others: tuple[str, ...]

    def of(self, container: Container) -> Mapping[str, Keys]:
        """The modules in a container."""
        return self.modules.get(container, {})

    @property
    def shared(self) -> Keys:
        """Return the tensors of the whole adapter, whatever the prefix."""
        return {name: full for keys in self.of("shared_parameters").values() for name, full in keys.items()}

    @property
    def inverse(self) -> Keys | None:
        """The tensors of the invertible adapter, if there is one."""
        return next(iter(self.of("invertible_adapters").values()), None)


def names_of(tensors: Iterable[str], adapter: str) -> Names:
    """Take the names in a file apart."""
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
"""The library's own modules, which lie in the layer, and what they act behind."""

MODULES_BEHIND: dict[str, Role] = {
    "crossattention.output": "cross_attention",
    "attention.output": "attention",
    "output": "ffn",
}
"""Roles of the base's own modules in BERT and similar models, by the suffix of the module path."""


def sublayer_target(path: str, sites: SiteMap) -> Target:
    """Return the place where a module's bottleneck acts; `AdapterError` if nothing shows which layer it follows.

    A module of another name, such as T5's `decoder.block.0.layer.1`, tells it where the base has one sublayer in it.
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
        "a bottleneck in a module of an unknown name",
        found=f"`{path}`",
        expected=", ".join(f"`….{end}`" for end in (*CONTAINERS_BEHIND, *MODULES_BEHIND))
        + ", or a module of the base with one sublayer in it",
    )


# Setups: compositions of adapters, as the library describes them (`composition.py`).

_NESTED: Mapping[str, tuple[str, ...]] = {
    "Stack": ("single", "Fuse", "Average"),
    "Average": ("single", "Stack"),
    "Fuse": ("single", "Stack"),
}
"""Blocks the library allows inside each (`ALLOWED_NESTINGS`), except those that split a batch or a text."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SWITCH = "switch"
"""Prefix of the parameter of a switch, which follows a graph that cannot be made the identity."""


@dataclass(frozen=True)
class Block:
    """A composition of compositions and adapters by their names; only averages have weights, one for each child."""

    kind: Literal["Stack", "Average", "Fuse"]
    children: tuple[Block | str, ...]
    weights: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in it, in their order."""
        return tuple(name for child in self.children for name in ((child,) if isinstance(child, str) else child.names))

    @property
    def last_names(self) -> tuple[str, ...]:
        """The last adapter of each child: the library calls a fusion by them."""
        return tuple(child if isinstance(child, str) else child.names[-1] for child in self.children)

    def blocks(self) -> Iterator[Block]:
        """Itself and all compositions in it."""
        yield self
        for child in self.children:
            if isinstance(child, Block):
                yield from child.blocks()


@dataclass(frozen=True)
class SetupMember:
    """One adapter of a setup; `label` is its name, as a part of names of parameters."""

    label: str
    folder: AdapterFolder
    config: Config


@dataclass(frozen=True)
class Setup:
    """A setup folder; `document` is the composition as the file has it, and members have its order.

    `head` is what the file says of heads: a name, several, true for that of the model, or none.
    """

    path: Path
    block: Block
    members: Mapping[str, SetupMember]
    document: Mapping[str, Any]
    head: object


def read_setup(path: Path, read_pickle: ReadPickle | None) -> Setup:
    """Read the composition and all of its adapters, or say why it is not imported as a whole."""
    whole = read_object(path / SETUP_CONFIG)
    document = whole.get("adapter_setup")
    with within(path / SETUP_CONFIG):
        if not isinstance(document, dict) or "type" not in document or not isinstance(document.get("children"), list):
            raise FormatError(
                "holds no composition",
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
    """The name of an adapter or head, which must be that of a folder."""
    if not re.fullmatch(r"[^\x00-\x1f/\\:]+", name) or name in (".", ".."):
        raise FormatError("the name of an adapter that is no name of a folder", found=f"`{name}`")
    return name


def _weights(document: Mapping[str, Any], count: int) -> tuple[float, ...]:
    def finite(number: object) -> bool:
        return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)

    kwargs = document.get("kwargs") or {}
    weights = kwargs.get("weights", [1 / count] * count) if isinstance(kwargs, dict) else None
    if not isinstance(weights, list) or len(weights) != count or not all(map(finite, weights)):
        raise FormatError(
            "the weights of an average are not those of its children",
            found=f"`kwargs`: {kwargs}",
            expected=f"{count} finite numbers",
        )
    return tuple(float(np.float32(weight)) for weight in weights)  # the library rounds them, too


_BY_ROW = ("Parallel", "BatchSplit", "MultiTask")


def _not_whole(path: Path, found: str, kind: str = "") -> UsageError:
    names = quoted(adapters_in(path))
    what, fix = "its composition is not imported as a whole", f"give {argument('member', option='name')} with one of"
    fix = f"{fix} its adapters: {names}"
    if kind in _BY_ROW:
        what = "gives each row of a batch its own adapter, Aᵢ(h) in row i, which is a choice of the request"
        fix += "; build all of them into one bundle, and name one for each row: `session.run(inputs, adapters=[…])`"
    elif kind == "Split":
        what = "gives each part of a text its own adapter, Aᵢ(h) from token sᵢ on, and no site says where it stands"
    return UsageError(
        what,
        where=path,
        found=found,
        expected="`Stack`, `Average` and `Fuse`, nested as the library allows it",
        fix=fix,
    )
