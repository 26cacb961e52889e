"""Results of `run`, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.commands.command import Screen
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import HEAD_TYPES, TASK_TYPES, ProblemType
from adapter_export.graph.tasks.answers import ShownRow, TextAnswer
from adapter_export.runtime.answerer import AnsweredRow
from adapter_export.runtime.head_results import Head
from adapter_export.tables import Table


@dataclass(frozen=True)
class Result:
    """Result of one row: its texts and its answer, or a summary of each output if the adapter has no task."""

    texts: Mapping[str, Any]
    head: Head
    answer: TextAnswer | None
    outputs: Sequence[Summary]
    token_text: Callable[[int], str] = str

    @classmethod
    def of(cls, answered: AnsweredRow, token_text: Callable[[int], str] = str) -> Result:
        """Summarize an answered row, so that its outputs can be freed; `token_text` names vocabulary entries."""
        has_task = answered.head.task is not None and answered.head.output is not None
        outputs = (
            []
            if has_task
            else [Summary.of(name, array) for arrays in answered.outputs for name, array in arrays.items()]
        )
        return cls(answered.row.texts, answered.head, answered.answer if has_task else None, outputs, token_text)

    @property
    def name(self) -> str:
        """The text, or both texts of a pair."""
        second = self.texts.get("pair")
        return str(self.texts["text"]) if second is None else f"{self.texts['text']} | {second}"

    @property
    def type(self) -> ProblemType | None:
        """Task type of the row's adapter; `None` without a task."""
        return None if self.head.task is None else self.head.task.type

    @property
    def shown(self) -> ShownRow:
        """The row with its answer."""
        assert self.answer is not None
        return ShownRow(self.name, self.answer, self.texts.get("choices", ()), self.token_text)


@dataclass(frozen=True)
class Summary:
    """Name, dtype and shape of one output, with the minimum, mean and maximum of its finite values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    numbers: tuple[float | None, float | None, float | None]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Summary:
        """Summarize an array."""
        finite = array[np.isfinite(array)]
        least, mean, greatest = (float(getattr(finite, key)()) if finite.size else None for key in _MEASURES)
        return cls(name, array.dtype.name, array.shape, (least, mean, greatest))


_MEASURES = ("min", "mean", "max")


def show_results(results: Sequence[Result], screen: Screen) -> None:
    """Render the results of all rows as tables."""
    heads = {result.head for result in results}
    if len(heads) == 1 and results[0].answer is None:
        screen.show(_summaries(results))
        return
    screen.show(*tables(results))
    if all(result.type is not None and TASK_TYPES[result.type].embeds for result in results):
        screen.report("Add `--out FILE.npz` or `--json` for whole vectors.")


def _summaries(results: Sequence[Result]) -> Table:
    """List every output of every row."""
    adapter = results[0].head.adapter
    rows = [
        (
            result.name,
            output.name,
            output.dtype,
            list(output.shape),
            *("–" if n is None else f"{n:.4g}" for n in output.numbers),
        )
        for result in results
        for output in result.outputs
    ]
    title = "base" if adapter is None else f"adapter `{adapter}`"
    return Table(("text", "output", "type", "shape", *_MEASURES), rows, title, "llllrrr")


def stacked(rows: Sequence[tuple[str | None, Mapping[str, np.ndarray]]], manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the outputs of rows, each with the output of its head, as arrays [rows, …].

    Rows are padded with zeros after their tokens. Classes that a row's adapter does not have
    are −inf, and outputs of other adapters' heads are NaN.
    """
    heads, arrays = {head.output for head in manifest.heads}, dict[str, np.ndarray]()
    for name in dict.fromkeys(name for _, outputs in rows for name in outputs):
        numbered = [(at, outputs[name]) for at, (_, outputs) in enumerate(rows) if name in outputs]
        shape = tuple(max(sizes) for sizes in zip(*(array.shape for _, array in numbered), strict=True))
        arrays[name] = np.full((len(rows), *shape), np.nan if len(numbered) < len(rows) else 0, numbered[0][1].dtype)
        for at, array in numbered:
            target = arrays[name][at]
            target[...] = 0
            if name in heads:
                target[tuple(slice(size) for size in array.shape[:-1])] = -np.inf
            target[tuple(slice(size) for size in array.shape)] = array
    return arrays


def tables(results: Sequence[Result]) -> Iterator[Table | str]:
    """Return the title and rows of the table; with several adapters, one line per row."""
    types = {result.type for result in results}
    (problem,) = types if len({result.head for result in results}) == 1 else (None,)
    if problem is not None:
        yield from HEAD_TYPES[problem].tables([result.shown for result in results])
        return
    mixed = [(result.name, result.head.adapter or "base", *_cells(result)) for result in results]
    yield Table(("text", "adapter", "result", "probability", ""), mixed, numbers="lllr")


def _cells(result: Result) -> tuple[str, str, str]:
    """Return the answer in one line, with the probability of a class."""
    if result.answer is None or result.type is None:
        return ", ".join(f"{output.name} {list(output.shape)}" for output in result.outputs), "", ""
    return HEAD_TYPES[result.type].cells(result.shown)
