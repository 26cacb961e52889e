"""Vectors and relevance scores from the adapters of a bundle, for the interfaces of other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError, UsageError
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.graph.tasks.answers import Score, Vector
from adapter_export.runtime import Bundle, Reading, Session
from adapter_export.runtime.answerer import LongTexts
from adapter_export.text import Pair, SidedText, TextSide
from adapter_export.words import quoted

Floats = npt.NDArray[np.floating[Any]]


class _Answers:
    """Answers of one task type, by an adapter that can change between calls. Thread-safe.

    Args:
        bundle: the bundle or its folder.
        adapter: the adapter that answers. Default: the only one of the task type.
        long: treatment of texts that exceed the adapter's maximum length.
        session: the session to use, such as one shared with other objects. Default: a new one.

    Raises:
        UsageError: the bundle has no adapter of the task type, or several and none is named.
        RequestError: the adapter has another task or is not in the bundle, or the bundle has no tokenizer.
        FileError, FormatError: the bundle cannot be opened.
    """

    problem: ClassVar[ProblemType]

    def __init__(
        self,
        bundle: Bundle | Path | str,
        adapter: str | None = None,
        *,
        long: LongTexts = "cut",
        session: Session | None = None,
    ) -> None:
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._folder, self._long = opened.folder, long
        self._reader = opened.texts(session)
        self._adapter = self._only() if adapter is None else self._checked(adapter)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reopen the bundle in a copy or another process: sessions cannot be pickled."""
        return _reopened, (type(self), self._folder, self._adapter, self._options)

    @property
    def _options(self) -> Mapping[str, Any]:
        """The options of a copy."""
        return {"long": self._long}

    @property
    def adapter(self) -> str:
        """The adapter that answers; setting it needs no new session.

        Raises:
            RequestError: the adapter has another task, or is not in the bundle.
        """
        return self._adapter

    @adapter.setter
    def adapter(self, name: str) -> None:
        self._adapter = self._checked(name)

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens in a row."""
        return self._task(self._adapter).max_tokens or self._reader.tokenizer.max_tokens

    def _only(self) -> str:
        session = self._reader.session
        candidates = [name for name in session.adapters if (task := session.task(name)) and task.type == self.problem]
        if len(candidates) == 1:
            return candidates[0]
        raise UsageError(
            f"several adapters answer `{self.problem}`, and none is named"
            if candidates
            else f"no adapter answers `{self.problem}`",
            where=self._folder,
            found=quoted(candidates or session.adapters),
            fix="name one as `adapter`" if candidates else "build the bundle with an adapter of that task type",
        )

    def _task(self, adapter: str) -> Task:
        return self._reader.session.answering(adapter)

    def _checked(self, adapter: str) -> str:
        task = self._task(adapter)
        if task.type != self.problem:
            raise RequestError(
                "has another task",
                where=f"adapter `{adapter}`",
                found=f"`{task.type}`",
                expected=f"`{self.problem}`",
                fix="name another adapter, or call `Bundle.texts().answer`",
            )
        return adapter

    def _answer(self, rows: Sequence[Any], adapter: str) -> list[Any]:
        answers = self._reader.answer(rows, adapter, reading=Reading(long=self._long)) if rows else []
        return [answer.answer for answer in answers]


def _reopened(kind: type[_Answers], folder: Path, adapter: str, options: Mapping[str, Any]) -> _Answers:
    return kind(folder, adapter, **options)


class Embedder(_Answers):
    """Vectors of texts by an embedding adapter, with its pooling and normalization.

    Args:
        *args: the bundle, the adapter.
        width: truncate vectors to one of the widths that the adapter was trained at.
        **options: options of the base class.
    """

    problem = "embedding"

    def __init__(self, *args: Any, width: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._width = width

    @property
    def _options(self) -> Mapping[str, Any]:
        return {**super()._options, "width": self._width}

    def vectors(
        self,
        texts: Sequence[str],
        prompt: str | None = None,
        adapter: str | None = None,
        *,
        side: TextSide | None = None,
    ) -> Floats:
        """Return the vectors of texts [texts, width].

        Args:
            texts: any number.
            prompt: text before each; it replaces the prefix of the task, with which it must begin. Default: the prefix.
            adapter: the adapter of this call. Default: `self.adapter`.
            side: `query` or `document`, required if the task has a prefix for each.

        Raises:
            RequestError: a row is not a text, or is too long with `long="refuse"`; the side is missing, the prompt
                contradicts the prefix, or the adapter was not trained at the width.
        """
        name = self._adapter if adapter is None else self._checked(adapter)
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if isinstance(texts, str) or wrong is not None:
            actual = type(texts if wrong is None else wrong).__name__
            raise RequestError("a list of texts is required", found=f"`{actual}`", expected="a list of `str`")
        task = self._task(name)
        prefix = task.prefix_of(side)
        if prompt and not prompt.startswith(prefix):
            raise RequestError(
                "the prompt does not begin with the adapter's prefix",
                where=f"adapter `{name}`",
                found=f"`{prompt}`",
                expected=f"`{prefix}`, or a prompt that begins with it",
            )
        rest = (prompt or prefix)[len(prefix) :]  # the reader adds the prefix
        rows = [rest + text if side is None else SidedText(rest + text, side) for text in texts]
        answers: list[Vector] = self._answer(rows, name)
        vectors = [answer.vector for answer in answers]
        if self._width is not None:
            vectors = [task.truncated(vector, self._width) for vector in vectors]
        return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)

    def width(self) -> int:
        """Return the length of a vector."""
        side: TextSide | None = "query" if self._task(self._adapter).has_sides else None
        return int(self.vectors(["a"], side=side).shape[1])


class Scorer(_Answers):
    """Relevance of documents to queries by a ranking adapter, after the activation of its task."""

    problem = "ranking"

    def scores(self, pairs: Sequence[Sequence[str]], prompt: str | None = None, adapter: str | None = None) -> Floats:
        """Return the scores of pairs of a query and a document [pairs].

        Args:
            pairs: any number.
            prompt: text before each query.
            adapter: the adapter of this call. Default: `self.adapter`.

        Raises:
            RequestError: a row is not a pair of texts, or is too long with `long="refuse"`.
        """
        name = self._adapter if adapter is None else self._checked(adapter)
        for pair in pairs:
            if not isinstance(pair, tuple | list) or [isinstance(text, str) for text in pair] != [True, True]:
                actual = f"`{type(pair).__name__}`"
                raise RequestError("a list of pairs of texts is required", found=actual, expected="`(query, document)`")
        rows = [Pair((prompt or "") + query, document) for query, document in pairs]
        answers: list[Score] = self._answer(rows, name)
        return np.array([answer.score for answer in answers])
