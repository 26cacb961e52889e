"""What `run` says of each row: the classes of a text or of its tokens, numbers, a vector, or a summary of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from adapter_export.cli.output import console, say, table
from adapter_export.graph.tasks import Task
from adapter_export.runtime.answers import Prediction, predict

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer


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
class Head:
    """What one row, or all, ran through, and what its result means.

    Attributes:
        adapter: the adapter; none is the base alone.
        task: what the head is for; none without a head, or if nobody said it.
        labels: its classes, if it has any.
        output: the output that holds its result; none without a head.
    """

    adapter: str | None
    task: Task | None
    labels: tuple[str, ...]
    output: str | None


@dataclass(frozen=True)
class Result:
    """What was found for one row.

    Attributes:
        name: its text, or what stands for it.
        head: what it ran through.
        values: what the head gave: [classes], [tokens, classes], [numbers] or [width]; none without a task.
        tokens: for token classification, the tokens to show.
        outputs: without a task, a summary of each output.
    """

    name: str
    head: Head
    values: np.ndarray | None
    tokens: Sequence[Token]
    outputs: Sequence[Mapping[str, Any]]


def result_of(name: str, head: Head, outputs: Mapping[str, np.ndarray], tokens: Sequence[Token]) -> Result:
    """The result of a row.

    Args:
        name: its text, or what stands for it.
        head: what it ran through.
        outputs: the outputs of this row alone, without the axis of the batch.
        tokens: its tokens, where there is a result for each.
    """
    if head.task is None or head.output is None:
        return Result(name, head, None, (), list(summaries(outputs)))
    return Result(name, head, outputs[head.output], tokens, ())


def summaries(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Each output with its type, its shape and where its finite numbers lie."""
    for name, array in arrays.items():
        finite = array[np.isfinite(array)]
        found = {key: float(getattr(finite, key)()) if finite.size else None for key in ("min", "mean", "max")}
        yield {"output": name, "dtype": array.dtype.name, "shape": list(array.shape), **found}


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


def classes(result: Result) -> Prediction:
    """The classes of a row."""
    assert result.values is not None  # a task has them
    return predict(result.values[None], result.head.labels)[0]


def token_classes(result: Result) -> list[tuple[Token, Prediction]]:
    """The classes of a row's tokens."""
    assert result.values is not None  # a task has them
    places = [token.place for token in result.tokens]
    return list(zip(result.tokens, predict(result.values[places], result.head.labels), strict=True))


def numbers(result: Result) -> np.ndarray:
    """The numbers of a row, or its vector."""
    assert result.values is not None  # a task has them
    return result.values


def facts(result: Result) -> dict[str, Any]:
    """A row as data: its text and what was found."""
    return {"text": result.name, **_FACTS[result.head.task](result)}


def full_facts(result: Result) -> dict[str, Any]:
    """A row as data that stands alone: with its adapter and its task, too."""
    found = facts(result)
    return {"text": found.pop("text"), "adapter": result.head.adapter, "task": result.head.task, **found}


def document(results: Sequence[Result]) -> dict[str, Any]:
    """All rows as one document: the adapter once where they have one in common, else with each row."""
    heads = list(dict.fromkeys(result.head for result in results))
    if len(heads) > 1:
        return {"adapters": [head.adapter for head in heads], "rows": [full_facts(result) for result in results]}
    key = "vectors" if heads[0].task == "embedding" else "predictions"
    return {"adapter": heads[0].adapter, "task": heads[0].task, key: [facts(result) for result in results]}


def _class_facts(one: Prediction) -> dict[str, Any]:
    return {"label": one.label, "probability": one.probability, "probabilities": dict(one.probabilities)}


def _token_facts(token: Token, one: Prediction) -> dict[str, Any]:
    span = {} if token.span is None else {"start": token.span[0], "end": token.span[1]}
    return {"token": token.text, **span, **_class_facts(one)}


_FACTS: Mapping[Task | None, Callable[[Result], dict[str, Any]]] = {
    "sequence_classification": lambda result: _class_facts(classes(result)),
    "token_classification": lambda result: {"tokens": [_token_facts(*pair) for pair in token_classes(result)]},
    "regression": lambda result: {"numbers": numbers(result).tolist()},
    "embedding": lambda result: {"vector": numbers(result).tolist()},
    None: lambda result: {"outputs": list(result.outputs)},
}


