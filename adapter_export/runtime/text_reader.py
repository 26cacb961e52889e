"""Texts become inputs, as the record of each one's adapter says, and are answered with a session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np

from adapter_export.errors import RequestError, argument, within
from adapter_export.format.manifest import Manifest, token_axis
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import Asked, ReadText, is_choices
from adapter_export.runtime.answerer import LongTexts, Reader
from adapter_export.runtime.batches import TOKEN_BUDGET
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.session import Session
from adapter_export.text import EncodedText, Pair, Side, SidedText, Text, Tokenizer, Tokens, check_inputs


class TextReader(Reader):
    """Reads texts for the adapters of a bundle, by the record of each, and answers them with a session.

    Made by `Bundle.texts`.
    """

    session: Session
    word = "text"
    window, token_budget = 2048, TOKEN_BUDGET
    """Texts that are sorted by length at a time (more hardly save padding), and maximum tokens of a call."""

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
        """Make tokens of texts, as the task of each one's adapter says.

        Args:
            texts: for a task of one text: texts, with their sides where the task has prefixes of sides, or the words
                of each; for a task of pairs: pairs, or for each question of a multiple-choice task a list of pairs.
            adapter: the adapter of all texts. Default: the base head, or the base.
            adapters: instead, one for each text.
            long: a text of more tokens than its adapter takes is cut, refused, or read in windows.
            stride: how many tokens neighbouring windows share; a quarter of a window if not given.
            places: what messages call each text; `text 0` and so on if not given.

        Raises:
            RequestError: a text is none, is of another kind than its task wants, lacks its side, or is too long and
                `long` refuses it;
                an adapter is not loaded, or was trained with another tokenizer.
        """
        names = self._names(texts, adapter, adapters)
        places = places or [f"text {at}" for at in range(len(texts))]
        names = [self._base_head if name is None else name for name in names]
        tasks = {name: self._task(name) for name in dict.fromkeys(names)}
        asked = [
            prepared(text, tasks[name], name, place) for text, name, place in zip(texts, names, places, strict=True)
        ]
        check_inputs(self._inputs)
        named = [
            (piece, tasks[name], place)
            for name, pieces, place in zip(names, asked, places, strict=True)
            for piece in pieces
        ]
        found_rows = iter(
            encoded(self.tokenizer, [(piece, task) for piece, task, _ in named], [place for *_, place in named])
        )
        read: list[ReadText] = []
        for text, name, pieces, place in zip(texts, names, asked, places, strict=True):
            own = tuple(next(found_rows) for _ in pieces)
            cut = [row for row in own if row.cut]
            if cut and long == "refuse":
                limit = max(len(row.encoding.ids) for row in cut)
                raise RequestError(
                    "has more tokens than are taken",
                    where=place if name is None else f"{place}, adapter `{name}`",
                    found=f"{max(row.found for row in cut):,} tokens",
                    expected=f"at most {limit:,}, special tokens included",
                    fix=f"shorten it, or give {argument('long', 'windows', option='long_texts')} or `cut`",
                )
            if cut and long == "windows":
                own = self._windows(text, pieces, tasks[name], stride, place)
            plain = text.text if isinstance(text, SidedText) else text
            read.append(ReadText(plain, own, name, tasks[name]))
        return read

    def arrays(self, rows: Iterable[EncodedText], adapter: str | None = None) -> Tokens:
        """Return the inputs of a call with these rows, int64 [batch, tokens].

        They are padded to the longest, or to a length that the base takes, where that does not change the results of
        the adapter.

        Raises:
            RequestError: an input cannot be computed from text, or the rows differ in length and may not be padded.
        """
        pads = self.session.may_pad(adapter)
        return self.tokenizer.arrays([row.encoding for row in rows], self._inputs, pads=pads)

    def without_padding(self, outputs: Mapping[str, np.ndarray], row: EncodedText) -> Arrays:
        """Return the outputs of a row, without the tokens that it was padded with."""
        tokens = len(row.encoding.ids)
        return {name: array[:tokens] if name in self._per_token else array for name, array in outputs.items()}

    def _task(self, name: str | None) -> Task | None:
        """Return what an adapter's texts are made tokens by; RequestError if that is another tokenizer."""
        if name is None:
            return None
        task = self.session.task(name)
        if task is not None and task.tokenizer not in (None, self._digest):
            raise RequestError(
                "was trained with another tokenizer than the bundle's, which would give it other ids",
                where=f"adapter `{name}`",
                found=f"tokenizer {str(self._digest)[:12]}…",
                expected=f"{str(task.tokenizer)[:12]}…",
                fix="build the bundle with the tokenizer that the adapter was trained with, or give arrays",
            )
        return task

    def _windows(
        self, text: Asked, pieces: Sequence[Text], task: Task | None, stride: int | None, place: str
    ) -> tuple[EncodedText, ...]:
        if is_choices(text):
            raise RequestError(
                "a question with choices is not read in windows",
                where=place,
                fix=f"give {argument('long', 'cut', option='long_texts')}, or shorten the texts",
            )
        limit = None if task is None else task.max_tokens
        return tuple(self.tokenizer.windows(pieces[0], limit, stride, place=place))


def encoded(
    tokenizer: Tokenizer, pieces: Sequence[tuple[Text, Task | None]], places: Sequence[str] = ()
) -> list[EncodedText]:
    """Encode texts that are prepared, cut by the limit and on the side of their tasks; `places` are for messages.

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
                found=f"{row.found:,} tokens",
                expected=f"at most {len(row.encoding.ids):,}, those of the template included",
                fix="shorten it",
            )
    return rows


def prepared(text: Asked, task: Task | None, adapter: str | None, place: str) -> Sequence[Text]:
    """Return what is made tokens of a text: it with its prefix, or each of its choices.

    Raises:
        RequestError: it is a pair and the task takes one text, or the other way round; or its side is not known.
    """
    text, side = text if isinstance(text, SidedText) else (text, None)
    if task is None:
        if side is not None:
            raise RequestError("only adapters that give vectors take sides", where=place, found=f"`{side}`")
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
            raise RequestError("the adapter puts a prefix before each text", found="words", expected="a text")
    if task.template and isinstance(text, Pair):
        return [task.filled(*_strings(text, place))]
    return [prefix + text if isinstance(text, str) else cast(Text, text)]


def _strings(pair: Pair, place: str) -> tuple[str, str]:
    first, second = pair
    if isinstance(first, str) and isinstance(second, str):
        return first, second
    raise RequestError("is a pair of words, and a prompt is made of texts", where=place, expected="two strings")


def _pairs(text: Asked) -> list[Pair]:
    return [one for one in text if isinstance(one, Pair)]
