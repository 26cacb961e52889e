"""Processor time of a training step beside AdapterHub: a Houlsby adapter of width 64, batches of 32, dynamic padding.

    export PYTHONPATH=.venv/adapterhub    # `make test` installs the library there, with its transformers
    python benchmarks/training_adapterhub.py --folder FOLDER --model model.pt --data train.tsv

All ways take turns in one process, step by step. AdapterHub trains on rows in random order, as its trainer does by
default, and on our batches of similar length.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from adapter_export.graph.heads import make_head
from adapter_export.graph.kinds import KINDS
from adapter_export.sites.discover import discover
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.torch_base import load_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.training.loop.cache import results_of
from adapter_export.training.loop.data import TextExamples, training_batches
from adapter_export.training.loop.faster_graph import faster_graphs
from adapter_export.training.loop.init_adapter import init_adapter

Step = Callable[[np.ndarray], None]
BATCH, WIDTH, RATE = 32, 64, 1e-3


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, required=True, help="the base as transformers reads it")
    made.add_argument("--model", type=Path, required=True, help="the same base, captured")
    made.add_argument("--data", type=Path, required=True, help="text and label")
    made.add_argument("--steps", type=int, default=24)
    made.add_argument("--threads", type=int, default=2)
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    rows = list(csv.DictReader(given.data.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    texts, labels = [row["text"] for row in rows], sorted({row["label"] for row in rows})
    classes = np.array([labels.index(row["label"]) for row in rows])
    hub = hub_step(given.folder, texts, classes)
    with ExitStack() as stack:
        lengths, plain = own_step(given.model, texts, classes, 0, stack)
        _, packed = own_step(given.model, texts, classes, 2**31, stack)
        similar, order = training_batches(lengths, BATCH, (0, 0)), np.random.default_rng(0).permutation(len(texts))
        shuffled = np.array_split(order, np.arange(BATCH, len(order), BATCH))
        ways: dict[str, tuple[Step, list[np.ndarray]]] = {
            "AdapterHub, random order": (hub, shuffled),
            "AdapterHub, rows of similar length": (hub, similar),
            "train, without faster graphs": (plain, similar),
            "train": (packed, similar),
        }
        times = dict.fromkeys(ways, 0.0)
        for number in range(given.steps + 1):
            for way, (step, batches) in ways.items():
                before = time.process_time()
                step(batches[number])
                times[way] += (time.process_time() - before) * (number > 0)  # the first step warms up
    first = next(iter(times.values()))
    print("| way | a step, ms | over the first |\n| --- | --- | --- |")
    for way, seconds in times.items():
        print(f"| {way} | {1e3 * seconds / given.steps:.0f} | {seconds / first:.2f} |")


def hub_step(folder: Path, texts: list[str], classes: np.ndarray) -> Step:
    """Return a step of AdapterHub's `DoubleSeqBnConfig`."""
    model: Any = adapters.AutoAdapterModel.from_pretrained(folder)
    model.add_adapter("a", config=adapters.DoubleSeqBnConfig(reduction_factor=model.config.hidden_size / WIDTH))
    model.add_classification_head("a", num_labels=int(classes.max()) + 1)
    model.train_adapter("a")
    model.train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(text, truncation=True) for text in texts]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE)

    def step(rows: np.ndarray) -> None:
        inputs = tokenizer.pad([encoded[row] for row in rows], return_tensors="pt")
        model(**inputs, labels=torch.from_numpy(classes[rows])).loss.backward()
        _update(learned, optimizer)

    return step


def own_step(
    archive: Path, texts: list[str], classes: np.ndarray, budget: int, stack: ExitStack
) -> tuple[np.ndarray, Step]:
    """Return the lengths of the rows, and a step of our loop, with faster graphs if `budget` is above 0."""
    base = load_base(archive)
    assert base.tokenizer is not None
    names = tuple(each.name for each in base.inputs)
    examples = TextExamples.of(texts, classes, Tokenizer.from_json(base.tokenizer, 128), names)
    sites, kind = discover(flow_graph(base.flat)), KINDS["houlsby"]().with_widths(b=WIDTH)
    head = make_head(width=sites.width, labels=tuple(map(str, range(int(classes.max()) + 1))))
    scheme = "small_normal"
    adapter = init_adapter(kind, sites, name="a", base=base.fingerprint, scheme=scheme, seed=0, head=head)
    model = attach(base, adapter, sites=sites)
    model.train()
    learned = list(model.learned().values())
    optimizer = torch.optim.AdamW(learned, lr=RATE, fused=bool(budget))
    if budget:
        stack.enter_context(faster_graphs(model, [None], budget))

    def step(rows: np.ndarray) -> None:
        F.cross_entropy(results_of(model, examples, rows), torch.from_numpy(classes[rows])).backward()  # type: ignore[no-untyped-call]
        _update(learned, optimizer)

    return examples.lengths, step


def _update(learned: list[Any], optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(learned, 1.0)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
