"""Setup folders: compositions of adapters, as the library describes them (`composition.py`)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapter_export.errors import AdapterError, FormatError, UsageError, argument, within
from adapter_export.graph.compose.members import OWN
from adapter_export.importers.adapterhub.config import Config, read_config
from adapter_export.importers.adapterhub.folder import (
    HEAD_CONFIG,
    SETUP_CONFIG,
    AdapterFolder,
    Saved,
    listed,
    read_adapter_folder,
    read_object,
    read_saved,
)
from adapter_export.importers.adapterhub.folder import members as folders_in
from adapter_export.importers.adapterhub.heads import WITHOUT
from adapter_export.importers.take import ReadPickle

Kind = Literal["Stack", "Average", "Fuse"]

_NESTED: Mapping[str, tuple[str, ...]] = {
    "Stack": ("single", "Fuse", "Average"),
    "Average": ("single", "Stack"),
    "Fuse": ("single", "Stack"),
}
"""What the library allows in each (`ALLOWED_NESTINGS`), but for those that split a batch or a text."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SWITCH = "switch"
"""What the parameter of a switch begins with, which is put behind a graph that cannot lie idle."""


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
class SetupMember:
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
    members: Mapping[str, SetupMember]
    document: Mapping[str, Any]
    head: object


def read_setup(path: Path, read_pickle: ReadPickle | None) -> Setup:
    """Read the composition and all of its adapters.

    Raises:
        UsageError: it is a composition that is not imported as a whole.
        FileError, FormatError, VersionError, TensorError, MissingExtraError: a file is missing or damaged.
        AdapterError: an adapter occurs twice in it, or is of a method that cannot be expressed.
    """
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
            raise AdapterError("an adapter occurs twice in its composition", found=listed(twice))
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
        raise _not_whole(path, f"`{kind}`")
    if not isinstance(children, list) or not children or not all(isinstance(child, dict) for child in children):
        raise FormatError("a composition without children", found=f"`children`: {children}")
    allowed = ("single",) if outside == "Fuse" else _NESTED[kind]
    strangers = [str(child.get("type")) for child in children if child.get("type") not in allowed]
    if strangers:
        behind = f" in a `{outside}`" if outside == "Fuse" else ""
        raise _not_whole(path, f"`{strangers[0]}` in a `{kind}`{behind}")
    read = tuple(_single(child) if child["type"] == "single" else _block(child, path, kind) for child in children)
    return Block(kind, read, _weights(document, len(read)) if kind == "Average" else ())


def _single(document: Mapping[str, Any]) -> str:
    names = document.get("children")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise FormatError("a single adapter without a name", found=f"`children`: {names}")
    return _folder_name(names[0])


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[^\x00-\x1f/\\:]+", name) or name in (".", ".."):
        raise FormatError("the name of an adapter that is no name of a folder", found=f"`{name}`")
    return name


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
        fix=f"give {argument('member', option='name')} with one of its adapters: {names}",
    )


# Which of the heads in a setup folder is the composition's.


def setup_head(setup: Setup, read_pickle: ReadPickle | None) -> Saved | None:
    """The head that was saved for the setup, else that of a stack's last adapter (`parse_heads_from_composition`).

    Raises:
        AdapterError: it was saved with several heads.
        FileError, FormatError, TensorError, MissingExtraError: it is missing or damaged.
    """
    if isinstance(setup.head, str) or setup.head is True:
        folder = setup.path if setup.head is True else setup.path / _folder_name(setup.head)
        return read_saved(folder / HEAD_CONFIG, read_pickle)
    if setup.head:
        raise AdapterError("was saved with several heads", where=setup.path, found=f"`{setup.head}`", fix=WITHOUT)
    last = setup.block.children[-1]
    return setup.members[last].folder.head if setup.block.kind == "Stack" and isinstance(last, str) else None


def head_notes(setup: Setup, used: Saved | None) -> Iterator[str]:
    """What became of the heads of its adapters."""
    heads = {name: member.folder.head for name, member in setup.members.items()}
    left = [name for name, head in heads.items() if head is not None and head is not used]
    if left:
        yield f"the heads of {listed(left)} were left out"
