"""What `run` says of each row: the classes of a text or of its tokens, numbers, a vector, or a summary of outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.cli.output import emit_json, show
from adapter_export.graph.tasks import ProblemType
from adapter_export.runtime.answers import Answer, Head, LabelSet, Numbers, Prediction, Score, Span, TokenLabels, Vector
from adapter_export.runtime.text_answers import Choice, TextAnswer
from adapter_export.tables import Table

_FEW = 3
_NUMBERS_SHOWN = 5
_BAR = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


@dataclass(frozen=True)
class Result:
    """The result of one row: its text as data, what its adapter says of it, or without a task all outputs, and the cut.

    `cut` is how many tokens of its text were left out.
    """

    texts: Mapping[str, Any]
    head: Head
    said: TextAnswer | None
    outputs: Mapping[str, np.ndarray]
    cut: int = 0

    @property
    def name(self) -> str:
        """Its text, or both texts of a pair."""
        second = self.texts.get("pair")
        return str(self.texts["text"]) if second is None else f"{self.texts['text']} | {second}"

    @property
    def type(self) -> ProblemType | None:
        """The problem type of its adapter's task; none without a task."""
        return None if self.head.task is None else self.head.task.type

    def answer(self) -> Answer | Choice:
        """Return what the adapter says of the row."""
        assert self.said is not None  # as callers have seen
        return self.said.answer

    def token_classes(self) -> list[tuple[str, Prediction]]:
        """Return its tokens, as the tokenizer writes them, with the class of each."""
        assert self.said is not None
        assert isinstance(self.said.answer, TokenLabels)
        pairs = zip(self.said.tokens, self.said.answer.tokens, strict=True)
        return [(token.text, one) for token, one in pairs if one is not None]


def facts(result: Result) -> dict[str, Any]:
    """Return a row as data: its text and its answer, or without a task a summary of its outputs."""
    if result.said is None:
        cut = {"cut": result.cut} if result.cut else {}
        return {**result.texts, "outputs": list(_summaries(result.outputs)), **cut}
    return {**result.texts, **result.said.document()}


def full_facts(result: Result) -> dict[str, Any]:
    """Return a row as data with its adapter and its task."""
    found = facts(result)
    return {"text": found.pop("text"), "adapter": result.head.adapter, "task": result.type, **found}


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Return all rows as one document: the adapter once where they have one in common, else with each row."""
    heads = list(dict.fromkeys(result.head for result in results))
    if len(heads) > 1:
        return {"adapters": [head.adapter for head in heads], "rows": [full_facts(result) for result in results]}
    problem = results[0].type
    key = "vectors" if problem == "embedding" else "predictions"
    return {"adapter": heads[0].adapter, "task": problem, key: [facts(result) for result in results]}


def _summaries(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield each output with its type, its shape, and the least, the mean and the greatest of its finite numbers."""
    for name, array in arrays.items():
        finite = array[np.isfinite(array)]
        found = {key: float(getattr(finite, key)()) if finite.size else None for key in ("min", "mean", "max")}
        yield {"output": name, "dtype": array.dtype.name, "shape": list(array.shape), **found}


def tables(results: Sequence[Result]) -> Iterator[Table | str]:
    """Return what to show; where the rows ran through different adapters, one line for each row."""
    problem = results[0].type if len({result.head for result in results}) == 1 else None
    match problem:
        case "single_label" if len(results) <= _FEW:
            for result in results:
                yield from (result.name, _shares(result.answer(), "label"))
        case "multi_label" if len(results) <= _FEW:
            for result in results:
                yield from (result.name, _shares(result.answer(), "label"))
        case "single_label" | "multi_label" | "ranking" | "multiple_choice" | "span":
            rows = [(result.name, *_cells(result)) for result in results]
            columns = {"ranking": "score", "multiple_choice": "choice", "span": "answer"}
            yield Table(("text", columns.get(problem, "label"), "probability", ""), rows, numbers="llr")
        case "token":
            for result in results:
                cells = [(token, one.label, *_share(one.probability)) for token, one in result.token_classes()]
                yield from (result.name, Table(("token", "label", "probability", ""), cells, numbers="llr"))
        case "regression":
            numbers_of = [_values(result) for result in results]
            count = len(numbers_of[0])
            columns_of = ["number"] if count == 1 else [f"number {place}" for place in range(count)]
            found = zip(results, numbers_of, strict=True)
            numbers = [[result.name, *(f"{number:.6g}" for number in values)] for result, values in found]
            yield Table(("text", *columns_of), numbers, numbers="l" + "r" * count)
        case "embedding":
            lengths = [f"{float(np.linalg.norm(_values(result))):.4g}" for result in results]
            vectors_of = zip(results, lengths, strict=True)
            vectors = [(result.name, len(_values(result)), length, _cells(result)[0]) for result, length in vectors_of]
            yield Table(("text", "width", "length", "vector"), vectors, numbers="lrr")
        case None:
            mixed = [(result.name, result.head.adapter or "the base alone", *_cells(result)) for result in results]
            yield Table(("text", "adapter", "result", "probability", ""), mixed, numbers="lllr")


