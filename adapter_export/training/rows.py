"""Rows of files as inputs of a base, for training and for scoring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.adapters import load_adapter
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import unopened
from adapter_export.errors import AdapterError, BaseMismatchError, BaseModelError, UsageError, within
from adapter_export.extras import require
from adapter_export.graph.task_names import CAUSAL_LM
from adapter_export.option import changed
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of
from adapter_export.training.specs import PREFIXES, DataSpec, HeadSpec
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.format.tabular.labelled import Columns
    from adapter_export.format.tabular.language_tables import LanguageTables
    from adapter_export.format.tabular.training_tables import TrainingTables
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks import Task
    from adapter_export.text import Side, Tokenizer
    from adapter_export.training.loop.chat_passages import ChatEncoder
    from adapter_export.training.loop.data import LabelledExamples, RowSource, TextSource
    from adapter_export.training.loop.media_examples import MediaSource
    from adapter_export.training.loop.task_files import TextTask

MAX_TOKENS = 128
"""Default truncation length of texts, if the model accepts as many tokens."""


def open_trainable(model: Base | Address, site_map: PathLike | None = None, *, trust_pickle: bool = False) -> Base:
    """Return a base that torch can train; it is opened when its model is needed."""
    base = unopened(model, OpenOptions(site_map, trust_pickle))
    base.check_trainable()
    return base


def adapter_with_task(base: Base, place: Adapter | Address) -> Adapter:
    """Return an adapter whose head has a task, from its folder if necessary; the base is not opened.

    Raises:
        AdapterError: it has no head, or one without a task.
    """
    adapter = load_adapter(place, near=base.path) if isinstance(place, str | Path) else place
    if adapter.task is None:
        raise AdapterError(
            "the adapter's head has no task",
            where=f"adapter `{adapter.name}`",
            found="no head" if adapter.head is None else "a head without a task",
            fix="use an adapter whose head has a task",
        )
    return adapter


def tables_before_opening(
    base: Base, data: DataSpec, head: HeadSpec, task: Task | None = None, *, splits: bool = True
) -> TrainingTables | LanguageTables | None:
    """Read the tables of an unopened base, so that their errors are reported before it is opened.

    Args:
        base: the base.
        data: the files.
        head: the task to learn.
        task: task of the adapter that answers the rows; `None` for a new one.
        splits: whether rows are held out, or files given, for validation and test.

    Returns:
        The tables; `None` for an open base, or if the modality is unknown until it is opened.

    Raises:
        UsageError: columns that the task does not have.
        FileError, DataError: a file cannot be used.
    """
    generates = _generates(head, task)
    reads = None if base.is_open else "text" if generates else base.reads
    if reads is None:
        return None
    return _tables(data, head, task, None if reads == "text" else reads, splits=splits)


def _tables(
    data: DataSpec, head: HeadSpec, task: Task | None, medium: str | None, *, splits: bool
) -> TrainingTables | LanguageTables:
    """Read the tables for a base whose modality is known."""
    from adapter_export.format.tabular.language_tables import LanguageFiles, read_language_tables
    from adapter_export.format.tabular.training_tables import TaskFiles, read_tables
    from adapter_export.graph.tasks import TASK_TYPES

    if _generates(head, task):
        return read_language_tables(LanguageFiles(*data.files, data.columns, data.skip_incomplete))
    if medium is not None:
        _check_files_only(data, medium)
    paths: tuple[Path, Path | float | None, Path | None] = data.files if splits else (data.files[0], None, None)
    columns = data.columns if medium is None or data.text != "text" else replace(data.columns, text=medium)
    problem, labels = (head.task, ()) if task is None else (task.type, task.labels)
    assert problem != CAUSAL_LM  # language tables are read above
    remembers = not data.without_row_digests
    problem, columns = columns.read_as(problem)
    own = data if task is None else task
    prefixes = (own.query_prefix, own.document_prefix) if own.has_sides else (own.prefix, own.prefix)
    if own.has_sides and TASK_TYPES[problem].has_answers:
        what, fix = "the adapter embeds queries and documents", "pass the column of the documents: " + argument("pair")
        raise UsageError(what, found="a column of single texts", fix=fix)
    return read_tables(TaskFiles(*paths, columns, problem, data.skip_incomplete, prefixes, labels, remembers), medium)


def _generates(head: HeadSpec, task: Task | None) -> bool:
    """Return whether the base is trained to generate, without a head."""
    from adapter_export.graph.tasks import TASK_TYPES

    return task is None and not TASK_TYPES[head.task].has_head


def check_adapter_of(base: Base, adapter: Adapter) -> None:
    """Raise `BaseMismatchError` for an adapter of another base."""
    if adapter.base != base.fingerprint:
        raise BaseMismatchError(adapter.name, found=adapter.base, expected=base.fingerprint, can_be_allowed=False)


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of files as inputs of a base, for a task to learn or for an adapter's task.

    Attributes:
        base: the base.
        data: the files and the limits of texts.
        head: the task to learn.
        task: task of the adapter that answers the rows; `None` for a new one.
        source: encodes texts as tokens, or files as the values of an image or audio.
        columns: columns of the table.
        tables: the rows of the files, if they were read before the base was opened.
    """

    base: Base
    data: DataSpec
    head: HeadSpec
    task: Task | None
    source: RowSource
    columns: Columns
    tables: TrainingTables | LanguageTables | None = None

    @classmethod
    def of(
        cls,
        base: Base,
        data: DataSpec,
        head: HeadSpec,
        task: Task | None = None,
        tables: TrainingTables | LanguageTables | None = None,
    ) -> RowReader:
        """Return the reader for the rows of a base, or of an adapter with that task.

        Raises:
            BaseModelError: the base was captured with its cache, or does not record its preprocessing.
            UsageError: options for texts with a base that reads images or audio, too many tokens, or columns that the
                task does not have.
            AdapterError: the adapter was trained with another tokenizer or another processor.
        """
        generates = _generates(head, task)
        if not generates:
            _check_no_cache(base)
        problem = head.task if task is None else task.type
        data.columns.check(problem)
        _, columns = data.columns.read_as(problem)
        limit = data.max_tokens
        if limit is None:
            limit = _own_length(base, head) if task is None else task.max_tokens
        own = base.base_head.head if head.head == "base" and base.base_head is not None else None
        known = own.task if task is None and own is not None else task
        prompt = known if known is not None and known.template else None
        if base.media is None or generates:
            reader = cls(base, data, head, task, _text_source(base, data.tokenizer, limit, prompt), columns, tables)
        else:
            reader = cls(base, data, head, task, *_media_source(base, replace(data, max_tokens=limit), columns), tables)
        if task is not None:
            reader._check_task(task)
        return reader

    @property
    def generates(self) -> bool:
        """True if the base is trained to generate, without a head."""
        return _generates(self.head, self.task)

    def read(self, seed: int, reporter: Reporter = SILENT) -> TextTask:
        """Read the files, and split them with the seed; `reporter` receives the progress of conversations.

        Raises:
            DataError: a file cannot be used.
            UsageError: the tokenizer has tokens that the model does not have, or unlabelled texts do not fit the task.
        """
        from adapter_export.format.tabular.language_tables import LanguageTables
        from adapter_export.training.loop.language import Endings, read_language
        from adapter_export.training.loop.task_files import read_task

        tables = self._read_tables(splits=True)
        if isinstance(tables, LanguageTables):
            if self.data.end_token is not None and tables.has_conversations:
                what = "the chat template ends the answers of conversations"
                raise UsageError(what, where=argument("end_token"), found=f"`{self.data.end_token}`", fix="remove it")
            ends = self.base.torch.generation.end
            endings = Endings(self._end_token(), self.data.packing, self._chat_encoder, ends)
            rows = read_language(tables, self._tokenizer, self.base.inputs, endings, seed, reporter)
        else:
            rows = read_task(tables, self.source, side=self._side, seed=seed)
            if self.data.unlabelled is not None:
                rows = self._with_unlabelled(rows, locate(self.data.unlabelled, "table").path)
        self._check_ids(rows)
        return replace(rows, notes=(*rows.notes, *self._longer(rows)))

    def _longer(self, rows: TextTask) -> Iterator[str]:
        """Yield a note if rows are truncated although the base takes longer ones."""
        most = self.base.max_tokens
        if self.generates or self.source.medium is not None or not any(part.cut for part in rows.parts.values()):
            return
        if most is None or self._tokenizer.max_tokens < most:
            limit = "" if most is None else f", up to the model's {most:,} tokens"
            yield "truncated texts lose their rest; read more of them with " + argument("max_tokens") + limit

    def read_all(self) -> tuple[LabelledExamples, tuple[str, ...]]:
        """Read the training file without splitting it; returns its rows, and notes on it.

        Raises:
            DataError: the file cannot be used, or has labels unknown to the adapter.
        """
        from adapter_export.format.tabular.training_tables import TrainingTables
        from adapter_export.training.loop.task_files import read_examples

        tables = self._read_tables(splits=False)
        assert isinstance(tables, TrainingTables)  # an adapter's task always has labelled rows
        rows = read_examples(tables, self.source, side=self._side)
        return rows, tuple(tables.tables["training"].remarks("labelled", rows.word))

    def check_padding(self, rows: TextTask, *, pads: bool) -> Iterator[str]:
        """Reject texts of a length that the base does not accept; yield a note if rows cannot be padded."""
        fit = self.base.fit if self.source.medium is None else None
        if fit is not None:
            for name, part in rows.parts.items():
                with within(f"the {name} data"):
                    for tokens in sorted(part.sizes):
                        fit(tokens, pads=pads)
        if not pads and len(rows.training.sizes | rows.validation.sizes) > 1:
            yield "padding changes results: only rows of equal length share a batch"

    def record(self) -> dict[str, Any]:
        """Return the preprocessing of rows and answers, for the training record."""
        of_texts = ("truncation", *PREFIXES, "packing", "end_token")
        read = {name: value for name, value in changed(self.data).items() if name in of_texts}
        columns = {name: value for name, value in self.columns.names.items() if value is not None}
        return {**changed(self.head), **read, **columns, **self.source.record()}

    @property
    def _tokenizer(self) -> Tokenizer:
        from adapter_export.training.loop.data import TextSource

        assert isinstance(self.source, TextSource)  # a base without a processor reads texts
        return self.source.tokenizer

    def _read_tables(self, *, splits: bool) -> TrainingTables | LanguageTables:
        if self.tables is not None:
            return self.tables
        return _tables(self.data, self.head, self.task, self.source.medium, splits=splits)

    @property
    def _side(self) -> Side:
        """Side on which texts are truncated: from the task, the options, or the tokenizer."""
        if self.task is not None:
            return self.task.truncation
        return self.data.truncation or ("right" if self.source.medium is not None else self._tokenizer.side)

    def _with_unlabelled(self, rows: TextTask, path: Path) -> TextTask:
        """Return the training rows followed by the unlabelled texts, without duplicates."""
        import numpy as np

        from adapter_export.format.tabular.labelled import read_texts
        from adapter_export.graph.tasks import TASK_TYPES
        from adapter_export.text import Pair
        from adapter_export.training.loop.data import TextExamples
        from adapter_export.training.objectives.objective import IGNORED

        learnt = rows.training
        if not TASK_TYPES[rows.problem].one_label or not isinstance(learnt, TextExamples):
            what = "unlabelled texts require a task with one label per text"
            raise UsageError(what, where=argument("unlabelled"), found=f"the task `{rows.problem}`", fix="remove it")
        held_out = {text for part in (rows.validation, rows.test) if part is not None for text in part.texts}
        unlabelled, notes = read_texts(path, self.columns)
        read = [text if other is None else Pair(text, other) for text, other in unlabelled]
        more = [text for text in dict.fromkeys(read) if text not in held_out and text not in set(learnt.texts)]
        answers = np.concatenate([learnt.answers, np.full(len(more), IGNORED, np.int64)])
        texts, source = [*learnt.texts, *more], learnt.tokenizer
        every = TextExamples.of(texts, answers, source, learnt.names, rows.problem, learnt.side)
        sources = {**rows.sources, "unlabelled": {"file": path.name, "rows": len(more)}}
        return replace(rows, training=every, sources=sources, notes=(*rows.notes, *notes))

    def _check_ids(self, rows: TextTask) -> None:
        """Reject a tokenizer with tokens that the model does not have."""
        for record in self.base.inputs:
            highest = max(part.highest.get(record.name, 0) for part in rows.parts.values())
            if record.limit is not None and highest >= record.limit:
                raise UsageError(
                    "the tokenizer has tokens that the model does not have",
                    where=f"`{record.name}`",
                    found=f"the id {highest}",
                    expected=f"0 to {record.limit - 1}",
                    fix="use the model's tokenizer: " + argument("tokenizer"),
                )

    def _check_task(self, task: Task) -> None:
        """Reject columns, a tokenizer or a processor that differ from the adapter's training."""
        paired = task.input == "pair" or task.kind.pairs == "required"
        if task.input in ("text", "pair") and paired != (self.columns.pair is not None):
            pair = argument("pair")
            fix = "pass the column of the second texts: " + pair if paired else "remove " + pair
            raise UsageError(f"the teacher answers {'pairs of texts' if paired else 'single texts'}", fix=fix)
        known = self.source.digest
        wanted = task.tokenizer if self.source.medium is None else task.processor
        if wanted not in (None, known):
            raise AdapterError(
                "the teacher was trained with another tokenizer, or another processor",
                found=f"digest {str(known)[:12]}…",
                expected=f"{wanted[:12]}…",
                fix="use the one it was trained with: " + argument("tokenizer"),
            )

    def _chat_encoder(self) -> ChatEncoder:
        """Return the encoder of conversations; RequestError if the base has no chat template."""
        from adapter_export.training.loop.chat_passages import ChatEncoder

        return ChatEncoder(self.base.chat, self._tokenizer, self.base.path)

    def _end_token(self) -> int | None:
        """Return the id of the token that ends a text; `None` if neither the options nor the base specify one."""
        token = self.data.end_token
        if token is None:
            ends = self.base.torch.generation.end
            return ends[0] if ends else None
        found = self._tokenizer.id_of(token)
        if found is None:
            where = argument("end_token")
            raise UsageError("the tokenizer lacks this token", where=where, found=f"`{token}`", expected="e.g. `</s>`")
        return found


