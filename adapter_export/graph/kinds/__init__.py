"""Published kinds of adapters, each declared once: formula, places and options.

Every `Maker` in a module of this package, or in one that a plug-in adds to `kinds`, is a kind.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import chain
from typing import Any

from adapter_export.errors import UsageError
from adapter_export.graph.heads import classification_head
from adapter_export.graph.kinds.bottleneck import BottleneckOptions, bottleneck, houlsby, parallel, pfeiffer
from adapter_export.graph.kinds.bottleneck_config import BottleneckConfig, bottleneck_config
from adapter_export.graph.kinds.coupling import NiceOptions, nice
from adapter_export.graph.kinds.kind import Kind, Maker
from adapter_export.graph.kinds.linear import Ia3Options, LoraOptions, ia3, ia3_graph, lora, lora_graph
from adapter_export.plugin import first_of_each, part_modules
from adapter_export.words import did_you_mean, quoted

__all__ = [
    "KINDS",
    "REFUSED",
    "BottleneckConfig",
    "BottleneckOptions",
    "Ia3Options",
    "Kind",
    "LoraOptions",
    "Maker",
    "NiceOptions",
    "bottleneck",
    "bottleneck_config",
    "classification_head",
    "houlsby",
    "ia3",
    "ia3_graph",
    "kind_named",
    "lora",
    "lora_graph",
    "nice",
    "parallel",
    "pfeiffer",
]


def _makers() -> Iterator[Maker[Any]]:
    modules = (import_module(module.name) for module in pkgutil.iter_modules(__path__, f"{__name__}."))
    for module in chain(modules, part_modules("kinds")):
        yield from (maker for maker in vars(module).values() if isinstance(maker, Maker))


KINDS: Mapping[str, Maker[Any]] = first_of_each("kind", ((maker.name, maker) for maker in _makers()))

REFUSED: Mapping[str, str] = {
    "dora": "normalises the base's own weights, which no graph reads",
    "vera": "shares frozen random projections, which would have to be stored",
    "loha": "multiplies products of matrices element by element",
    "lokr": "multiplies the weights by Kronecker products",
    "prefix_tuning": "adds keys and values to attention, which are no value of a site",
    "prompt_tuning": "makes the text longer",
    "loreft": "acts at some tokens only",
}
"""Published kinds that have no graph here yet, and why."""


def kind_named(name: str) -> Maker[Any]:
    """Return a kind by its name; `UsageError` with the reason if it is unknown or cannot be expressed."""
    if name in KINDS:
        return KINDS[name]
    why = REFUSED.get(name.lower().replace("-", "_"))
    raise UsageError(
        "unknown kind" if why is None else f"`{name}` cannot be expressed yet: it {why}",
        found=None if why else f"`{name}`",
        expected=quoted(KINDS),
        fix=None if why else did_you_mean(name, KINDS, "choose one of these"),
    )
