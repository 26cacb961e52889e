"""A kind of adapter by name, with what is free in it by name: the options of `train` and `pack`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import make_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Union

from adapter_export.errors import UsageError, argument

if TYPE_CHECKING:
    from adapter_export.graph.kinds import Kind
    from adapter_export.graph.kinds.kind import KindOption


def kind_names() -> str:
    """Return the names of all kinds as the metavar of a choice."""
    from adapter_export.graph.kinds import KINDS

    return f"[{'|'.join(KINDS)}]"


def kind_options() -> type:
    """Return the options of all kinds as one class, for `OptionsOf`."""
    return _merged("KindOptions", packed=False)


def packed_options() -> type:
    """Return those of the options of kinds that plain tensors do not show, as `kind_options`."""
    return _merged("PackedOptions", packed=True)


@cache
def _merged(title: str, *, packed: bool) -> type:
    """Make a class with a field for each option of a kind; options of one name become one of either type."""
    from adapter_export.graph.kinds import KINDS

    found: dict[str, list[tuple[Any, KindOption, Any]]] = {}
    for maker in KINDS.values():
        for name, (kind, option) in maker.options().items():
            if option.packed != "no" or not packed:
                found.setdefault(name, []).append((kind, option, getattr(maker.defaults, name)))
    merged: list[tuple[str, Any, None]] = []
    for name, same in found.items():
        kinds, options, defaults = zip(*same, strict=True)
        default = _shown_default(defaults)
        sentences = " ".join(dict.fromkeys(option.help for option in options))
        words = f"{sentences}  [default: {default}]" if default else sentences
        kind = Union[tuple(kinds)]  # noqa: UP007 - of any number
        merged.append((name, Annotated[kind, replace(options[0], help=words)], None))
    return make_dataclass(title, merged, frozen=True)


def _shown_default(defaults: Collection[Any]) -> str:
    """Return the words for the default of an option that several kinds have; nothing for off and `None`."""
    words = {",".join(one) if isinstance(one, tuple) else str(one) for one in defaults}
    if words & {"False", "None", ""}:
        return ""
    return words.pop() if len(words) == 1 else "by kind"


def swept_options() -> frozenset[str]:
    """Return the options by which a sweep varies a kind."""
    from adapter_export.graph.kinds import KINDS

    both = (maker.swept(what) for maker in KINDS.values() for what in ("width", "place"))
    return frozenset(name for name in both if name is not None)


def make_kind(name: str, given: Mapping[str, Any]) -> Kind:
    """Return the kind of a name with the options that are given (not `None`); a wrong one is a `UsageError`."""
    from adapter_export.graph.kinds import kind_named

    return kind_named(name).changed(**{key: value for key, value in given.items() if value is not None})


def at_least_1(name: str, value: int) -> int:
    """Return the value of an argument; below 1 it is a `UsageError`."""
    if value < 1:
        raise UsageError(f"{argument(name)} is too small", found=value, expected="at least 1")
    return value


def check_different(name: str, given: Collection[object]) -> None:
    """Refuse an argument that lists nothing, or something twice."""
    if not given or len(set(given)) < len(given):
        found = ", ".join(map(str, given)) or "none"
        raise UsageError(f"{argument(name)} must be different ones, at least one", found=found)