def _own_length(base: Base, head: HeadSpec) -> int | None:
    """Return the length that a model of vectors was made for, if the task is vectors; `None` for the default."""
    from adapter_export.graph.tasks import TASK_TYPES

    known = base.base_head.head if base.base_head is not None else None
    task = None if known is None else known.task
    if task is None or not task.kind.embeds or not TASK_TYPES[head.task].embeds:
        return None
    return task.max_tokens


def _check_no_cache(base: Base) -> None:
    """Reject a base with a cache: rows of a table have no past, and a head reads the hidden state."""
    caches = [record.name for record in base.inputs if record.role == "cache"]
    if caches:
        raise BaseModelError(
            "was captured with its cache, for generation, but rows of a table have no past",
            where=base.path,
            found=f"{number_of(len(caches), 'input')} such as `{caches[0]}`",
            expected="the bare model",
            fix="train it to generate with "
            + argument("task", CAUSAL_LM)
            + "; or, for a head, capture the bare model: "
            + argument("bare", True),
        )


def _text_source(base: Base, given: Address | None, max_tokens: int | None, prompt: Task | None) -> TextSource:
    from adapter_export.training.loop.data import TextSource

    names = tuple(record.name for record in base.inputs)
    return TextSource(tokenizer_of(base, given, max_tokens), names, prompt=prompt)


