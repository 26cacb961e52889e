"""Every published kind that this package knows, by name; and those that it refuses by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from adapter_export.errors import UsageError
from adapter_export.graph.kinds.adapterhub import (
    ADAPTER_PLUS,
    COMPACTER,
    COMPACTER_PLUS_PLUS,
    DOUBLE_SEQ_BN,
    PAR_BN,
    SCALED_PAR_BN,
    SEQ_BN,
)
from adapter_export.graph.kinds.bottleneck import HOULSBY, PARALLEL, PFEIFFER, BottleneckOptions
from adapter_export.graph.kinds.ia3 import Ia3Options, ia3
from adapter_export.graph.kinds.kind import Kind
from adapter_export.graph.kinds.lora import LoraOptions, lora
from adapter_export.graph.kinds.nice import NiceOptions, nice

Options = BottleneckOptions | LoraOptions | Ia3Options | NiceOptions


@dataclass(frozen=True)
class Maker:
    """A kind by name.

    Attributes:
        make: returns the kind with given options.
        defaults: its options where none are given.
    """

    make: Callable[[Any], Kind]
    defaults: Options

    def __call__(self, options: Options | None = None) -> Kind:
        """The kind with these options, or with its own.

        Raises:
            UsageError: options of another kind, or a value that an option cannot have.
        """
        if options is not None and type(options) is not type(self.defaults):
            raise UsageError(
                "options of another kind", found=type(options).__name__, expected=type(self.defaults).__name__
            )
        return self.make(options or self.defaults)

    def changed(self, **options: object) -> Kind:
        """The kind with some of its options changed, by their names.

        Raises:
            UsageError: it has no such option, or the option cannot have this value.
        """
        known = [field.name for field in fields(self.defaults)]
        strangers = [name for name in options if name not in known]
        if strangers:
            raise UsageError(
                f"`{self.make(self.defaults).name}` has no such option",
                found=", ".join(f"`{name}`" for name in strangers),
                expected=", ".join(known),
            )
        return self.make(replace(self.defaults, **options))  # type: ignore[arg-type]


_BOTTLENECKS = (
    HOULSBY,
    PFEIFFER,
    PARALLEL,
    SEQ_BN,
    DOUBLE_SEQ_BN,
    PAR_BN,
    SCALED_PAR_BN,
    ADAPTER_PLUS,
    COMPACTER,
    COMPACTER_PLUS_PLUS,
)

KINDS: Mapping[str, Maker] = {
    **{kind.name: Maker(kind, kind.defaults) for kind in _BOTTLENECKS},
    "nice": Maker(nice, NiceOptions()),
    "lora": Maker(lora, LoraOptions()),
    "ia3": Maker(ia3, Ia3Options()),
}

BOTTLENECK_KINDS = tuple(kind.name for kind in _BOTTLENECKS)
"""The kinds whose options are `BottleneckOptions`."""

REFUSED: Mapping[str, str] = {
    "dora": "normalises the base's own weights, which no graph reads",
    "vera": "shares frozen random projections, which would have to be stored",
    "loha": "multiplies products of matrices element by element",
    "lokr": "multiplies the weights by Kronecker products",
    "prefix_tuning": "adds keys and values to attention, which no site holds",
    "prompt_tuning": "makes the text longer",
    "loreft": "acts at some tokens only",
}
"""Published kinds that have no graph here yet, and why."""


def kind_named(name: str) -> Maker:
    """The kind of a name.

    Raises:
        UsageError: it is not known, or one of those that are refused; the message says why.
    """
    if name in KINDS:
        return KINDS[name]
    why = REFUSED.get(name.lower().replace("-", "_"))
    raise UsageError(
        "unknown kind" if why is None else f"`{name}` cannot be expressed yet: it {why}",
        found=None if why else f"`{name}`",
        expected=", ".join(f"`{known}`" for known in KINDS),
    )
