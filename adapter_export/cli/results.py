"""What `run` shows of the result of a head: the classes of texts or of their tokens, numbers, vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from adapter_export.cli.output import console, emit_json, say, table
from adapter_export.graph.tasks import Task
from adapter_export.runtime.predict import Prediction, predict

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer

_FEW = 3
_NUMBERS_SHOWN = 5
_BAR = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


@dataclass(frozen=True)
class Token:
    """A token of a text.

    Attributes:
        place: counted from 0 along the row.
        text: as the tokenizer writes it.
        span: where in the text it stands, from one character to before another; none if there is no text.
    """

    place: int
    text: str
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Results:
    """What a head gave.

    Attributes:
        adapter: the adapter.
        task: what its head is for.
        labels: its classes, if it has any.
        names: the text of each row, or what stands for it.
        rows: the result of each row: [classes], [tokens, classes], [numbers] or [width].
        tokens: for token classification, the tokens of each row to show.
    """

    adapter: str
    task: Task
    labels: tuple[str, ...]
    names: Sequence[str]
    rows: Sequence[np.ndarray]
    tokens: Sequence[Sequence[Token]] = ()


def show(results: Results, *, as_json: bool) -> None:
    """Write one JSON document, or tables."""
    if as_json:
        key = "vectors" if results.task == "embedding" else "predictions"
        rows = [
            {"text": name, **facts} for name, facts in zip(results.names, _FACTS[results.task](results), strict=True)
        ]
        emit_json({"adapter": results.adapter, "task": results.task, key: rows})
    else:
        _SHOW[results.task](results)


def text_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[Token]]:
    """The tokens of texts that are encoded together, without padding and special tokens, which have no labels."""
    return [
        [
            Token(place, text, encoding.offsets[place])
            for place, text in enumerate(encoding.tokens)
            if not encoding.special_tokens_mask[place] and encoding.attention_mask[place]
        ]
        for encoding in tokenizer.encode(texts)
    ]


def array_tokens(mask: np.ndarray) -> list[list[Token]]:
    """The tokens of rows that the mask [rows, tokens] keeps, by their numbers."""
    return [[Token(int(place), f"token {place}") for place in np.flatnonzero(row)] for row in mask]


def bar(probability: float) -> str:
    """A bar whose length is a probability, in eighths of a character."""
    full, eighths = divmod(round(probability * _BAR * 8), 8)
    return "█" * full + _EIGHTHS[eighths]


def _classes(results: Results) -> list[Prediction]:
    return [one for row in results.rows for one in predict(row[None], results.labels)]


def _token_classes(results: Results) -> list[list[tuple[Token, Prediction]]]:
    return [
        list(zip(tokens, predict(row[[token.place for token in tokens]], results.labels), strict=True))
        for tokens, row in zip(results.tokens, results.rows, strict=True)
    ]


def _class_facts(one: Prediction) -> dict[str, Any]:
    return {"label": one.label, "probability": one.probability, "probabilities": dict(one.probabilities)}


def _token_facts(token: Token, one: Prediction) -> dict[str, Any]:
    span = {} if token.span is None else {"start": token.span[0], "end": token.span[1]}
    return {"token": token.text, **span, **_class_facts(one)}


_FACTS: Mapping[Task, Callable[[Results], list[dict[str, Any]]]] = {
    "sequence_classification": lambda results: [_class_facts(one) for one in _classes(results)],
    "token_classification": lambda results: [
        {"tokens": [_token_facts(token, one) for token, one in row]} for row in _token_classes(results)
    ],
    "regression": lambda results: [{"numbers": row.tolist()} for row in results.rows],
    "embedding": lambda results: [{"vector": row.tolist()} for row in results.rows],
}


def _show_classes(results: Results) -> None:
    found = list(zip(results.names, _classes(results), strict=True))
    if len(found) > _FEW:
        rows = [(name, one.label, f"{one.probability:.3f}", bar(one.probability)) for name, one in found]
        console().print(table(None, ("text", "label", "probability", ""), rows, numbers="llr"))
        return
    for name, one in found:
        ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
        cells = [(label, f"{probability:.3f}", bar(probability)) for label, probability in ranked]
        _show_one(name, table(None, ("label", "probability", ""), cells, numbers="lr"))


def _show_tokens(results: Results) -> None:
    for name, found in zip(results.names, _token_classes(results), strict=True):
        rows = [(token.text, one.label, f"{one.probability:.3f}", bar(one.probability)) for token, one in found]
        _show_one(name, table(None, ("token", "label", "probability", ""), rows, numbers="llr"))


def _show_numbers(results: Results) -> None:
    count = len(results.rows[0])
    columns = ["number"] if count == 1 else [f"number {place}" for place in range(count)]
    rows = [(name, *(f"{number:.6g}" for number in row)) for name, row in zip(results.names, results.rows, strict=True)]
    console().print(table(None, ("text", *columns), rows, numbers="l" + "r" * count))


def _show_vectors(results: Results) -> None:
    rows = [
        (name, len(row), f"{float(np.linalg.norm(row)):.4g}", _beginning(row))
        for name, row in zip(results.names, results.rows, strict=True)
    ]
    console().print(table(None, ("text", "width", "length", "vector"), rows, numbers="lrr"))
    say("`--out FILE.npz` or `--json` gives the vectors whole.")


def _beginning(row: np.ndarray) -> str:
    more = " …" if len(row) > _NUMBERS_SHOWN else ""
    return " ".join(f"{number:.4f}" for number in row[:_NUMBERS_SHOWN]) + more


def _show_one(name: str, found: Table) -> None:
    out = console()
    out.print(name, style="bold", markup=False, soft_wrap=True)
    out.print(found)
    out.print()


_SHOW: Mapping[Task, Callable[[Results], None]] = {
    "sequence_classification": _show_classes,
    "token_classification": _show_tokens,
    "regression": _show_numbers,
    "embedding": _show_vectors,
}