def tokenizer_of(base: Base, tokenizer: Address | None, max_tokens: int | None) -> Tokenizer:
    """Return the given tokenizer or the base's, with the default limit if none is given.

    Raises:
        UsageError: there is no tokenizer, or the base does not accept as many tokens.
    """
    from adapter_export.text import Tokenizer, read_tokenizer

    known = base.max_tokens
    limit = max_tokens or (MAX_TOKENS if known is None else min(MAX_TOKENS, known))
    if known is not None and limit > known:
        what = argument("max_tokens") + " exceeds the model's maximum length"
        raise UsageError(what, found=limit, expected=f"at most {known}")
    if tokenizer is not None:
        return Tokenizer.from_json(read_tokenizer(locate(tokenizer, "tokenizer").path), limit, base.fit)
    if base.tokenizer is None:
        fix: str = "pass its `tokenizer.json`, or the folder with it: " + argument("tokenizer")
        if base.inputs[0].dtype == "float32":
            fix = "capture it again from a folder with a `preprocessor_config.json`"
            raise UsageError("the model does not record its image or audio preprocessing", where=base.path, fix=fix)
        raise UsageError("the model has no tokenizer", where=base.path, fix=fix)
    return Tokenizer.from_json(base.tokenizer, limit, base.fit)


def _check_files_only(data: DataSpec, medium: str) -> None:
    """Reject options for texts with a model that reads images or audio."""
    given = changed(data)
    of_texts = [
        name for name in ("pair", "negative", "tokenizer", "max_tokens", "truncation", *PREFIXES) if name in given
    ]
    if of_texts:
        found = joined(map(argument, of_texts))
        raise UsageError(f"applies to texts only, and the model reads `{medium}`", found=found, fix="remove it")


def _media_source(base: Base, data: DataSpec, columns: Columns) -> tuple[MediaSource, Columns]:
    """Return the source of images or audio, and the columns with the paths of their files."""
    from adapter_export.training.loop.media_examples import MediaSource

    assert base.media is not None
    medium = base.media.record.medium
    _check_files_only(data, medium)
    require("transformers", "hf", "training on images or audio")
    columns = replace(columns, text=medium if data.text == "text" else data.text)
    return MediaSource.of(base.media, base.inputs), columns
