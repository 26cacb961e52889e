"""What lies in a folder that AdapterHub's library wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapter_export.errors import FileError, FormatError
from adapter_export.format.canonical import read_json
from adapter_export.format.tensors import read_tensors
from adapter_export.importers.torch_file import read_torch_file

Tensors = Mapping[str, np.ndarray]
Contents = Literal["adapter", "fusion", "setup", "several"]
"""One adapter, one fusion layer, a composition with its members, or several adapters side by side."""

ADAPTER_CONFIG = "adapter_config.json"
FUSION_CONFIG = "adapter_fusion_config.json"
SETUP_CONFIG = "adapter_setup.json"
HEAD_CONFIG = "head_config.json"
INTERFACE_CONFIG = "adapter_interface.json"

_ADAPTER_WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
_HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
_FUSION_WEIGHTS = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
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


def contents_of(path: Path) -> Contents:
    """What a folder holds.

    Raises:
        FileError: it is not there, or it holds nothing that AdapterHub's library writes.
    """
    if (path / SETUP_CONFIG).is_file():
        return "setup"
    if (path / ADAPTER_CONFIG).is_file():
        return "adapter"
    if (path / FUSION_CONFIG).is_file():
        return "fusion"
    if members(path):
        return "several"
    found = "no such folder" if not path.is_dir() else _listed(path)
    raise FileError(
        "is not a folder of AdapterHub",
        where=path,
        found=found,
        expected=f"`{ADAPTER_CONFIG}` and `{'` or `'.join(_ADAPTER_WEIGHTS)}`, or folders with them",
        fix="give the folder that `model.save_adapter(folder, name)` wrote",
    )


def members(path: Path) -> dict[str, Path]:
    """The folders of adapters in a folder, by their own names, which are those of the adapters."""
    if not path.is_dir():
        return {}
    return {child.name: child for child in sorted(path.iterdir()) if (child / ADAPTER_CONFIG).is_file()}


def read_adapter_folder(path: Path) -> AdapterFolder:
    """Read one adapter with its head.

    Raises:
        FileError, FormatError, TensorError: a file is missing, damaged, or holds more than tensors.
    """
    _refuse_peft(path)
    adapter = _saved(path / ADAPTER_CONFIG, _ADAPTER_WEIGHTS)
    head = _saved(path / HEAD_CONFIG, _HEAD_WEIGHTS) if (path / HEAD_CONFIG).is_file() else None
    interface = path / INTERFACE_CONFIG
    return AdapterFolder(path, adapter, head, _object(interface) if interface.is_file() else None)


def read_head_folder(path: Path) -> Saved:
    """Read one prediction head.

    Raises:
        FileError, FormatError, TensorError: a file is missing, damaged, or holds more than tensors.
    """
    return _saved(path / HEAD_CONFIG, _HEAD_WEIGHTS)


def read_fusion_folder(path: Path) -> Saved:
    """Read one fusion layer.

    Raises:
        FileError, FormatError, TensorError: a file is missing, damaged, or holds more than tensors.
    """
    return _saved(path / FUSION_CONFIG, _FUSION_WEIGHTS)


def read_setup(path: Path) -> Mapping[str, Any]:
    """The JSON of a setup folder, with a composition at `adapter_setup`.

    Raises:
        FormatError: it holds none.
    """
    document = _object(path / SETUP_CONFIG)
    setup = document.get("adapter_setup")
    if not isinstance(setup, dict) or "type" not in setup or not isinstance(setup.get("children"), list):
        raise FormatError(
            "holds no composition",
            where=path / SETUP_CONFIG,
            found=f"keys {', '.join(document)}",
            expected='an object `adapter_setup` with "type" and "children"',
        )
    return document


def _saved(config: Path, names: tuple[str, ...]) -> Saved:
    document = _object(config)
    present = [config.with_name(name) for name in names if config.with_name(name).is_file()]
    if not present:
        raise FileError(
            "has no weights beside it",
            where=config,
            found=_listed(config.parent),
            expected=f"`{'` or `'.join(names)}`",
            fix="copy the whole folder; on the Hub, weights are the large file",
        )
    read = [_read(path) for path in present]
    if len(read) > 1 and not _same(read[0], read[1]):
        raise FormatError(
            "there are two files of weights, and they differ",
            where=config.parent,
            found=" and ".join(f"`{path.name}`" for path in present),
            fix="remove the one that is not meant",
        )
    return Saved(config, document, present[0], read[0])


def _read(path: Path) -> Tensors:
    return read_tensors(path) if path.suffix == ".safetensors" else read_torch_file(path)


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _object(path: Path) -> Mapping[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise FormatError("is not an object", where=path, found=type(document).__name__, expected="a JSON object")
    return document


def _refuse_peft(path: Path) -> None:
    """PEFT calls its config by the same name."""
    if any((path / name).is_file() for name in _PEFT_WEIGHTS):
        raise FileError(
            "is a folder of PEFT, not of AdapterHub",
            where=path,
            found=_listed(path),
            fix=f"run `adapter-export import peft {path} --base MODEL -o OUT`",
        )


def _listed(path: Path) -> str:
    names = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
    return ", ".join(f"`{name}`" for name in names[:8]) + (" …" if len(names) > 8 else "") or "an empty folder"
