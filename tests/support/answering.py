"""A bundle of a small text encoder whose adapters answer questions of every type."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads import with_head
from small_encoder import BAD, GOOD, MAX_TOKENS, OTHER, WIDTH, save_encoder, tokenizer_json
from small_task import make_adapter

import adapter_export as ae
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.tasks import Task
from adapter_export.text import Pair, Text, Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach

TAGS = ("O", "B-PER", "I-PER", "B-LOC")
TASKS = {
    "topic": Task("single_label", ("red", "green", "blue")),
    "nli": Task("single_label", ("yes", "no"), input="pair"),
    "tags": Task("multi_label", ("x", "y", "z"), thresholds=(0.4, 0.5, 0.6)),
    "choice": Task("multiple_choice", input="pair"),
    "entity": Task("token", TAGS),
    "answer": Task("span", input="pair"),
    "grade": Task("regression", input="pair"),
    "vector": Task("embedding", pooling="mean", normalised=True),
    "rank": Task("ranking", input="pair", activation="sigmoid"),
}
WORDS = (*GOOD, *BAD, *OTHER)


class InTorch:
    """Compute texts with adapters only in torch; each adapter is attached once."""

    def __init__(self, base: ae.Base) -> None:
        self._base, self._attached = base, list[tuple[Adapter, AdaptedModel]]()
        self._tokenizer = Tokenizer.from_json(tokenizer_json(), MAX_TOKENS)

    def tokens(self, text: Text) -> dict[str, torch.Tensor]:
        found = self._tokenizer.batch([text], ["input_ids", "attention_mask"])
        return {key: torch.from_numpy(array) for key, array in found.items()}

    def attached(self, adapter: Adapter) -> AdaptedModel:
        for own, model in self._attached:
            if own is adapter:
                return model
        model = attach(self._base.torch, adapter, sites=self._base.sites.map)
        self._attached.append((adapter, model))
        return model

    def result(self, adapter: Adapter, text: Text) -> np.ndarray:
        """The result of an adapter's head for a text."""
        assert adapter.head is not None
        with torch.inference_mode():
            return np.asarray(self.attached(adapter)(**self.tokens(text))[adapter.head.output][0])


@dataclass(frozen=True)
class World:
    """A model, its adapters by name, their bundle, and the torch oracle of a text."""

    model: Path
    base: ae.Base
    adapters: dict[str, Adapter]
    bundle: Path
    alone: InTorch

    def torch(self, name: str, text: Text) -> np.ndarray:
        """The result of an adapter's head for a text, by torch."""
        return self.alone.result(self.adapters[name], text)


def make_world(folder: Path) -> World:
    """One adapter for each type, with random weights of standard deviation 0.2, and their bundle in a folder."""
    base = ae.open_base(save_encoder(folder / "model.pt"))
    plain = make_adapter(base.torch, labels=None)
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(0, 0.2, tensor.shape).astype(np.float32) for name, tensor in plain.weights.items()}
    adapters = {}
    for name, task in TASKS.items():
        options = HeadOptions(l2_normalise=True) if task.type == "embedding" else HeadOptions()
        adapters[name] = with_head(replace(plain, weights=weights), name, make_head(task, width=WIDTH, options=options))
    world = World(folder / "model.pt", base, adapters, folder / "bundle", InTorch(base))
    for name in ("topic", "nli", "tags"):  # without this, one class would be the answer to everything
        texts = sentences(20)
        asked = [Pair(*pair) for pair in pairwise(texts)] if TASKS[name].input == "pair" else texts
        middle = np.median([world.torch(name, one) for one in asked], axis=0)
        own = dict(adapters[name].weights)
        own["head.classifier.bias"] = own["head.classifier.bias"] - middle.astype(np.float32)
        adapters[name] = replace(adapters[name], weights=own)
    ae.build(base, list(adapters.values()), folder / "bundle", variants=("slots",))
    return world


def sentences(count: int, seed: int = 0, words: int = 6) -> list[str]:
    """Different texts of random words."""
    rng = np.random.default_rng(seed)
    found = dict.fromkeys(" ".join(rng.choice(WORDS, rng.integers(2, words + 1))) for _ in range(9 * count))
    return list(found)[:count]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a table of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
