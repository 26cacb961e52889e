"""Adapters of the small encoder, and a task that they can learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from small_encoder import BAD, GOOD, OTHER

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import KINDS, BottleneckOptions
from adapter_export.graph.tasks.labels import class_indices
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.training.loop.data import TextExamples, TrainingData
from adapter_export.training.loop.init_adapter import init_adapter

LABELS = ("bad", "good")


def sites_of(base: TorchBase) -> SiteMap:
    return discover(flow_graph(base.flat))


def make_adapter(
    base: TorchBase,
    kind: str = "houlsby",
    options: BottleneckOptions | None = None,
    *,
    name: str = "a",
    bottleneck: int = 4,
    scheme: str = "small_normal",
    labels: tuple[str, ...] | None = LABELS,
    pooling: str = "mean",
    seed: int = 0,
) -> Adapter:
    made, sites = KINDS[kind](options).with_widths(b=bottleneck), sites_of(base)
    head = None if labels is None else make_head(width=sites.width, labels=labels, options=HeadOptions(pooling))
    return init_adapter(made, sites, name=name, base=base.fingerprint, scheme=scheme, seed=seed, head=head)


def prepared(base: TorchBase, *, dropout: float = 0.0) -> AdaptedModel:
    """A model ready to be trained."""
    return attach(base, make_adapter(base, options=BottleneckOptions("gelu", dropout=dropout)))


def with_random_weights(adapter: Adapter, seed: int = 0) -> Adapter:
    """The adapter with weights of standard deviation 0.2, so that nothing in it is near the identity."""
    rng = np.random.default_rng(seed)
    shapes = adapter.tensor_shapes()
    return replace(
        adapter, weights={name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    )


def reviews(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts with one telling word among others, each only once."""
    rng = np.random.default_rng(seed)
    found: dict[str, str] = {}
    while len(found) < rows:
        label, telling = (("good", GOOD), ("bad", BAD))[int(rng.integers(2))]
        words = list(rng.choice(OTHER, int(rng.integers(1, 5))))
        words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(telling)))
        found[" ".join(words)] = label
    return list(found.items())


def examples(base: TorchBase, rows: list[tuple[str, str]]) -> TextExamples:
    assert base.tokenizer is not None
    assert base.max_tokens is not None
    tokenizer = Tokenizer.from_json(base.tokenizer, base.max_tokens)
    classes = class_indices([label for _, label in rows], LABELS, "reviews")
    return TextExamples.of([text for text, _ in rows], classes, tokenizer, tuple(one.name for one in base.inputs))


def review_data(base: TorchBase, rows: int = 90) -> TrainingData:
    found = reviews(rows)
    third = rows // 3
    return TrainingData(examples(base, found[third:]), examples(base, found[:third]))
