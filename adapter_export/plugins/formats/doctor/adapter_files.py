"""Files of an adapter as another library wrote them: config, tensors, and the module paths in their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from adapter_export.bases.base_view import ReadPickle
from adapter_export.errors import FormatError, InputError
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import (
    ADAPTER_CONFIG,
    is_setup,
    read_adapter_folder,
)
from adapter_export.plugins.formats.importers.peft.methods import METHODS
from adapter_export.plugins.formats.importers.peft.peft_folder import (
    CONFIG_FILE,
    TENSOR_FILES,
    adapter_in,
    read_peft_tensors,
)
from adapter_export.plugins.formats.importers.tensor_map import Tensors
from adapter_export.safe_io.documents import read_json

Library = Literal["PEFT", "AdapterHub", "adapter-export"]

PREFIX = "base_model.model."
"""Prefix that PEFT writes before module paths."""

_OWN = ("adapter_graph.json", "weights.safetensors")
_ADAPTERHUB = ("pytorch_adapter.bin", "adapter.safetensors")

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\.")
"""Names that wrappers of training add to module paths: `torch.compile`, FSDP, checkpointing, DDP."""


def library_of(folder: Path) -> Library:
    """Return the library that wrote a folder; PEFT if nothing shows another one."""
    if any((folder / name).is_file() for name in _OWN):
        return "adapter-export"
    configs = [path for path in (folder / ADAPTER_CONFIG, *folder.glob(f"*/{ADAPTER_CONFIG}")) if path.is_file()]
    places = [folder, *(path.parent for path in configs)]
    if is_setup(folder) or any((place / name).is_file() for place in places for name in _ADAPTERHUB):
        return "AdapterHub"
    if any((place / name).is_file() for place in places for name in TENSOR_FILES):
        return "PEFT"
    documents = [document for path in configs if isinstance(document := _json(path), dict)]
    return "AdapterHub" if any(isinstance(each.get("config"), dict) for each in documents) else "PEFT"


def _json(path: Path) -> object:
    try:
        return read_json(path)
    except InputError:  # the importer reports it
        return None


@dataclass(frozen=True)
class ModuleTensor:
    """One tensor of a module: its key, the path before it, such as `base_model.model.layers.0.q_proj`, and its role."""

    key: str
    path: str
    role: str


@dataclass(frozen=True)
class AdapterFiles:
    """Config and tensors of one adapter, read without interpreting them."""

    path: Path
    library: Library
    config: Mapping[str, Any]
    tensors: Tensors

    @property
    def kind(self) -> str | None:
        """Type of the adapter in its library, if stated."""
        kind = self.config.get("peft_type")
        return kind if isinstance(kind, str) else None

    @cached_property
    def modules(self) -> tuple[ModuleTensor, ...]:
        """Tensors of adapted modules of a PEFT folder."""
        method = METHODS.get(self.kind or "LORA")
        prefix = "lora_|ia3_|ln_tuning_layers" if method is None else method.prefix
        pattern = re.compile(rf"(?P<path>.+?)\.(?P<role>(?:{prefix})\w*(?:\.\w+)*)")
        matches = ((key, pattern.fullmatch(key)) for key in self.tensors)
        return tuple(ModuleTensor(key, match["path"], match["role"]) for key, match in matches if match)

    def with_keys(self, rename: Callable[[str], str]) -> AdapterFiles:
        """Return the files with other names of tensors."""
        return AdapterFiles(
            self.path, self.library, self.config, {rename(key): tensor for key, tensor in self.tensors.items()}
        )


def read_adapter_files(
    folder: Path, library: Library, member: str | None, read_pickle: ReadPickle | None
) -> AdapterFiles:
    """Read config and tensors with the importers' readers; their errors pass."""
    if library == "AdapterHub":
        path = folder if member is None or not (folder / member).is_dir() else folder / member
        saved = read_adapter_folder(path, read_pickle)
        head = {} if saved.head is None else saved.head.tensors
        return AdapterFiles(path, library, saved.adapter.document, {**saved.adapter.tensors, **head})
    path = adapter_in(folder, member)
    config: Any = read_json(path / CONFIG_FILE)
    if not isinstance(config, dict):
        raise FormatError("is not an object", where=path / CONFIG_FILE, expected="a JSON object")
    return AdapterFiles(path, library, config, read_peft_tensors(path, read_pickle))


def plain_key(key: str) -> str:
    """Return a key without wrappers of training and repeated prefixes, and with PEFT's prefix."""
    rest = _WRAPPERS.sub("", key)
    while rest.startswith(PREFIX):
        rest = rest.removeprefix(PREFIX)
    return PREFIX + rest


def site_path(path: str, known: Collection[str]) -> str | None:
    """Return the longest end of a path that is one of the base's, or the base's path that ends with it."""
    names = path.split(".")
    ends = [".".join(names[start:]) for start in range(len(names))]
    match = next((end for end in ends if end in known), None)
    if match is not None:
        return match
    longer = (other for end in ends if _has_number(end) for other in known if other.endswith(f".{end}"))
    return next(longer, None)


def _has_number(path: str) -> bool:
    return any(name.isdecimal() for name in path.split("."))


def layer_numbers(paths: Collection[str]) -> set[int]:
    """Return the first number in each path, which is that of its layer."""
    return {int(number) for path in paths if (number := next(_numbers(path), None)) is not None}


def _numbers(path: str) -> Iterator[str]:
    return (name for name in path.split(".") if name.isdecimal())
