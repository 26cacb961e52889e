"""Kinds of adapters by name, with their settings: the options of `train` and `pack`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import make_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Union

from adapter_export.errors import UsageError
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.graph.kinds import Kind
    from adapter_export.graph.kinds.kind import KindOption


def kind_names() -> str:
    """Return the names of all kinds, as a metavar."""
    from adapter_export.graph.kinds import KINDS

    return f"[{'|'.join(KINDS)}]"


def kind_options() -> type:
    """Return the options of all kinds as one class, for `OptionsOf`."""
    return _merged("KindOptions", packed=False)


def packed_options() -> type:
    """Return as a class like that of `kind_options` the settings that tensors do not reveal."""
    return _merged("PackedOptions", packed=True)


@cache
def _merged(title: str, *, packed: bool) -> type:
    """Make a class with a field for each option of a kind; options with one name accept either type."""
    from adapter_export.graph.kinds import KINDS

    by_name: dict[str, list[tuple[Any, KindOption, Any]]] = {}
    for maker in KINDS.values():
        for name, (kind, option) in maker.options().items():
            if option.packed != "no" or not packed:
                by_name.setdefault(name, []).append((kind, option, getattr(maker.defaults, name)))
    merged: list[tuple[str, Any, None]] = []
    for name, same in by_name.items():
        kinds, options, defaults = zip(*same, strict=True)
        default = _shown_default(defaults)
        sentences = " ".join(dict.fromkeys(option.help for option in options))
        words = f"{sentences}  [default: {default}]" if default else sentences
        kind = Union[tuple(kinds)]  # noqa: UP007 - the number of types varies
        merged.append((name, Annotated[kind, replace(options[0], help=words)], None))
    return make_dataclass(title, merged, frozen=True)


def _shown_default(defaults: Collection[Any]) -> str:
    """Return the text for the default of an option that several kinds have; empty for false and `None`."""
    words = {",".join(one) if isinstance(one, tuple) else str(one) for one in defaults}
    if words & {"False", "None", ""}:
        return ""
    return words.pop() if len(words) == 1 else "by kind"


def swept_options() -> frozenset[str]:
    """Return the options of kinds that a sweep varies."""
    from adapter_export.graph.kinds import KINDS

    both = (maker.swept(what) for maker in KINDS.values() for what in ("width", "place"))
    return frozenset(name for name in both if name is not None)


def make_kind(name: str, given: Mapping[str, Any]) -> Kind:
    """Return the named kind with the given options (not `None`); `UsageError` for an invalid one."""
    from adapter_export.graph.kinds import kind_named

    return kind_named(name).changed(**{key: value for key, value in given.items() if value is not None})


def at_least_1(name: str, value: int) -> int:
    """Return the value of an argument; `UsageError` below 1."""
    if value < 1:
        raise UsageError(argument(name) + " is too small", found=value, expected="at least 1")
    return value


def check_different(name: str, given: Collection[object]) -> None:
    """Reject an argument that is empty or contains duplicates."""
    if not given or len(set(given)) < len(given):
        found = ", ".join(map(str, given)) or "none"
        raise UsageError(argument(name) + " must not be empty or contain duplicates", found=found)