def _shares(said: Answer | Choice, column: str) -> Table:
    """List the classes of a text, the most probable first; of several labels, those that apply are marked."""
    assert isinstance(said, Prediction | LabelSet)
    ranked = sorted(said.probabilities.items(), key=lambda item: -item[1])
    applies = set(said.labels) if isinstance(said, LabelSet) else set()
    rows = [(f"{label} ✓" if label in applies else label, *_share(number)) for label, number in ranked]
    return Table((column, "probability", ""), rows, numbers="lr")


def _values(result: Result) -> np.ndarray:
    said = result.answer()
    assert isinstance(said, Numbers | Vector)
    return said.numbers if isinstance(said, Numbers) else said.vector


def show_outputs(
    adapter: str | None, batches: Sequence[Mapping[str, np.ndarray]], cut: Mapping[str, int], *, as_json: bool
) -> None:
    """Write a summary of each output of each batch; `cut` has how many tokens of texts were left out, by place."""
    rows = [{**one, "batch": index} for index, outputs in enumerate(batches) for one in _summaries(outputs)]
    if as_json:
        emit_json({"adapter": adapter, "outputs": rows, **({"cut": cut} if cut else {})})
        return
    numbers = [["–" if row[key] is None else f"{row[key]:.4g}" for key in ("min", "mean", "max")] for row in rows]
    cells = [(row["output"], row["dtype"], row["shape"], *three) for row, three in zip(rows, numbers, strict=True)]
    title = "the base alone" if adapter is None else f"adapter `{adapter}`"
    show(Table(("output", "type", "shape", "min", "mean", "max"), cells, title, "lllrrr"))


def bar(probability: float) -> str:
    """Return a bar whose length is a probability, in eighths of a character."""
    full, eighths = divmod(round(probability * _BAR * 8), 8)
    return "█" * full + _EIGHTHS[eighths]


def _share(probability: float) -> tuple[str, str]:
    return f"{probability:.3f}", bar(probability)


def _cells(result: Result) -> tuple[str, str, str]:
    """Return the result in a line: what it is, and of a class its probability."""
    if result.said is None:
        return ", ".join(f"{name} {list(array.shape)}" for name, array in result.outputs.items()), "", ""
    said = result.answer()
    match said:
        case Prediction():
            return said.label, *_share(said.probability)
        case LabelSet():
            shares = [said.probabilities[label] for label in said.labels]
            return ", ".join(said.labels) or "none", *(_share(min(shares)) if shares else ("", ""))
        case TokenLabels():
            return " ".join(f"{token}/{one.label}" for token, one in result.token_classes()), "", ""
        case Span():
            text = f"tokens {said.start} to {said.end}" if result.said.span is None else result.said.span[0]
            return text, *_share(said.probability)
        case Choice():
            choices = result.texts.get("choices", ())
            return choices[said.choice], *_share(said.probabilities[said.choice])
        case Score():
            return f"{said.score:.4f}", "", ""
        case _:
            values = _values(result)
            more = " …" if len(values) > _NUMBERS_SHOWN else ""
            return " ".join(f"{number:.4f}" for number in values[:_NUMBERS_SHOWN]) + more, "", ""
