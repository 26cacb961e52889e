"""Tokenization of texts by the task of their adapter, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np

from adapter_export.errors import RequestError, within
from adapter_export.format.manifest import Manifest, token_axis
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import Asked, ReadText, is_choices
from adapter_export.runtime.answerer import LongTexts, Reader
from adapter_export.runtime.batches import TOKEN_BUDGET
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.session import Session
from adapter_export.tables import number_of
from adapter_export.text import EncodedText, Pair, Side, SidedText, Text, Tokenizer, Tokens, check_inputs
from adapter_export.words import argument


class TextReader(Reader):
    """Tokenizes texts for the adapters of a bundle, and answers them; made by `Bundle.texts`."""

    session: Session
    word = "text"
    window, token_budget = 2048, TOKEN_BUDGET
    """Number of texts sorted by length together (more save little padding), and maximum tokens of a call."""

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest, session: Session) -> None:
        self.tokenizer, self.session = tokenizer, session
        self._base_head = manifest.head
        self._digest = None if manifest.text is None else manifest.text.digest
        self._inputs = [record.name for record in manifest.inputs]
        tokens = token_axis(manifest.inputs)
        self._per_token = {
            record.name for record in manifest.outputs if tokens is not None and tokens in record.axes[1:2]
        }

    def read(
        self,
        texts: Sequence[Asked],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        long: LongTexts = "cut",
        stride: int | None = None,
        places: Sequence[str] = (),
    ) -> list[ReadText]:
        """Tokenize texts by the task of their adapter.

        Args:
            texts: for tasks of one text: texts, with a side if the task has prefixes, or lists of words; for tasks of
                pairs: pairs, or a list of pairs per question of a multiple-choice task.
            adapter: the adapter of all texts. Default: the base head, or the base.
            adapters: one adapter per text instead.
            long: truncate (`cut`) or refuse long texts, or split them into `windows`.
            stride: tokens shared by neighbouring windows. Default: a quarter of a window.
            places: names of the texts in messages. Default: `text 0` and so on.

        Raises:
            RequestError: a text is not a string, does not fit its task, lacks its side, or is too long with
                `long="refuse"`; an adapter is not loaded, or was trained with another tokenizer.
        """
        names = self._names(texts, adapter, adapters)
        places = places or [f"text {at}" for at in range(len(texts))]
        names = [self._base_head if name is None else name for name in names]
        tasks = {name: self._task(name) for name in dict.fromkeys(names)}
        pieces_of_texts = [
            prepared(text, tasks[name], name, place) for text, name, place in zip(texts, names, places, strict=True)
        ]
        check_inputs(self._inputs)
        named = [
            (piece, tasks[name], place)
            for name, pieces, place in zip(names, pieces_of_texts, places, strict=True)
            for piece in pieces
        ]
        encoded_rows = iter(
            encoded(self.tokenizer, [(piece, task) for piece, task, _ in named], [place for *_, place in named])
        )
        read: list[ReadText] = []
        for text, name, pieces, place in zip(texts, names, pieces_of_texts, places, strict=True):
            rows = tuple(next(encoded_rows) for _ in pieces)
            cut = [row for row in rows if row.cut]
            if cut and long == "refuse":
                limit = max(len(row.encoding.ids) for row in cut)
                raise RequestError(
                    "has more tokens than are taken",
                    where=place if name is None else f"{place}, adapter `{name}`",
                    found=number_of(max(row.total for row in cut), "token"),
                    expected=f"at most {limit:,}, special tokens included",
                    fix="shorten it, or pass " + argument("long", "windows", option="long_texts") + " or `cut`",
                )
            if cut and long == "windows":
                rows = self._windows(text, pieces, tasks[name], stride, place)
            plain, side = text if isinstance(text, SidedText) else (text, None)
            read.append(ReadText(plain, rows, name, tasks[name], side))
        return read

    def arrays(self, rows: Iterable[EncodedText], adapter: str | None = None) -> Tokens:
        """Return the inputs of a call with these rows, int64 [batch, tokens].

        Rows are padded to the longest, or to an allowed length of the base, if that leaves the adapter's results
        unchanged.

        Raises:
            RequestError: an input cannot be computed from text, or the rows differ in length and may not be padded.
        """
        pads = self.session.may_pad(adapter)
        return self.tokenizer.arrays([row.encoding for row in rows], self._inputs, pads=pads)

    def token_text(self, token: int) -> str:
        """Return a vocabulary entry as the tokenizer writes it; the id of one that it lacks."""
        return self.tokenizer.name_of(token) or str(token)

    def without_padding(self, outputs: Mapping[str, np.ndarray], row: EncodedText) -> Arrays:
        """Return the outputs of a row without padding."""
        tokens = len(row.encoding.ids)
        return {name: array[:tokens] if name in self._per_token else array for name, array in outputs.items()}

    def _task(self, name: str | None) -> Task | None:
        """Return the task of an adapter; RequestError if it was trained with another tokenizer."""
        if name is None:
            return None
        task = self.session.task(name)
        if task is not None and task.tokenizer not in (None, self._digest):
            raise RequestError(
                "was trained with another tokenizer, whose ids differ from the bundle's",
                where=f"adapter `{name}`",
                found=f"tokenizer {str(self._digest)[:12]}…",
                expected=f"{str(task.tokenizer)[:12]}…",
                fix="build the bundle with the adapter's tokenizer, or pass arrays",
            )
        return task

    def _windows(
        self, text: Asked, pieces: Sequence[Text], task: Task | None, stride: int | None, place: str
    ) -> tuple[EncodedText, ...]:
        if is_choices(text):
            raise RequestError(
                "a question with choices is not split into windows",
                where=place,
                fix="pass " + argument("long", "cut", option="long_texts") + ", or shorten the texts",
            )
        limit = None if task is None else task.max_tokens
        return tuple(self.tokenizer.windows(pieces[0], limit, stride, place=place))


def encoded(
    tokenizer: Tokenizer, pieces: Sequence[tuple[Text, Task | None]], places: Sequence[str] = ()
) -> list[EncodedText]:
    """Encode prepared texts, truncated as their tasks require; `places` are their names in messages.

    Raises:
        RequestError: as `Tokenizer.rows`; or a text with a template is longer than its limit.
    """
    limits = [None if task is None else task.max_tokens for _, task in pieces]
    sides: list[Side] = [tokenizer.side if task is None else task.truncation for _, task in pieces]
    rows = tokenizer.rows([text for text, _ in pieces], limits=limits, sides=sides, places=places)
    for at, (row, (_, task)) in enumerate(zip(rows, pieces, strict=True)):
        if row.cut and task is not None and task.template:
            raise RequestError(
                "has more tokens than are taken, and a prompt is not truncated",
                where=places[at] if places else None,
                found=number_of(row.total, "token"),
                expected=f"at most {len(row.encoding.ids):,}, including the template",
                fix="shorten it",
            )
    return rows


def prepared(text: Asked, task: Task | None, adapter: str | None, place: str) -> Sequence[Text]:
    """Return the texts to tokenize: the text with its prefix, or each of its choices.

    Raises:
        RequestError: a pair was passed to a task of one text or vice versa, or the side is missing.
    """
    text, side = text if isinstance(text, SidedText) else (text, None)
    if task is None:
        if side is not None:
            raise RequestError("only embedding adapters have sides", where=place, found=f"`{side}`")
        return _pairs(text) if is_choices(text) else [cast(Text, text)]
    choices = is_choices(text)
    if (isinstance(text, Pair) or choices) != (task.input == "pair") or (choices and not task.kind.has_choices):
        wanted = {"text": "one text", "pair": "a pair of texts"}[task.input]
        if task.kind.has_choices:
            wanted = "a pair of texts, or a list of such pairs"
        raise RequestError(
            "is of another kind than the task takes",
            where=place,
            found="a list of pairs" if choices else "a pair of texts" if isinstance(text, Pair) else "one text",
            expected=f"{wanted}, as adapter `{adapter}` (`{task.type}`) takes",
        )
    if choices:
        return _pairs(text)
    with within(f"{place}, adapter `{adapter}`"):
        prefix = task.prefix_of(side)
        if prefix and not isinstance(text, str):
            raise RequestError("an adapter with a prefix needs texts", found="words", expected="a text")
    if task.template and isinstance(text, Pair):
        return [task.filled(*_strings(text, place))]
    return [prefix + text if isinstance(text, str) else cast(Text, text)]


def _strings(pair: Pair, place: str) -> tuple[str, str]:
    first, second = pair
    if isinstance(first, str) and isinstance(second, str):
        return first, second
    raise RequestError("a prompt needs texts instead of words", where=place, expected="two strings")


def _pairs(text: Asked) -> list[Pair]:
    return [pair for pair in text if isinstance(pair, Pair)]
