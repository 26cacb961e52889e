"""The folders that AdapterHub's library writes: their files, and how it names modules and tensors in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapter_export.errors import AdapterError, FileError, FormatError, UsageError, argument, command
from adapter_export.format.canonical import read_json
from adapter_export.importers.match import Target
from adapter_export.importers.take import ReadPickle, Tensors, read_file
from adapter_export.sites.site import Role

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
    """A config and its tensors.

    Attributes:
        path: of the config.
        document: the config's JSON.
        weights: the path of the tensors.
        tensors: by their names in the library.
    """

    path: Path
    document: Mapping[str, Any]
    weights: Path
    tensors: Tensors

    @property
    def name(self) -> str | None:
        """What the library calls it; a head of a model without named heads has no name."""
        name = self.document.get("name")
        return name if isinstance(name, str) else None


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter.

    Attributes:
        path: the folder.
        adapter: its config and tensors.
        head: those of its prediction head, if one was saved with it.
        interface: how the library hooked it into the base, if it did so through its plug-in interface.
    """

    path: Path
    adapter: Saved
    head: Saved | None
    interface: Mapping[str, Any] | None


def choose(path: Path, name: str | None = None) -> Path:
    """What is meant: the given folder, or the folder of the adapter called `name` where there are several.

    A setup folder is meant as a whole where no adapter in it has that name, or none is named.

    Raises:
        FileError: nothing of AdapterHub's is there.
        UsageError: there are several and none is named, or there is none of that name.
    """
    found = members(path)
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
        names = listed(found)
        raise UsageError(
            "holds several adapters" if name is None else "holds no adapter of this name",
            where=path,
            found=names if name is None else f"`{name}`",
            expected=None if name is None else names,
            fix=f"give {argument('member', option='name')} with one of them",
        )
    return found[name]


def is_setup(path: Path) -> bool:
    """Whether a folder holds a composition."""
    return (path / SETUP_CONFIG).is_file()


def members(path: Path) -> dict[str, Path]:
    """The folders of adapters in a folder, by their own names, which are those of the adapters."""
    if not path.is_dir():
        return {}
    return {child.name: child for child in sorted(path.iterdir()) if (child / ADAPTER_CONFIG).is_file()}


def read_adapter_folder(path: Path, read_pickle: ReadPickle | None) -> AdapterFolder:
    """Read one adapter with its head.

    Raises:
        FileError, FormatError, TensorError: a file is missing, damaged, or holds more than tensors.
        MissingExtraError: the tensors are pickled, and nothing reads a pickle.
    """
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
    """Read a config, of an adapter, a head or a fusion layer, and the tensors beside it.

    Raises:
        FileError, FormatError, TensorError, MissingExtraError: as `read_adapter_folder`.
    """
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
    """Read a JSON object.

    Raises:
        FileError, FormatError: it cannot be read, or is something else.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise FormatError("is not an object", where=path, found=type(document).__name__, expected="a JSON object")
    return document


def _listed(path: Path) -> str:
    names = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
    return ", ".join(f"`{name}`" for name in names[:8]) + (" …" if len(names) > 8 else "") or "an empty folder"


def listed(names: Iterable[str]) -> str:
    """Names in a message."""
    return ", ".join(f"`{name}`" for name in names)


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
"""What holds the modules of adapters, and what it was called in old files (`AdapterLoader.legacy_weights_mapping`)."""

Keys = Mapping[str, str]
"""The whole name of each tensor of a module, by its name there: `adapter_up.weight`."""


@dataclass(frozen=True)
class Names:
    """The tensors of one adapter or fusion layer in a file.

    Attributes:
        modules: by container and by the module's path, with its prefix: `bert.encoder.layer.0.output`.
        others: the names of what belongs to another one.
    """

    modules: Mapping[Container, Mapping[str, Keys]]
    others: tuple[str, ...]

    def of(self, container: Container) -> Mapping[str, Keys]:
        """The modules in a container."""
        return self.modules.get(container, {})

    @property
    def shared(self) -> Keys:
        """What belongs to the whole adapter, whatever the prefix."""
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


_CONTAINERS_BEHIND: Mapping[str, Role] = {
    "attention_adapters": "attention",
    "cross_attention_adapters": "cross_attention",
    "output_adapters": "ffn",
}
"""The library's own modules, which lie in the layer, and what they act behind."""

_MODULES_BEHIND: Mapping[str, Role] = {
    "crossattention.output": "cross_attention",
    "attention.output": "attention",
    "output": "ffn",
}
"""How the path of a module ends that is one of the base's, in BERT and its kin."""


def sublayer_target(path: str) -> Target:
    """Where the bottleneck of a module acts.

    Raises:
        AdapterError: the module has an unknown name.
    """
    for end, role in _CONTAINERS_BEHIND.items():
        if path == end or path.endswith(f".{end}"):
            return Target(path, path[: -len(end)].rstrip("."), role)
    for end, role in _MODULES_BEHIND.items():
        if path == end or path.endswith(f".{end}"):
            return Target(path, path, role)
    raise AdapterError(
        "a bottleneck in a module of an unknown name",
        found=f"`{path}`",
        expected=", ".join(f"`….{end}`" for end in (*_CONTAINERS_BEHIND, *_MODULES_BEHIND)),
    )
