"""Faults in the tokenizer and in golden batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from adapter_export.bundle.report import BASE
from adapter_export.plugins.selftest.fault import Copy, Place, Plant, kinds_of


def _tokenizer(change: Callable[[dict[str, object], Copy], bool]) -> Plant:
    def plant(copy: Copy) -> Sequence[Place] | None:
        record = copy.manifest.text
        if record is None:
            return None
        document = json.loads((copy.folder / record.tokenizer).read_text("utf-8"))
        if not change(document, copy):
            return None
        copy.change(record.tokenizer).write_text(json.dumps(document, ensure_ascii=False), "utf-8")
        return [record.tokenizer, "tokenizer"]

    return plant


def _two_words(document: dict[str, object], copy: Copy) -> bool:
    model = document.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(words, dict) or len(words) < 20:
        return False
    one, two = (str(word) for word in copy.rng.choice(sorted(words)[-len(words) // 2 :], 2, replace=False))
    words[one], words[two] = words[two], words[one]
    return True


def _letters(document: dict[str, object], _: Copy) -> bool:
    rules = document.get("normalizer")
    if not isinstance(rules, Mapping) or "lowercase" not in rules:
        return False
    document["normalizer"] = {**rules, "lowercase": not rules["lowercase"]}
    return True


def _without(key: str) -> Callable[[dict[str, object], Copy], bool]:
    def change(document: dict[str, object], _: Copy) -> bool:
        return document.get(key) is not None and not document.update({key: None})

    return change


TEXTS = kinds_of(
    "texts",
    {
        "two words of the tokenizer swapped": _tokenizer(_two_words),
        "lowercasing of the tokenizer switched": _tokenizer(_letters),
        "a tokenizer without special tokens": _tokenizer(_without("post_processor")),
        "a tokenizer without normalisation": _tokenizer(_without("normalizer")),
    },
)


def _batch(change: Callable[[list[dict[str, object]], Copy], Sequence[Place] | None]) -> Plant:
    """Change the rows of one golden batch."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        path = copy.manifest.golden_batches
        if path is None:
            return None
        document = json.loads((copy.folder / path).read_text("utf-8"))
        batch = copy.choose(document["batches"])
        places = None if batch is None else change(batch["rows"], copy)
        if places is not None:
            file = copy.change(path)
            file.unlink()
            file.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
        return places

    return plant


def _name(row: Mapping[str, object]) -> Place:
    return str(row["adapter"] or BASE)


def _two_answers(rows: list[dict[str, object]], copy: Copy) -> Sequence[Place] | None:
    pair = copy.choose([(one, other) for one, other in combinations(rows, 2) if one["answer"] != other["answer"]])
    if pair is None:
        return None
    one, other = pair
    one["answer"], other["answer"] = other["answer"], one["answer"]
    return [_name(one), _name(other)]


def _another_adapter(rows: list[dict[str, object]], copy: Copy) -> Sequence[Place] | None:
    pair = copy.choose([(one, other) for one in rows for other in rows if one["adapter"] != other["adapter"]])
    if pair is None:
        return None
    pair[0]["adapter"] = pair[1]["adapter"]
    return [_name(pair[0])]


BATCHES = kinds_of(
    "batches",
    {
        "two answers of a golden batch swapped": _batch(_two_answers),
        "an adapter of a golden batch replaced": _batch(_another_adapter),
    },
)
