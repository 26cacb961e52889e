"""The folder of one adapter of PEFT: `adapter_config.json`, and its tensors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import FileError
from adapter_export.format.canonical import read_json
from adapter_export.format.tensors import read_tensors
from adapter_export.interop.peft.options import Options, is_off, read_options
from adapter_export.interop.torch_file import read_torch_file

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
