"""A bundle that reads text: a small BERT with random weights and MiniLM's tokenizer, with an adapter of every task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import adapter_export as ae
from adapter_export.format.adapter_files import write_adapter
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import KINDS, BottleneckOptions
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.text import tokenizer_digest

WIDTH, LONGEST, LIMIT = 16, 120, 24

TASKS: Mapping[str, Task] = {
    "topic": Task("single_label", ("a", "b", "c"), max_tokens=LIMIT),
    "tags": Task("multi_label", ("x", "y", "z"), thresholds=(0.4, 0.5, 0.6), truncation="left", max_tokens=LIMIT),
    "follows": Task("single_label", ("yes", "no"), input="pair", max_tokens=LIMIT),
    "words": Task("token", ("O", "NAME")),
    "place": Task("span", input="pair", max_tokens=40),
    "likeness": Task("regression", input="pair"),
    "vector": Task("embedding", prefix="query: ", normalised=True, widths=(8, 4)),
    "order": Task("ranking", input="pair"),
    "choice": Task("multiple_choice", input="pair", max_tokens=LIMIT),
}


def save_model(folder: Path, tokenizer: Path, layers: int = 2) -> None:
    """Write a Hugging Face folder of a small BERT; `tokenizer` is one with a `tokenizer.json`."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LONGEST,
        initializer_range=0.2,
    )
    BertModel(config).eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())


def text_adapter(name: str, task: Task, base: ae.Base, digest: str | None) -> Adapter:
    """An adapter with random weights whose record says which tokenizer it was trained with."""
    random = np.random.default_rng([*name.encode()])
    kind = KINDS["pfeiffer"](BottleneckOptions())
    placements = kind.with_widths(b=4).placements(base.sites.map)
    known = {key: value for key, value in vars(task).items() if key != "tokenizer"}
    normalised: ProblemType = task.type
    options = HeadOptions(l2_normalise=task.normalised) if normalised == "embedding" else HeadOptions()
    head = make_head(Task(**known, tokenizer=digest), width=WIDTH, options=options)
    shapes = {
        f"{site}.{key}": shape
        for site, placement in placements.items()
        for key, shape in kind.graph.parameter_shapes(placement.widths).items()
    }
    shapes |= {f"head.{key}": shape for key, shape in head.graph.parameter_shapes(head.widths).items()}
    weights = {key: random.normal(0, 0.2, shape).astype(np.float32) for key, shape in shapes.items()}
    return Adapter(name, "pfeiffer", base.fingerprint, kind.graphs, placements, weights, head)


def save_texts(folder: Path, tokenizer: Path) -> None:
    """Write `hf`, `model.pt`, `adapters/NAME` and `bundle` into a folder."""
    save_model(folder / "hf", tokenizer)
    base = ae.capture(folder / "hf", folder / "model.pt")
    digest = tokenizer_digest((folder / "hf" / "tokenizer.json").read_text(encoding="utf-8"))
    made = [text_adapter(name, task, base, digest) for name, task in TASKS.items()]
    (folder / "adapters").mkdir()
    for adapter in made:
        write_adapter(adapter, folder / "adapters" / adapter.name)
    ae.build(base, [folder / "adapters" / name for name in TASKS], folder / "bundle")
