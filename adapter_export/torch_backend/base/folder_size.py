"""Size of a Hugging Face folder's model by its configuration, bounded by the weights in the folder.

A configuration of a few bytes can ask for a billion layers. Its model is not larger than its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from adapter_export.errors import BaseModelError
from adapter_export.safe_io.regular_files import open_regular
from adapter_export.safe_io.tokenizer_bounds import MOST_VOCABULARY
from adapter_export.tables import number_of

_SIZE_BYTES, _MOST_HEADER, _TENSOR = 8, 100_000_000, b'"data_offsets"'
"""Bytes of the length of a safetensors header, the library's maximum of that length, and a key of each tensor."""

_TIMES = 16
"""Times that a parameter or module of the weights may be created: on loading, tied, and without weights."""

_MORE = 20_000
"""Parameters and modules, and layers of a configuration, that a folder of any size may have."""

_MORE_VALUES = 2**26
"""Values of parameters that a folder of any size may have."""


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise BaseModelError for a class that is no name, and for numbers of layers or words without weights."""
    where = folder / "config.json"
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        if not isinstance(name, str) or not name.isidentifier():
            raise BaseModelError(
                "`architectures` names no class",
                where=where,
                found=f"{name!a}"[:100],
                expected="a class of transformers, such as `BertForSequenceClassification`",
                fix="get the file from its source again, or correct it",
            )
    most = _MORE + _tensors(folder)[0]
    for key, number in _numbers(config):
        limit = most if "layer" in key.lower() else MOST_VOCABULARY * 16 if key == "vocab_size" else None
        if limit is not None and number > limit:
            raise _too_large(where, f"`{key}` {number:,}", f"at most {limit:,}")


@contextmanager
def bounded_model(folder: Path) -> Iterator[None]:
    """Raise BaseModelError in a block that creates a far larger model than the weights of a folder are for."""
    tensors, size = _tensors(folder)
    most, most_values = _TIMES * tensors + _MORE, _TIMES * size + _MORE_VALUES
    modules = parameters = values = 0

    def count_module(*_: object) -> None:
        nonlocal modules
        modules += 1
        if modules > most:
            raise _too_large(folder, f"more than {most:,} modules", f"those of {number_of(tensors, 'tensor')}")

    def count_parameter(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters, values
        if parameter is None:
            return
        parameters, values = parameters + 1, values + parameter.numel()
        if parameters > most or values > most_values:
            found = f"more than {most:,} parameters or {most_values:,} values"
            raise _too_large(folder, found, f"those of {number_of(tensors, 'tensor')} in {size:,} bytes")

    hooks = [
        register_module_module_registration_hook(count_module),
        register_module_parameter_registration_hook(count_parameter),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _too_large(where: Path, found: str, expected: str) -> BaseModelError:
    return BaseModelError(
        "the configuration describes a larger model than the folder has weights for",
        where=where,
        found=found,
        expected=expected,
        fix="get the folder from its source again",
    )


def _numbers(document: object) -> Iterator[tuple[str, int]]:
    """Yield the integers of a document with their keys."""
    pending: list[object] = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            yield from ((str(key), one) for key, one in part.items() if type(one) is int)
            pending += part.values()
        elif isinstance(part, list):
            pending += part


def _tensors(folder: Path) -> tuple[int, int]:
    """Return the number of tensors of a folder's weights, and their bytes; transformers reports broken files.

    Raises:
        FileError: a file cannot be read.
    """
    tensors = size = 0
    for path in folder.glob("*.safetensors"):
        with open_regular(path) as file:
            length = int.from_bytes(file.read(_SIZE_BYTES), "little")
            tensors += file.read(min(length, _MOST_HEADER)).count(_TENSOR)
        size += path.stat().st_size
    return tensors, size
