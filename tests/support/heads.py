"""Heads of every task and look, and adapters that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.heads import HeadOptions, make_head

TOPICS, TAGS = ("red", "green", "blue"), ("O", "B-PER", "I-PER", "B-ORG")


def heads(width: int) -> Mapping[str, Head]:
    """Heads by name, for a base of this width."""
    hub = HeadOptions("first", dense=1)
    deep = HeadOptions(dense=2, activation="gelu", dropout=0.1)
    return {
        "topic": make_head(width=width, labels=TOPICS),
        "tone": make_head(width=width, labels=("good", "bad")),
        "hub": make_head(width=width, labels=("a", "b", "c", "d"), options=hub),
        "deep": make_head(width=width, labels=("yes", "no"), hidden=5, options=deep),
        "tag": make_head("token", width=width, labels=TAGS),
        "entity": make_head("token", width=width, labels=("in", "out"), options=HeadOptions(dense=1)),
        "grade": make_head("regression", width=width),
        "axes": make_head("regression", width=width, numbers=3, options=hub),
        "mean": make_head("embedding", width=width),
        "unit": make_head("embedding", width=width, options=HeadOptions("first", l2_normalise=True)),
        "small": make_head(
            "embedding", width=width, numbers=6, options=HeadOptions(projection=True, l2_normalise=True)
        ),
        "wide": make_head("embedding", width=width, numbers=20, options=HeadOptions(dense=1, projection=True)),
    }


def with_head(adapter: Adapter, name: str, head: Head) -> Adapter:
    """The adapter under another name with another head, whose weights have the standard deviation 0.2."""
    rng = np.random.default_rng([*name.encode()])
    weights = {key: tensor for key, tensor in adapter.weights.items() if not key.startswith(f"{HEAD}.")}
    for parameter, shape in head.graph.parameter_shapes(head.widths).items():
        weights[f"{HEAD}.{parameter}"] = rng.normal(0, 0.2, shape).astype(np.float32)
    return replace(adapter, name=name, head=head, weights=weights)
