"""Embed texts for five tasks in one batch: each row chooses the adapter of its task.

    python examples/task_embeddings.py

Embedders with a LoRA per task, such as jina-embeddings-v3, usually take one task per call. In a bundle's bank, texts of
all five tasks share one call. The base is a small encoder with rotary positions (ModernBERT) and random weights; the
LoRAs learn the similarity of each task in seconds.
"""

from __future__ import annotations

import csv
import itertools
import random
import shutil
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ModernBertConfig, ModernBertModel

import adapter_export as ae
from adapter_export.runtime.text_reader import TextReader

TOPICS = {"space": ("moon", "comet", "planet"), "stage": ("play", "opera", "dance"), "food": ("soup", "bread", "rice")}
TONES = {"good": ("fine", "lovely", "great"), "bad": ("dull", "awful", "poor")}
FORMS = {"question": ("is the {} {} ?", "was the {} {} ?"), "report": ("the {} is {} .", "the {} was {} .")}
TASKS = {
    "retrieval": "topic",
    "classification": "tone",
    "clustering": "form",
    "separation": "tense",
    "matching": "thing",
}
"""Relations of two sentences, by the task that considers them similar."""

Row = tuple[str, dict[str, str]]


def sentences() -> list[Row]:
    """Return all sentences with their properties."""
    rows = []
    for (topic, things), (tone, words), (form, patterns) in itertools.product(
        TOPICS.items(), TONES.items(), FORMS.items()
    ):
        for thing, word, pattern in itertools.product(things, words, patterns):
            tense = "past" if "was" in pattern else "present"
            labels = {"topic": topic, "tone": tone, "form": form, "tense": tense, "thing": thing}
            rows.append((pattern.format(thing, word), labels))
    return random.Random(0).sample(rows, len(rows))


def save_base(folder: Path, texts: list[str]) -> Path:
    """Write a Hugging Face folder: a tokenizer for these words, and an untrained model."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in texts for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    config = ModernBertConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        max_position_embeddings=16,
        **{f"{name}_token_id": at for at, name in enumerate(("pad", "unk", "cls", "sep"))},
        bos_token_id=None,
        eos_token_id=None,
    )
    ModernBertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def train(base: ae.Base, task: str, rows: list[Row], folder: Path) -> ae.Adapter:
    """Train an adapter for which the sentences of one label are alike."""
    with (folder / f"{task}.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["text", "label"])
        writer.writerows((text, labels[TASKS[task]]) for text, labels in rows)
    options = {"rank": 8, "learning_rate": 1e-2, "batch_size": 32, "epochs": 4, "patience": 4}
    where = ("query", "value", "attention.output", "ffn.down")
    return ae.train(base, folder / f"{task}.tsv", task="embedding", kind="lora", modules=where, **options)


def nearest(vectors: np.ndarray, labels: list[str]) -> float:
    """Return how often the nearest other vector has the same label."""
    alike = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    np.fill_diagonal(alike, -1)
    return float(np.mean([labels[at] == labels[other] for at, other in enumerate(alike.argmax(1))]))


def embed(texts: TextReader, asked: list[str], adapters: list[str]) -> np.ndarray:
    """The vectors of texts [rows, 64], one call of the graph; each row goes through the adapter at its place."""
    rows = [row for one in texts.read(asked, adapters=adapters) for row in one.rows]
    outputs = texts.session.run(texts.arrays(rows), adapters=adapters)
    return outputs[str(texts.session.output(adapters[0]))]


def main() -> None:
    folder = Path(mkdtemp(prefix="task-embeddings-"))
    rows = sentences()
    learnt, held_out = rows[:96], rows[96:]
    base = ae.capture(save_base(folder / "hf", [text for text, _ in rows]), folder / "model.pt")
    adapters = {task: train(base, task, learnt, folder) for task in TASKS}
    bundle = ae.build(base, adapters, folder / "bundle", variants=("bank",))
    texts = bundle.texts()

    # every held-out sentence five times, for each task once, shuffled: one call
    asked = random.Random(1).sample([(row, task) for row in held_out for task in TASKS], len(TASKS) * len(held_out))
    mixed = embed(texts, [text for (text, _), _ in asked], [task for _, task in asked])
    print(
        f"{len(asked)} rows in one call, vectors of {mixed.shape[1]} numbers; the nearest other sentence has the same"
    )
    print(f"{'':16}" + "".join(f"{label:>8}" for label in TASKS.values()))
    for task, meant in TASKS.items():
        own = [row for row, (_, chosen) in enumerate(asked) if chosen == task]
        found = {label: nearest(mixed[own], [asked[row][0][1][label] for row in own]) for label in TASKS.values()}
        print(f"{task:16}" + "".join(f"{share:>8.0%}" for share in found.values()))
        assert found[meant] == max(found.values()) > 0.9

        alone = embed(texts, [asked[row][0][0] for row in own], [task] * len(own))
        assert np.allclose(mixed[own], alone, atol=1e-5)
        print(f"{'':16}a call with only this task returns the same, {np.abs(mixed[own] - alone).max():.1e} apart")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
