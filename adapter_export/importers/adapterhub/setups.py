"""Setup folders: a composition of adapters, as the library describes it (`composition.py`), and the adapters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapter_export.errors import AdapterError, FormatError, UsageError, within
from adapter_export.importers.adapterhub.config import Config, read_config
from adapter_export.importers.adapterhub.folder import SETUP_CONFIG, AdapterFolder, read_adapter_folder, read_setup
from adapter_export.importers.adapterhub.folder import members as folders_in

Kind = Literal["Stack", "Average", "Fuse"]

_NESTED: Mapping[str, tuple[str, ...]] = {
    "Stack": ("single", "Fuse", "Average"),
    "Average": ("single", "Stack"),
    "Fuse": ("single", "Stack"),
}
"""What the library allows in each (`ALLOWED_NESTINGS`), but for those that split a batch or a text."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OWN = re.compile(r"(fusion|mix|switch)(_\d+)?")
"""What names of parameters of compositions themselves begin with."""


@dataclass(frozen=True)
class Block:
    """A composition.

    Attributes:
        kind: what becomes of its children.
        children: compositions, and names of adapters.
        weights: of an average's children, in their order; empty for others.
    """

    kind: Kind
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
class Member:
    """One adapter of a setup.

    Attributes:
        label: its name, as a part of names of parameters.
        folder: its files.
        config: its config.
    """

    label: str
    folder: AdapterFolder
    config: Config


@dataclass(frozen=True)
class Setup:
    """A setup folder.

    Attributes:
        path: the folder.
        block: how its adapters are put together.
        members: the adapters by their names, in their order.
        document: the composition as the file has it.
        head: what the file says of heads: a name, several, true for that of the model, or none.
    """

    path: Path
    block: Block
    members: Mapping[str, Member]
    document: Mapping[str, Any]
    head: object


def read_setup_folder(path: Path) -> Setup:
    """Read the composition and all of its adapters.

    Raises:
        UsageError: it is a composition that is not imported as a whole.
        FileError, FormatError, VersionError, TensorError: a file is missing or damaged.
        AdapterError: an adapter occurs twice in it, or is of a method that cannot be expressed.
    """
    whole = read_setup(path)
    document = whole["adapter_setup"]
    with within(path / SETUP_CONFIG):
        block = _block(document, path)
        twice = [name for name, count in Counter(block.names).items() if count > 1]
        if twice:
            raise AdapterError("an adapter occurs twice in its composition", found=", ".join(f"`{n}`" for n in twice))
    members = {name: _member(path / name, name, number) for number, name in enumerate(block.names, 1)}
    return Setup(path, block, members, document, whole.get("head_setup"))


def _member(path: Path, name: str, number: int) -> Member:
    folder = read_adapter_folder(path)
    fits = _LABEL.fullmatch(name) and not _OWN.fullmatch(name)
    with within(folder.adapter.path):
        return Member(name if fits else f"member{number}", folder, read_config(folder.adapter.document))


def _block(document: Mapping[str, Any], path: Path) -> Block:
    kind, children = document.get("type"), document.get("children")
    if kind not in ("Stack", "Average", "Fuse"):
        raise _not_whole(path, f"`{kind}`")
    if not isinstance(children, list) or not children or not all(isinstance(child, dict) for child in children):
        raise FormatError("a composition without children", found=f"`children`: {children}")
    strangers = [str(child.get("type")) for child in children if child.get("type") not in _NESTED[kind]]
    if strangers:
        raise _not_whole(path, f"`{strangers[0]}` in a `{kind}`")
    read = tuple(_single(child) if child["type"] == "single" else _block(child, path) for child in children)
    return Block(kind, read, _weights(document, len(read)) if kind == "Average" else ())


def _single(document: Mapping[str, Any]) -> str:
    names = document.get("children")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise FormatError("a single adapter without a name", found=f"`children`: {names}")
    if not re.fullmatch(r"[^\x00-\x1f/\\:]+", names[0]) or names[0] in (".", ".."):
        raise FormatError("the name of an adapter that is no name of a folder", found=f"`{names[0]}`")
    return names[0]


def _weights(document: Mapping[str, Any], count: int) -> tuple[float, ...]:
    kwargs = document.get("kwargs") or {}
    weights = kwargs.get("weights", [1 / count] * count) if isinstance(kwargs, dict) else None
    if not isinstance(weights, list) or len(weights) != count or not all(map(_is_finite, weights)):
        raise FormatError(
            "the weights of an average are not those of its children",
            found=f"`kwargs`: {kwargs}",
            expected=f"{count} finite numbers",
        )
    return tuple(float(np.float32(weight)) for weight in weights)  # the library rounds them, too


def _is_finite(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)


def _not_whole(path: Path, found: str) -> UsageError:
    names = ", ".join(f"`{name}`" for name in folders_in(path))
    return UsageError(
        "its composition is not imported as a whole",
        where=path,
        found=found,
        expected="`Stack`, `Average` and `Fuse`, nested as the library allows it",
        fix=f"give `--name` with one of its adapters: {names}",
    )
