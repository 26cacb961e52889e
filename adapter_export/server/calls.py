"""Requests of the plain API, read strictly from JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from adapter_export.errors import RequestError, quoted
from adapter_export.graph.tasks.answers import Asked
from adapter_export.runtime.check_inputs import weights_of_each
from adapter_export.runtime.strength import strength_of_each
from adapter_export.safe_io.documents import parse_json
from adapter_export.server.limits import MOST_ROWS
from adapter_export.text import MOST_CHARACTERS, Pair, SidedText, TextSide

Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Words = Annotated[str, Field(max_length=MOST_CHARACTERS)]


def _decoded(given: object) -> bytes:
    """Return the bytes of base64; RequestError for other characters, which `Base64Bytes` of pydantic leaves out."""
    if not isinstance(given, str):
        raise RequestError("a file is no text of base64", found=type(given).__name__)
    try:
        return base64.b64decode(given, validate=True)
    except ValueError as error:
        raise RequestError("a file is not in base64", found=error, fix="in a shell: `base64 -w0 FILE`") from error


FileBytes = Annotated[bytes, BeforeValidator(_decoded), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
"""The bytes of a file, sent in base64."""

Number = Annotated[float, Field(strict=True)]
"""A number, and not a text or a truth value; the session checks its range."""

Weights = dict[str, Number]
Document = TypeVar("Document", bound=BaseModel)


class Strict(BaseModel):
    """A document without unknown keys."""

    model_config = ConfigDict(extra="forbid")


class TextPair(Strict):
    """Two texts that are read together.

    Attributes:
        text: the first text.
        pair: the second text.
    """

    text: Words
    pair: Words


class TextOnSide(Strict):
    """A text with its side of a search.

    Attributes:
        text: the text.
        side: whether it is a query or a document.
    """

    text: Words
    side: TextSide


class Question(Strict):
    """A question with its choices.

    Attributes:
        text: the question.
        choices: the possible answers.
    """

    text: Words
    choices: list[Words] = Field(min_length=1, max_length=MOST_ROWS)


class Call(Strict):
    """The body of `POST /answer` and `POST /run`: rows, and the adapters that answer them.

    The rows are one of `text`, `texts`, `file`, `files` and `inputs`. One of `model`, `adapter` and `adapters` names
    what answers; `base` is the base without adapters, which its head answers if it has one. `/run` needs no name, nor
    does `/answer` where no adapter beside the base head has a task.

    Attributes:
        model: the name of a model or a route, for all rows.
        text: a text, which is one row.
        pair: the second text of a pair whose first text is `text`.
        choices: the choices of a question whose text is `text`.
        side: whether `text` is a query or a document, for adapters with a prefix of each.
        texts: a text, a text with its side, a pair, or a question with its choices for each row.
        file: an image or an audio file in base64, which is one row.
        files: such a file for each row.
        inputs: for each input of the base a list of integers per row.
        adapter: the adapter of all rows; null is no name.
        adapters: an adapter for each row; null is the base.
        strength: how much of an adapter's updates is added, for all rows or for each; 1 if left out.
        weights: a number for each member of a weighted fusion, for all rows or for each; null for other adapters.
        context: with `inputs`, for each row of a `span` a 1 for each token that may be the answer, 0 for the others;
            null for rows of other tasks.
        id: of the request; a route with shares decides by it.
    """

    model: str | None = None
    text: Words | None = None
    pair: Words | None = None
    choices: list[Words] | None = Field(default=None, min_length=1, max_length=MOST_ROWS)
    side: TextSide | None = None
    texts: list[Words | TextOnSide | TextPair | Question] | None = Field(default=None, max_length=MOST_ROWS)
    file: FileBytes | None = None
    files: list[FileBytes] | None = Field(default=None, max_length=MOST_ROWS)
    inputs: dict[str, Annotated[list[list[Int64]], Field(max_length=MOST_ROWS)]] | None = None
    adapter: str | None = None
    adapters: list[str | None] | None = Field(default=None, max_length=MOST_ROWS)
    strength: Number | list[Number] | None = None
    weights: Weights | Annotated[list[Weights | None], Field(max_length=MOST_ROWS)] | None = None
    context: list[list[Literal[0, 1]] | None] | None = Field(default=None, max_length=MOST_ROWS)
    id: str | None = Field(default=None, max_length=200)

    @property
    def is_named(self) -> bool:
        """True if the call names what answers it."""
        return (self.model, self.adapter, self.adapters) != (None, None, None)

    def asked(self) -> list[Asked | bytes] | None:
        """Return the texts or files; `None` for `inputs`.

        Raises:
            RequestError: there is nothing to run on, or more than one thing.
        """
        given, one_of = [name for name in _ROWS if getattr(self, name) is not None], f"one of {quoted(_ROWS)}"
        if len(given) > 1:
            raise RequestError("there are two things to run on", found=quoted(given), expected=one_of)
        if not given:
            raise RequestError("there is nothing to run on", expected=one_of)
        beside = [name for name in ("pair", "choices", "side") if getattr(self, name) is not None]
        if beside and (self.text is None or len(beside) > 1):
            raise RequestError("`pair`, `choices` and `side` belong to a `text`", expected="one of them beside `text`")
        if self.text is not None:
            if self.choices is not None:
                return [[Pair(self.text, choice) for choice in self.choices]]
            if self.side is not None:
                return [SidedText(self.text, self.side)]
            return [self.text if self.pair is None else Pair(self.text, self.pair)]
        if self.inputs is not None:
            return None
        files = self.files if self.file is None else [self.file]
        rows: list[Asked | bytes] = list(map(_asked, self.texts or ())) if files is None else [*files]
        if not rows:
            raise RequestError(f"there is no {given[0].rstrip('s')}", expected="at least one")
        return rows

    def names(self, rows: int) -> list[str | None]:
        """Return the adapter or the model of each row."""
        if self.model is not None and (self.adapter is not None or self.adapters is not None):
            raise RequestError("a call has one choice", expected="`model`, `adapter` or `adapters`")
        given = self.adapter if self.model is None else self.model
        names = self.adapters if self.adapters is not None else [given] * rows
        if len(names) != rows or (self.adapters is not None and self.adapter is not None):
            raise RequestError("give `adapter`, or `adapters` with one for each row", found=len(names), expected=rows)
        return names

    def strengths(self, rows: int) -> Sequence[float]:
        """Return the strength of each row."""
        return strength_of_each(self.strength, rows)

    def weights_of(self, rows: int) -> Sequence[Mapping[str, float] | None]:
        """Return the weights of the members of a fusion for each row."""
        return weights_of_each(self.weights, rows)

    def contexts(self, rows: int) -> Sequence[np.ndarray | None]:
        """Return for each row which of its tokens may be the answer to a question."""
        if self.context is None:
            return [None] * rows
        if self.inputs is None or len(self.context) != rows:
            found = "texts" if self.inputs is None else f"{len(self.context)} for {rows} rows"
            raise RequestError("`context` goes with `inputs`, one list per row", found=found)
        return [None if row is None else np.array(row, bool) for row in self.context]

    def arrays(self, dtypes: Mapping[str, str]) -> list[dict[str, np.ndarray]]:
        """Return the inputs of each row, [1, …], as the types that the bundle wants."""
        inputs = {
            name: [np.array(row, dtypes.get(name, "int64")) for row in rows]
            for name, rows in (self.inputs or {}).items()
        }
        return split_rows(inputs)


_ROWS = ("text", "texts", "file", "files", "inputs")
"""Keys that give the rows of a call."""


def split_rows(inputs: Mapping[str, Sequence[np.ndarray] | np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the inputs of each row, [1, …]; RequestError if inputs have different numbers of rows."""
    counts = {name: len(rows) for name, rows in inputs.items()}
    most = max(counts.values(), default=0)
    short = [name for name, count in counts.items() if count < most]
    if short:
        raise RequestError("the inputs have different numbers of rows", found=quoted(short))
    return [{name: rows[index][None] for name, rows in inputs.items()} for index in range(most)]


def _asked(text: str | TextOnSide | TextPair | Question) -> Asked:
    if isinstance(text, TextOnSide):
        return SidedText(text.text, text.side)
    if isinstance(text, Question):
        return [Pair(text.text, choice) for choice in text.choices]
    return text if isinstance(text, str) else Pair(text.text, text.pair)


def parse(kind: type[Document], data: bytes) -> Document:
    """Read a document strictly: no key twice, no NaN, nothing that has no UTF-8.

    Raises:
        FormatError, RequestError: it is not JSON, or not of the expected form.
    """
    try:
        return kind.model_validate(parse_json(data, "the request"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or None
        raise RequestError("the request is not of the expected form", where=where, found=first["msg"]) from error