# The results of `run` as tables: bars for people.

_FEW = 3
_NUMBERS_SHOWN = 5
_BAR = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def show(results: Sequence[Result]) -> None:
    """Write tables; where the rows ran through different adapters, one line for each row."""
    heads = {result.head for result in results}
    (_SHOW[results[0].head.task] if len(heads) == 1 else _show_mixed)(results)


def bar(probability: float) -> str:
    """A bar whose length is a probability, in eighths of a character."""
    full, eighths = divmod(round(probability * _BAR * 8), 8)
    return "█" * full + _EIGHTHS[eighths]


def _show_classes(results: Sequence[Result]) -> None:
    found = [(result.name, classes(result)) for result in results]
    if len(found) > _FEW:
        rows = [(name, one.label, f"{one.probability:.3f}", bar(one.probability)) for name, one in found]
        console().print(table(None, ("text", "label", "probability", ""), rows, numbers="llr"))
        return
    for name, one in found:
        ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
        cells = [(label, f"{probability:.3f}", bar(probability)) for label, probability in ranked]
        _show_one(name, table(None, ("label", "probability", ""), cells, numbers="lr"))


def _show_tokens(results: Sequence[Result]) -> None:
    for result in results:
        rows = [
            (token.text, one.label, f"{one.probability:.3f}", bar(one.probability))
            for token, one in token_classes(result)
        ]
        _show_one(result.name, table(None, ("token", "label", "probability", ""), rows, numbers="llr"))


def _show_numbers(results: Sequence[Result]) -> None:
    count = len(numbers(results[0]))
    columns = ["number"] if count == 1 else [f"number {place}" for place in range(count)]
    rows = [(result.name, *(f"{number:.6g}" for number in numbers(result))) for result in results]
    console().print(table(None, ("text", *columns), rows, numbers="l" + "r" * count))


def _show_vectors(results: Sequence[Result]) -> None:
    rows = [
        (result.name, len(row), f"{float(np.linalg.norm(row)):.4g}", _beginning(row))
        for result, row in ((result, numbers(result)) for result in results)
    ]
    console().print(table(None, ("text", "width", "length", "vector"), rows, numbers="lrr"))
    say("`--out FILE.npz` or `--json` gives the vectors whole.")


def _show_mixed(results: Sequence[Result]) -> None:
    rows = [
        (result.name, result.head.adapter or "the base alone", *_LINE[result.head.task](result)) for result in results
    ]
    console().print(table(None, ("text", "adapter", "result", "probability", ""), rows, numbers="lllr"))


def _class_cells(result: Result) -> tuple[str, str, str]:
    one = classes(result)
    return one.label, f"{one.probability:.3f}", bar(one.probability)


def _token_cells(result: Result) -> tuple[str, str, str]:
    return " ".join(f"{token.text}/{one.label}" for token, one in token_classes(result)), "", ""


def _number_cells(result: Result) -> tuple[str, str, str]:
    return _beginning(numbers(result)), "", ""


def _output_cells(result: Result) -> tuple[str, str, str]:
    return ", ".join(f"{one['output']} {one['shape']}" for one in result.outputs), "", ""


def _beginning(row: np.ndarray) -> str:
    more = " …" if len(row) > _NUMBERS_SHOWN else ""
    return " ".join(f"{number:.4f}" for number in row[:_NUMBERS_SHOWN]) + more


def _show_one(name: str, found: Table) -> None:
    out = console()
    out.print(name, style="bold", markup=False, soft_wrap=True)
    out.print(found)
    out.print()


_SHOW: Mapping[Task | None, Callable[[Sequence[Result]], None]] = {
    "sequence_classification": _show_classes,
    "token_classification": _show_tokens,
    "regression": _show_numbers,
    "embedding": _show_vectors,
    None: _show_mixed,
}

_LINE: Mapping[Task | None, Callable[[Result], tuple[str, str, str]]] = {
    "sequence_classification": _class_cells,
    "token_classification": _token_cells,
    "regression": _number_cells,
    "embedding": _number_cells,
    None: _output_cells,
}
