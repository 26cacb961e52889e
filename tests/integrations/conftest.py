"""A model of sentence-transformers, and a bundle of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import with_head
from once import once
from small_task import with_random_weights
from tiers import extended
from transformers import BertConfig, BertModel

import adapter_export as ae
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.heads import make_head
from adapter_export.graph.kinds.bottleneck import houlsby
from adapter_export.graph.tasks import Task
from adapter_export.training.loop.init_adapter import init_adapter


def make(folder: Path, minilm_folder: Path) -> None:
    """Write a model with sentence-transformers, and a bundle of it with embedders, a classifier and a reranker."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(initializer_range=0.2, max_position_embeddings=64, **sizes)).save_pretrained(folder / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm_folder / name, folder / "bert")
    parts = [Transformer(str(folder / "bert"), max_seq_length=50), Pooling(32, "mean"), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "model"))
    base = ae.capture(folder / "model", folder / "model.pt")
    ae.build(base, adapters_of(base), folder / "bundle", variants=("slots",))


def adapters_of(base: ae.Base) -> list[Adapter]:
    """Three embedders, a classifier and a reranker with random weights."""
    assert base.base_head is not None
    kind, found = houlsby().with_widths(b=8), []
    head = base.base_head.head
    assert head is not None
    assert head.task is not None
    truncated = replace(head, task=replace(head.task, widths=(16,)))
    sided = replace(head, task=replace(head.task, query_prefix="query: ", document_prefix="passage: "))
    for seed, (name, own) in enumerate({"mine": head, "other": truncated, "sided": sided}.items()):
        fresh = init_adapter(kind, base.sites.map, name=name, base=base.fingerprint, head=own)
        found.append(with_random_weights(fresh, seed))
    for name, task in (
        ("topic", Task("single_label", ("red", "green"))),
        ("rank", Task("ranking", input="pair", activation="sigmoid")),
    ):
        found.append(with_head(found[0], name, make_head(task, width=32)))
    return found


@dataclass(frozen=True)
class World:
    """The model in sentence-transformers, the bundle, and its adapters by name."""

    model: Any
    bundle: ae.Bundle
    adapters: dict[str, Adapter]

    def expected(self, name: str, texts: list[str]) -> np.ndarray:
        """Return the vectors of the model with an adapter attached, or without one for the base head."""
        if name == "base-head":
            return np.asarray(self.model.encode(texts))
        with ae.attach(self.model[0].model, replace(self.adapters[name], head=None)):
            return np.asarray(self.model.encode(texts))


@pytest.fixture(scope="session")
@extended
def world(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    from sentence_transformers import SentenceTransformer

    folder = once(tmp_path_factory, "drop_in", lambda place: make(place, minilm_folder))
    model = SentenceTransformer(str(folder / "model"), device="cpu", local_files_only=True)
    adapters = {one.name: one for one in adapters_of(ae.open_base(folder / "model.pt"))}
    return World(model, ae.open_bundle(folder / "bundle"), adapters)
