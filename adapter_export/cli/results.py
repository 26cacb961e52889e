"""What `run` says of each row: the classes of a text or of its tokens, numbers, a vector, or a summary of outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.cli.output import emit_json, show
from adapter_export.graph.tasks import Task
from adapter_export.runtime import Session
from adapter_export.runtime.answers import Prediction, own_classes, predict
from adapter_export.tables import Table

_FEW = 3
_NUMBERS_SHOWN = 5
_BAR = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


@dataclass(frozen=True)
class Token:
    """A token: its place in the row from 0, as the tokenizer writes it, and the characters [from, to) of the text."""

    place: int
    text: str
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Head:
    """The adapter that a row ran through (none is the base alone), its task and classes, and its output, if any."""

    adapter: str | None
    task: Task | None
    labels: tuple[str, ...]
    output: str | None

    def result(
        self, name: str, outputs: Mapping[str, np.ndarray], row: int, base: Sequence[str], tokens: Sequence[Token]
    ) -> Result:
        """Return the result of a row of a call with these outputs, of which every row has those in `base`."""
        own = {output: outputs[output][row] for output in base if self.task is None}
        if self.output is not None:
            own[self.output] = own_classes(outputs[self.output][row])
        return Result(name, self, own, tokens)


def head_of(session: Session, adapter: str | None) -> Head:
    """Return what the result of an adapter means; one that is not loaded is a `RequestError`."""
    if adapter is None:
        return Head(None, None, (), None)
    return Head(adapter, session.task(adapter), session.labels(adapter) or (), session.output(adapter))


@dataclass(frozen=True)
class Result:
    """The result of one row: what its head gave, in its own width, and without a task the base's outputs as well."""

    name: str
    head: Head
    outputs: Mapping[str, np.ndarray]
    tokens: Sequence[Token]

    @property
    def values(self) -> np.ndarray:
        """What the head of a task gave: `[classes]`, `[tokens, classes]`, `[numbers]` or `[width]`."""
        assert self.head.output is not None  # a task has one
        return self.outputs[self.head.output]

    def classes(self) -> Prediction:
        """Return the classes of the row."""
        return predict(self.values[None], self.head.labels)[0]

    def token_classes(self) -> list[tuple[Token, Prediction]]:
        """Return the classes of its tokens."""
        places = [token.place for token in self.tokens]
        return list(zip(self.tokens, predict(self.values[places], self.head.labels), strict=True))


def facts(result: Result) -> dict[str, Any]:
    """Return a row as data: its text and its result."""
    found: dict[str, Any] = {"text": result.name}
    match result.head.task:
        case "sequence_classification":
            return found | _class_facts(result.classes())
        case "token_classification":
            tokens = []
            for token, one in result.token_classes():
                span = {} if token.span is None else {"start": token.span[0], "end": token.span[1]}
                tokens.append({"token": token.text, **span, **_class_facts(one)})
            return found | {"tokens": tokens}
        case "regression":
            return found | {"numbers": result.values.tolist()}
        case "embedding":
            return found | {"vector": result.values.tolist()}
        case None:
            return found | {"outputs": list(_summaries(result.outputs))}


def full_facts(result: Result) -> dict[str, Any]:
    """Return a row as data with its adapter and its task."""
    found = facts(result)
    return {"text": found.pop("text"), "adapter": result.head.adapter, "task": result.head.task, **found}


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Return all rows as one document: the adapter once where they have one in common, else with each row."""
    heads = list(dict.fromkeys(result.head for result in results))
    if len(heads) > 1:
        return {"adapters": [head.adapter for head in heads], "rows": [full_facts(result) for result in results]}
    key = "vectors" if heads[0].task == "embedding" else "predictions"
    return {"adapter": heads[0].adapter, "task": heads[0].task, key: [facts(result) for result in results]}


def _class_facts(one: Prediction) -> dict[str, Any]:
    return {"label": one.label, "probability": one.probability, "probabilities": dict(one.probabilities)}


def _summaries(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield each output with its type, its shape, and the least, the mean and the greatest of its finite numbers."""
    for name, array in arrays.items():
        finite = array[np.isfinite(array)]
        found = {key: float(getattr(finite, key)()) if finite.size else None for key in ("min", "mean", "max")}
        yield {"output": name, "dtype": array.dtype.name, "shape": list(array.shape), **found}


def tables(results: Sequence[Result]) -> Iterator[Table | str]:
    """Return what to show; where the rows ran through different adapters, one line for each row."""
    task = results[0].head.task if len({result.head for result in results}) == 1 else None
    match task:
        case "sequence_classification" if len(results) > _FEW:
            rows = [(result.name, *_cells(result)) for result in results]
            yield Table(("text", "label", "probability", ""), rows, numbers="llr")
        case "sequence_classification":
            for result in results:
                ranked = sorted(result.classes().probabilities.items(), key=lambda item: -item[1])
                shares = [(label, *_share(number)) for label, number in ranked]
                yield from (result.name, Table(("label", "probability", ""), shares, numbers="lr"))
        case "token_classification":
            for result in results:
                cells = [(token.text, one.label, *_share(one.probability)) for token, one in result.token_classes()]
                yield from (result.name, Table(("token", "label", "probability", ""), cells, numbers="llr"))
        case "regression":
            count = len(results[0].values)
            columns = ["number"] if count == 1 else [f"number {place}" for place in range(count)]
            numbers = [[result.name, *(f"{number:.6g}" for number in result.values)] for result in results]
            yield Table(("text", *columns), numbers, numbers="l" + "r" * count)
        case "embedding":
            lengths = [f"{float(np.linalg.norm(result.values)):.4g}" for result in results]
            pairs = zip(results, lengths, strict=True)
            vectors = [(result.name, len(result.values), length, _cells(result)[0]) for result, length in pairs]
            yield Table(("text", "width", "length", "vector"), vectors, numbers="lrr")
        case None:
            mixed = [(result.name, result.head.adapter or "the base alone", *_cells(result)) for result in results]
            yield Table(("text", "adapter", "result", "probability", ""), mixed, numbers="lllr")


def show_outputs(adapter: str | None, batches: Sequence[Mapping[str, np.ndarray]], *, as_json: bool) -> None:
    """Write a summary of each output of each batch."""
    rows = [{**one, "batch": index} for index, outputs in enumerate(batches) for one in _summaries(outputs)]
    if as_json:
        emit_json({"adapter": adapter, "outputs": rows})
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
    match result.head.task:
        case "sequence_classification":
            one = result.classes()
            return one.label, *_share(one.probability)
        case "token_classification":
            return " ".join(f"{token.text}/{one.label}" for token, one in result.token_classes()), "", ""
        case "regression" | "embedding":
            more = " …" if len(result.values) > _NUMBERS_SHOWN else ""
            return " ".join(f"{number:.4f}" for number in result.values[:_NUMBERS_SHOWN]) + more, "", ""
        case None:
            return ", ".join(f"{name} {list(array.shape)}" for name, array in result.outputs.items()), "", ""
