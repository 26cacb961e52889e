"""Rows in, answers out: the engine of every entry point.

A row is a text, a pair, a question with its choices, an image, an audio file or arrays, with an adapter. Its answer
does not depend on other rows; `Session.run_many` decides which rows share a call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError, within
from adapter_export.format.files import printable_json
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import Asked, ReadText, TextAnswer
from adapter_export.graph.tasks.asked import Row as Row
from adapter_export.reporting import SILENT, Part, Reporter
from adapter_export.runtime.batches import TOKEN_BUDGET, Request
from adapter_export.runtime.check_inputs import Weighting, weights_of_each
from adapter_export.runtime.head_results import Head, check_context, own_classes
from adapter_export.runtime.strength import Strength, strength_of_each
from adapter_export.tables import Described, number_of
from adapter_export.text import Pair, SidedText, TextSide

LongTexts = Literal["cut", "refuse", "windows"]
"""Treatment of texts that exceed the maximum length of their adapter."""

Arrays = Mapping[str, np.ndarray]

_WINDOW = 2048
"""Maximum rows of arrays in memory at a time."""


@dataclass(frozen=True)
class Reading:
    """Options for reading and batching rows.

    Attributes:
        long: truncate (`cut`) or refuse long texts, or split them into `windows`.
        stride: tokens shared by neighbouring windows. Default: a quarter of a window.
        token_budget: maximum tokens of a call, as in `Session.run_many`. Default: that of the reader.
        allow_mixed_rows: as in `Session.run`.
        outputs: keep all outputs of rows whose adapter has a task, instead of only the head's result.
    """

    long: LongTexts = "cut"
    stride: int | None = None
    token_budget: int | None = None
    allow_mixed_rows: bool = False
    outputs: bool = False


class Runs(Protocol):
    """A session, or an object with its interface."""

    @property
    def base_head(self) -> str | None:
        """The adapter that answers by default."""

    def head(self, adapter: str | None, /) -> Head:
        """Return an adapter with its task and the output of its head."""

    def run_many(
        self,
        requests: Sequence[Request],
        /,
        *,
        token_budget: int,
        allow_mixed_rows: bool,
        reporter: Reporter,
    ) -> list[dict[str, np.ndarray]]:
        """Return the outputs of each request, independent of the others."""

    def real_tokens(self, inputs: Arrays, results: Sequence[np.ndarray], /) -> Sequence[npt.NDArray[np.bool_] | None]:
        """Return a mask of the real tokens of each row."""

    def answering(self, adapter: str | None, /) -> Task:
        """Return the task of an adapter; RequestError if it has none."""


class Reader(ABC):
    """Preprocesses texts or files for the adapters of a bundle, and answers them with a session.

    Attributes:
        session: runs the inputs.
        word: name of a row in messages.
    """

    session: Any
    word: str
    window: int
    token_budget: int

    @abstractmethod
    def read(
        self,
        rows: Any,
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        long: LongTexts = "cut",
        stride: int | None = None,
        places: Sequence[str] = (),
    ) -> list[ReadText]:
        """Read rows for adapters."""

    @abstractmethod
    def arrays(self, rows: Any, adapter: str | None = None) -> Arrays:
        """Return the inputs of a call."""

    def token_text(self, token: int) -> str:
        """Return the text of a vocabulary entry; its id without a tokenizer."""
        return str(token)

    def without_padding(self, outputs: Arrays, row: Any) -> Arrays:  # noqa: ARG002 — of readers that pad rows
        """Return the outputs of a row without padding."""
        return outputs

    def answer(
        self,
        rows: Sequence[Any],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        weights: Weighting | None = None,
        strength: Strength | None = None,
        reading: Reading | None = None,
        reporter: Reporter = SILENT,
    ) -> list[TextAnswer]:
        """Answer rows, each by the task of its adapter.

        A text in windows gets the mean of its windows' probabilities, numbers or vectors (normalized again if the task
        is); a token gets its label from the window in which it is farthest from an edge; the span with the highest
        logits of any window is the answer.

        Args:
            rows: as in `read`.
            adapter: the adapter of all rows, or `base`. Required if adapters other than the base head have tasks.
            adapters: as in `read`.
            weights: as in `Session.run`, for weighted fusions: one mapping, or one per row.
            strength: as in `Session.run`: one number, or one per row.
            reading: options for reading and batching.
            reporter: as in `Answerer.answer`.

        Raises:
            UsageError: no adapter is named.
            RequestError, FileError, DataError: as `read` and `Session.run`; or an adapter has no head or no known task.
        """
        if adapters is None:
            adapter = self.session.named(adapter)
        else:
            adapters = [None if name is None else self.session.named(name) for name in adapters]
        names = self._names(rows, adapter, adapters)
        choices = zip(
            rows, names, strength_of_each(strength, len(rows)), weights_of_each(weights, len(rows)), strict=True
        )
        full_rows = [Row(*choice, where=f"{self.word} {at}") for at, choice in enumerate(choices)]
        return Answerer(self.session, self, reading).answers(full_rows, reporter)

    def _names(
        self, rows: Sequence[Any], adapter: str | None, adapters: Sequence[str | None] | None
    ) -> list[str | None]:
        """Return the adapter of each row; RequestError unless `rows` is a list with one adapter, or one per row."""
        if isinstance(rows, str | bytes | Path | Pair):
            what, actual = f"a list of {self.word}s is required", type(rows).__name__
            raise RequestError(what, found=actual, fix="put it into a list: `[…]`")
        names = [adapter] * len(rows) if adapters is None else list(adapters)
        if not len(rows) or len(names) != len(rows):
            what = f"`adapters` must have one entry per {self.word}" if len(rows) else f"no {self.word}s"
            actual = f"{number_of(len(names), 'adapter')} for {len(rows)} {self.word}s"
            raise RequestError(
                what, found=actual, expected=f"a list of {self.word}s, and one adapter or one per {self.word}"
            )
        return names


@dataclass(frozen=True)
class ReadRow:
    """A row as requests to a session: one, or one per window or choice."""

    session: Runs
    row: Row
    head: Head
    requests: tuple[Request, ...]
    read: ReadText | None = None
    reader: Reader | None = None

    def answered(self, outputs: Sequence[Arrays]) -> AnsweredRow:
        """Return the row with the outputs of its requests."""
        row_outputs: list[Arrays] = [{name: array[0] for name, array in batched.items()} for batched in outputs]
        if self.read is not None and self.reader is not None:
            pairs = zip(row_outputs, self.read.rows, strict=True)
            row_outputs = [self.reader.without_padding(arrays, row) for arrays, row in pairs]
        output = self.head.output
        if output is not None:
            row_outputs = [{**arrays, output: own_classes(arrays[output])} for arrays in row_outputs]
        real = None
        if self.read is None and output is not None:
            (real,) = self.session.real_tokens(self.row.asked, [row_outputs[0][output]])
        return AnsweredRow(self.row, self.head, row_outputs, self.read, real)


@dataclass(frozen=True, repr=False)
class AnsweredRow(Described):
    """A row with its outputs.

    Attributes:
        row: the row.
        head: the adapter that answered it, its task and its output.
        outputs: outputs by name for each window or choice, without batch axis and padding.
        read: the row as tokens; `None` for arrays.
        real: mask of the real tokens of arrays, bool `[tokens]`.
    """

    row: Row
    head: Head
    outputs: Sequence[Arrays]
    read: ReadText | None = None
    real: npt.NDArray[np.bool_] | None = None

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts: dict[str, object] = {"row": self.row.where, "adapter": self.head.adapter}
        return facts | ({} if self.head.task is None else {"task": self.head.task.type})

    @property
    def results(self) -> list[np.ndarray]:
        """The result of the head for each window or choice: `[classes]`, `[tokens, classes]` or `[width]`."""
        return [arrays[str(self.head.output)] for arrays in self.outputs]

    @property
    def cut(self) -> int:
        """Number of truncated tokens."""
        return 0 if self.read is None else self.read.cut

    @cached_property
    def answer(self) -> TextAnswer:
        """The answer by the task of the adapter.

        Raises:
            RequestError: the adapter has no task, its result is NaN or infinite, or no token may be the answer.
        """
        with _at(self.row.where):
            if self.head.task is None or self.head.output is None:
                raise RequestError("the adapter has no task", where=f"adapter `{self.head.adapter}`")
            if self.read is not None:
                return self.read.answered(self.results)
            (result,) = self.results
            context = self.row.context
            check_context(self.head.task, context, f"adapter `{self.head.adapter}`")
            return TextAnswer(self.head.task.answer(result, self.real, context))

    def document(self) -> dict[str, Any]:
        """Return the answer as JSON, described in docs/reference/format.md; all outputs if there is no task.

        Raises:
            RequestError: as `answer`; or an output is NaN or infinite.
        """
        task = self.head.task
        document_of_row = {
            "adapter": self.head.adapter,
            "task": None if task is None or self.head.output is None else task.type,
        }
        if document_of_row["task"] is None:
            windows = 1 if self.read is None else self.read.windows
            cut = {**({"cut": self.cut} if self.cut else {}), **({"windows": windows} if windows > 1 else {})}
            return {**document_of_row, "outputs": self.listed_outputs(), **cut}
        return {**document_of_row, **self.answer.document()}

    def json_line(self) -> str:
        """Return the texts and the answer as a line of JSON; errors as of `document`."""
        return f"{printable_json({**self.row.texts, **self.document()})}\n"

    def listed_outputs(self) -> dict[str, Any]:
        """Return all outputs as nested lists; for several windows or choices, a list of these.

        Raises:
            RequestError: one is NaN or infinite, which JSON cannot express.
        """
        for arrays in self.outputs:
            wrong = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
            if wrong is not None:
                raise RequestError("an output is NaN or infinite", where=f"`{wrong}`", fix="run `verify` on the bundle")
        if len(self.outputs) == 1:
            return {name: array.tolist() for name, array in self.outputs[0].items()}
        return {name: [arrays[name].tolist() for arrays in self.outputs] for name in self.outputs[0]}


def asked_of(document: object) -> Asked:
    """Return the row of a JSON value: a text, or an object of a text with `side`, `pair` or `choices`.

    Raises:
        RequestError: another value, such as a list, which is ambiguous.
    """
    if isinstance(document, str):
        return document
    if isinstance(document, Mapping) and isinstance(first := document.get("text"), str):
        pair, choices, side = (document.get(name) for name in ("pair", "choices", "side"))
        if len(document) == 2 and side in get_args(TextSide):
            return SidedText(first, cast(TextSide, side))
        if len(document) == 2 and isinstance(pair, str):
            return Pair(first, pair)
        if (
            len(document) == 2
            and isinstance(choices, list)
            and choices
            and all(isinstance(choice, str) for choice in choices)
        ):
            return [Pair(first, choice) for choice in choices]
    raise RequestError(
        "is not a text",
        found=f"{document!a}"[:100],
        expected='a string, `{"text": …, "pair": …}`, `{"text": …, "choices": […]}` or `{"text": …, "side": "query"}`',
    )


def _at(where: str) -> AbstractContextManager[None]:
    """Name a row in errors of the block, if it has a name."""
    return within(where) if where else nullcontext()


class Answerer:
    """Answers rows with the adapters of a bundle.

    Args:
        session: computes the answers.
        reader: preprocesses texts or files; not needed for arrays.
        reading: options for reading and batching.
    """

    def __init__(self, session: Runs, reader: Reader | None = None, reading: Reading | None = None) -> None:
        self._session, self._reader, self._reading = session, reader, reading or Reading()

    def answer(self, rows: Iterable[Row], reporter: Reporter = SILENT) -> Iterator[AnsweredRow]:
        """Answer rows in order, keeping up to some thousand in memory.

        Args:
            rows: any number.
            reporter: receives the number of finished rows after each call.

        Raises:
            RequestError: a row does not fit; rows of earlier windows have been answered.
        """
        window = _WINDOW if self._reader is None else self._reader.window
        remaining, done = iter(rows), 0
        total = len(rows) if isinstance(rows, Sized) else None
        while some := list(islice(remaining, window)):
            read = self.read(some)
            part = Part(reporter, "answering rows", done, len(some), total)
            outputs = iter(self._run([request for row in read for request in row.requests], part))
            for row in read:
                yield row.answered([next(outputs) for _ in row.requests])
            done += len(some)
            part.step("", 1, 1)

    def answers(self, rows: Sequence[Row], reporter: Reporter = SILENT) -> list[TextAnswer]:
        """Answer rows by the tasks of their adapters; each must have one.

        Args:
            rows: any number.
            reporter: receives the number of finished rows after each call.

        Raises:
            RequestError: a row does not fit, or its adapter has no task.
        """
        for adapter, row in {row.adapter: row for row in reversed(rows)}.items():
            with _at(row.where):
                self._session.answering(adapter)
        return [answered.answer for answered in self.answer(rows, reporter)]

    def read(self, rows: Sequence[Row]) -> list[ReadRow]:
        """Return rows as requests, for callers that put the requests of several into one call.

        Raises:
            RequestError: a row cannot be read, or its adapter is not loaded.
        """
        texts = [row for row in rows if not row.is_arrays]
        read = iter(self._read(texts) if texts else ())
        return [self._of_arrays(row) if row.is_arrays else self._of_text(row, next(read)) for row in rows]

    def _read(self, rows: Sequence[Row]) -> list[ReadText]:
        if self._reader is None:
            raise RequestError("there is nothing that reads texts here", fix="give arrays for the inputs of the base")
        return self._reader.read(
            [row.asked for row in rows],
            adapters=[row.adapter for row in rows],
            long=self._reading.long,
            stride=self._reading.stride,
            places=[row.where or f"{self._reader.word} {at}" for at, row in enumerate(rows)],
        )

    def _of_text(self, row: Row, read: ReadText) -> ReadRow:
        assert self._reader is not None
        with _at(row.where):
            arrays = [self._reader.arrays([encoded], read.adapter) for encoded in read.rows]
            head = self._session.head(read.adapter)
        requests = tuple(self._request(inputs, head, row) for inputs in arrays)
        return ReadRow(self._session, row, head, requests, read, self._reader)

    def _of_arrays(self, row: Row) -> ReadRow:
        with _at(row.where):
            head = self._session.head(self._session.base_head if row.adapter is None else row.adapter)
        return ReadRow(self._session, row, head, (self._request(row.asked, head, row),))

    def _request(self, inputs: Arrays, head: Head, row: Row) -> Request:
        head_only = head.task is not None and not self._reading.outputs
        return Request.of_row(row, inputs, head.adapter, head_only=head_only)

    def _run(self, requests: Sequence[Request], reporter: Reporter) -> list[dict[str, np.ndarray]]:
        usual = TOKEN_BUDGET if self._reader is None else self._reader.token_budget
        return self._session.run_many(
            requests,
            token_budget=usual if self._reading.token_budget is None else self._reading.token_budget,
            allow_mixed_rows=self._reading.allow_mixed_rows,
            reporter=reporter,
        )
