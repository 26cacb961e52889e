"""Requests of the plain API, parsed strictly from JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from adapter_export.errors import RequestError
from adapter_export.graph.tasks.answers import Asked
from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.plugins.serve.schema_faults import form_error
from adapter_export.runtime.check_inputs import weights_of_each
from adapter_export.runtime.strength import strength_of_each
from adapter_export.safe_io.documents import parse_json
from adapter_export.tables import number_of
from adapter_export.text import MOST_CHARACTERS, Pair, SidedText, TextSide
from adapter_export.words import quoted

Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Words = Annotated[str, Field(max_length=MOST_CHARACTERS)]


def _decoded(text: object) -> bytes:
    """Decode base64; RequestError for foreign characters, which pydantic's `Base64Bytes` skips."""
    if not isinstance(text, str):
        raise RequestError("a file must be a base64 string", found=type(text).__name__)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RequestError("a file is not valid base64", found=error, fix="in a shell: `base64 -w0 FILE`") from error


FileBytes = Annotated[bytes, BeforeValidator(_decoded), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
"""Bytes of a file, sent as base64."""

Number = Annotated[float, Field(strict=True)]
"""A number, not a string or a boolean. The session checks its range."""

Weights = dict[str, Number]
Document = TypeVar("Document", bound=BaseModel)


class Strict(BaseModel):
    """A JSON object that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid")


class TextPair(Strict):
    """A pair of texts.

    Attributes:
        text: the first text.
        pair: the second text.
    """

    text: Words
    pair: Words


class TextOnSide(Strict):
    """A query or a document.

    Attributes:
        text: the text.
        side: query or document.
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
    """The body of `POST /answer` and `POST /run`: rows, and the adapters that compute them.

    Exactly one of `text`, `texts`, `file`, `files` and `inputs` contains the rows. One of `model`, `adapter` and
    `adapters` names the adapters; `base` is the base without adapters, with its own head if it has one. The name is
    optional in `/run`, and in `/answer` if only the base head has a task.

    Attributes:
        model: the name of a model or a route, for all rows.
        text: a text, as one row.
        pair: the second text of a pair; `text` is the first.
        choices: the choices of a question; `text` is the question.
        side: query or document, for adapters with a prefix for each.
        texts: one text, text with its side, pair, or question with its choices per row.
        file: an image or an audio file in base64, as one row.
        files: one such file per row.
        inputs: for each input of the base, one list of integers per row.
        adapter: the adapter of all rows; null means no name.
        adapters: one adapter per row; null is the base.
        strength: scale of the adapter's updates, for all rows or one per row. Default: 1.
        weights: member weights of a weighted fusion, for all rows or one object per row; null for other adapters.
        context: with `inputs` of a `span`, one list per row: 1 for each token that may be part of the answer, 0 for
            others; null for rows of other tasks.
        id: the id of the request; a route with shares chooses a model by it.
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
        """True if the call names a model or adapters."""
        return (self.model, self.adapter, self.adapters) != (None, None, None)

    def contents(self) -> list[Asked | bytes] | None:
        """Return the texts or files; `None` for `inputs`.

        Raises:
            RequestError: the call has no rows, or more than one kind of them.
        """
        present, one_of = [name for name in _ROWS if getattr(self, name) is not None], f"one of {quoted(_ROWS)}"
        if len(present) > 1:
            raise RequestError("the call has more than one kind of rows", found=quoted(present), expected=one_of)
        if not present:
            raise RequestError("the call has no rows", expected=one_of)
        beside = [name for name in ("pair", "choices", "side") if getattr(self, name) is not None]
        if beside and (self.text is None or len(beside) > 1):
            raise RequestError("`pair`, `choices` and `side` need a `text`", expected="one of them, with `text`")
        if self.text is not None:
            if self.choices is not None:
                return [[Pair(self.text, choice) for choice in self.choices]]
            if self.side is not None:
                return [SidedText(self.text, self.side)]
            return [self.text if self.pair is None else Pair(self.text, self.pair)]
        if self.inputs is not None:
            return None
        files = self.files if self.file is None else [self.file]
        rows: list[Asked | bytes] = list(map(_content_of, self.texts or ())) if files is None else [*files]
        if not rows:
            raise RequestError(f"there is no {present[0].rstrip('s')}", expected="at least one")
        return rows

    def names(self, rows: int) -> list[str | None]:
        """Return the adapter or the model of each row."""
        if self.model is not None and (self.adapter is not None or self.adapters is not None):
            raise RequestError("more than one of `model`, `adapter` and `adapters` is given", expected="one of them")
        default = self.adapter if self.model is None else self.model
        names = self.adapters if self.adapters is not None else [default] * rows
        if len(names) != rows or (self.adapters is not None and self.adapter is not None):
            raise RequestError("`adapters` needs one name per row, without `adapter`", found=len(names), expected=rows)
        return names

    def strengths(self, rows: int) -> Sequence[float]:
        """Return the strength of each row."""
        return strength_of_each(self.strength, rows)

    def weights_of(self, rows: int) -> Sequence[Mapping[str, float] | None]:
        """Return the member weights of each row."""
        return weights_of_each(self.weights, rows)

    def contexts(self, rows: int) -> Sequence[np.ndarray | None]:
        """Return for each row a mask of the tokens that may be part of the answer."""
        if self.context is None:
            return [None] * rows
        if self.inputs is None or len(self.context) != rows:
            actual = "texts" if self.inputs is None else f"{len(self.context)} for {number_of(rows, 'row')}"
            raise RequestError("`context` needs `inputs`, and one list per row", found=actual)
        return [None if row is None else np.array(row, bool) for row in self.context]

    def arrays(self, dtypes: Mapping[str, str]) -> list[dict[str, np.ndarray]]:
        """Return the inputs of each row, [1, …], with the types of the bundle's inputs."""
        inputs = {
            name: [np.array(row, dtypes.get(name, "int64")) for row in rows]
            for name, rows in (self.inputs or {}).items()
        }
        return split_rows(inputs)


_ROWS = ("text", "texts", "file", "files", "inputs")
"""Keys that contain the rows of a call."""


def split_rows(inputs: Mapping[str, Sequence[np.ndarray] | np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the inputs of each row, [1, …]; RequestError if inputs have different numbers of rows."""
    counts = {name: len(rows) for name, rows in inputs.items()}
    most = max(counts.values(), default=0)
    short = [name for name, count in counts.items() if count < most]
    if short:
        raise RequestError("the inputs have different numbers of rows", found=quoted(short))
    return [{name: rows[index][None] for name, rows in inputs.items()} for index in range(most)]


def _content_of(text: str | TextOnSide | TextPair | Question) -> Asked:
    if isinstance(text, TextOnSide):
        return SidedText(text.text, text.side)
    if isinstance(text, Question):
        return [Pair(text.text, choice) for choice in text.choices]
    return text if isinstance(text, str) else Pair(text.text, text.pair)


def parse(kind: type[Document], data: bytes) -> Document:
    """Parse a document strictly: no duplicate keys, NaN or invalid UTF-8.

    Raises:
        FormatError, RequestError: the data is not JSON, or does not match the model.
    """
    return parse_fields(kind, parse_json(data, "the request"))


def parse_fields(kind: type[Document], document: object) -> Document:
    """Parse the fields of a request; errors as of `parse`."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise form_error(error, document, kind) from error
