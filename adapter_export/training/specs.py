"""Rows and heads of a training run: `DataSpec` and `HeadSpec`, whose annotated fields are options of commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.kinds import at_least_1
from adapter_export.bases.task_facts import check_thresholds, thresholds_for
from adapter_export.errors import UsageError
from adapter_export.graph.ops import ACTIVATIONS, POOLING_HELP, POOLINGS
from adapter_export.graph.task_names import CAUSAL_LM, DEFAULT_TYPE, LEARNT, Learnt
from adapter_export.option import (
    DELIMITER,
    ENCODING,
    LABEL,
    NEGATIVE,
    PAIR,
    SKIP_INCOMPLETE,
    START,
    TEXT,
    TOKENIZER,
    VALIDATION,
    VALIDATION_DATA,
    Option,
    changed,
)
from adapter_export.words import argument, joined, quoted

if TYPE_CHECKING:
    from adapter_export.format.tabular.labelled import Columns
    from adapter_export.graph.adapter import Head
    from adapter_export.training.loop.task_files import TextTask

_HELD_OUT = 0.1
"""Default fraction of the rows that are held out."""

MOST_PER_ROW = 1000
"""Parameters per training row up to which memorising the rows is unlikely: a rule of thumb, for before training.
Afterwards the validation rows tell. On 145 questions, Houlsby 64 (4,600 per row) scored 3.3 points less than Pfeiffer
16 (600), and on 100 reviews 3.2 points less; it fit its training rows perfectly (two seeds and one)."""

LINEAR, FROZEN = "logistic regression on the base", "frozen base"
"""Baselines: a linear classifier of the base's pooled hidden states, and its vectors as they are."""

PREFIXES = ("prefix", "query_prefix", "document_prefix")
"""Fields of `DataSpec` and of `Task` with texts that precede rows."""

_SHAPE = ("pooling", "head_layers", "head_width", "head_activation", "head_dropout", "vector_width", "l2_normalise")
"""Fields of `HeadSpec` that shape a new head."""


@dataclass(frozen=True)
class DataSpec:
    """Files of labelled rows, their columns, and the limits of texts.

    Attributes:
        training: training file, or a folder of image or audio files for each label.
        unlabelled: a file with more texts, without labels, for a teacher to answer.
    """

    training: PathLike
    unlabelled: PathLike | None = None
    text: Annotated[str, TEXT] = "text"
    pair: Annotated[str | None, PAIR] = None
    negative: Annotated[Sequence[str], NEGATIVE] = ()
    label: Annotated[str | None, LABEL] = None
    start: Annotated[str | None, START] = None
    delimiter: Annotated[str | None, DELIMITER] = None
    encoding: Annotated[str | None, ENCODING] = None
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False
    validation: Annotated[float | None, VALIDATION] = None
    validation_data: Annotated[Address | None, VALIDATION_DATA] = None
    test_data: Annotated[Address | None, Option("Test file: scored once, after training.", "FILE")] = None
    tokenizer: Annotated[Address | None, TOKENIZER] = None
    max_tokens: Annotated[
        int | None,
        Option(
            "Truncate texts to N tokens; defaults to 128, the model's maximum or the teacher's limit, and for vectors "
            "to the model's own length.",
            least=1,
        ),
    ] = None
    truncation: Annotated[
        Literal["right", "left"] | None, "Side on which long texts are truncated; defaults to the tokenizer's."
    ] = None
    prefix: Annotated[str, "Text put before each row (`embedding` only)."] = ""
    query_prefix: Annotated[str, "Text put before the first text of each pair (`embedding` only)."] = ""
    document_prefix: Annotated[str, "Text put before positives and negatives (`embedding` only)."] = ""
    packing: Annotated[bool, "Concatenate texts into full rows; nothing is truncated (`causal_lm` only)."] = False
    end_token: Annotated[
        str | None, Option("Token that ends a text; defaults to the model's (`causal_lm` only).", "TOKEN")
    ] = None

    without_row_digests: Annotated[
        bool,
        "Keep no digests of rows in the training record; `evaluate` then recognises training files, but not rows.",
    ] = False

    def __post_init__(self) -> None:
        if self.validation is not None and self.validation_data is not None:
            both = argument("validation") + " and " + argument("validation_data")
            raise UsageError(both + " exclude each other", fix="pass only one")
        if self.prefix and self.has_sides:
            both = argument("prefix") + " and those of queries and documents"
            raise UsageError(both + " exclude each other", fix="pass only one")

    @property
    def has_sides(self) -> bool:
        """True if queries and documents have separate prefixes."""
        return bool(self.query_prefix or self.document_prefix)

    @property
    def columns(self) -> Columns:
        """Columns of the table."""
        from adapter_export.format.tabular.labelled import Columns
        from adapter_export.format.tabular.table_files import TableFormat

        form = TableFormat(self.delimiter, self.encoding)
        return Columns(self.text, self.pair, self.label, self.start, form, tuple(self.negative))

    @cached_property
    def files(self) -> tuple[Path, Path | float, Path | None]:
        """Training file, validation file or held-out fraction, and test file."""
        held_out = _HELD_OUT if self.validation is None else float(self.validation)
        validation = held_out if self.validation_data is None else locate(self.validation_data, "table").path
        test = None if self.test_data is None else locate(self.test_data, "table").path
        return locate(self.training, "table").path, validation, test


@dataclass(frozen=True)
class HeadSpec:
    """Task to learn, and the head that answers it."""

    task: Annotated[
        Learnt,
        "Task to learn: one label per text, several labels, one of several choices, a label per word, the span of a "
        "text that answers a question, numbers, vectors, the relevance of a text to a query, or to generate text.",
    ] = DEFAULT_TYPE
    thresholds: Annotated[
        tuple[float, ...],
        "Probability from which a label applies, one for all labels or one per label; 0.5 by default (`multi_label` "
        "only).",
    ] = ()
    head: Annotated[
        Literal["new", "base"],
        "Initial head: a new one with random weights, or the base model's head, whose labels must match the data.",
    ] = "new"
    pooling: Annotated[str, Option(POOLING_HELP, choices=tuple(POOLINGS))] = "mean"
    head_layers: Annotated[int, Option("Dense layers before the output layer.", least=0)] = 0
    head_width: Annotated[int | None, Option("Width of these layers; defaults to the model's.", least=1)] = None
    head_activation: Annotated[str, Option("Activation after each of these layers.", choices=ACTIVATIONS)] = "tanh"
    head_dropout: Annotated[float, "Dropout rate before each layer of the head."] = 0.0
    vector_width: Annotated[
        int | None, Option("Width of the vectors; defaults to the model's (`embedding` only).", least=1)
    ] = None
    l2_normalise: Annotated[bool, "Normalize vectors to length 1 (`embedding` only)."] = False
    widths: Annotated[
        tuple[int, ...],
        "Widths to which vectors can be truncated, each with its own loss term (Matryoshka, `embedding` only).",
    ] = ()

    def __post_init__(self) -> None:
        from adapter_export.graph.tasks import TASK_TYPES

        if self.task not in LEARNT:
            raise UsageError("unknown problem type", found=f"`{self.task}`", expected=quoted(LEARNT))
        if self.head not in ("new", "base"):
            raise UsageError("unknown initial head", found=f"`{self.head}`", expected="`new` or `base`")
        check_thresholds(self.thresholds)
        widths = [("widths", width) for width in self.widths]
        for option, width in (("head_width", self.head_width), ("vector_width", self.vector_width), *widths):
            if width is not None:
                at_least_1(option, width)
        chosen = changed(self)
        shaped = [name for name in _SHAPE if name in chosen and self.head == "base"]
        if shaped:
            raise UsageError(
                "the base head cannot be changed",
                found=joined(map(argument, shaped)),
                fix="remove it, or remove " + argument("head", "base"),
            )
        kind = TASK_TYPES[self.task]
        unfit = [] if self.head_layers else ["head_width", "head_activation"]
        unfit += [] if kind.is_vector else ["widths"]
        unfit += [] if kind.embeds and not kind.reads_vocabulary else ["vector_width"]
        unfit += [] if kind.embeds and not kind.has_fixed_head else ["l2_normalise"]
        unfit += ["head_layers", "head_dropout", "pooling"] if kind.has_fixed_head else []
        unfit += [] if kind.pools else ["pooling"]
        unfit += [] if kind.has_thresholds else ["thresholds"]
        for option in unfit if kind.has_head else ():
            if option in chosen:
                self._refuse(option)

    def _refuse(self, option: str) -> None:
        raise UsageError(
            argument(option) + " does not apply to this task and head",
            found=f"the task `{self.task}` and {self.head_layers} dense layers",
            fix="remove it, or change " + argument("task") + " or " + argument("head_layers"),
        )

    def check(self, data: DataSpec, **more: object) -> None:
        """Reject options of the rows, and `more` of other objects by name, that do not apply to the task.

        Raises:
            UsageError: an option does not apply.
        """
        from adapter_export.graph.tasks import TASK_TYPES

        kind, of_data = TASK_TYPES[self.task], changed(data)
        if not kind.has_head:
            chosen = {**changed(self), **{name: value for name, value in {**of_data, **more}.items() if value}}
            names = (*_SHAPE, "head", "thresholds", *PREFIXES, "truncation", *more)
            what = "the base predicts the next token, without a trained head or fusion"
        else:
            chosen, names = of_data, ("packing", "end_token")
            what = f"this option applies only to `{CAUSAL_LM}`"
        strange = [name for name in names if name in chosen]
        if strange:
            raise UsageError(what, found=joined(map(argument, strange)), fix="remove it")
        for option in PREFIXES:
            if option in of_data and not kind.embeds:
                self._refuse(option)
        if more.get("temperature") and not kind.embeds:
            self._refuse("temperature")
        data.columns.check(self.task)
        if data.has_sides and TASK_TYPES[data.columns.read_as(self.task)[0]].has_answers:
            what, fix = "only pairs have queries and documents", "pass the column of the documents: " + argument("pair")
            found = next(name for name in PREFIXES if name in of_data)
            raise UsageError(what, where=argument(found), found="a column of single texts", fix=fix)

    def make(self, rows: TextTask, width: int, data: DataSpec) -> Head:
        """Return a new head for the rows, with the record of its task; `width` is that of the base."""
        from adapter_export.graph.heads import HeadOptions, make_head
        from adapter_export.graph.tasks import TASK_TYPES, Task

        options = HeadOptions(
            pooling=self.pooling,
            dense=self.head_layers,
            activation=self.head_activation,
            dropout=self.head_dropout,
            projection=self.vector_width is not None,
            l2_normalise=self.l2_normalise,
        )
        kind = TASK_TYPES[TASK_TYPES[rows.problem].recorded or rows.problem]
        labels = rows.labels if kind.has_labels else ()
        thresholds = thresholds_for(labels, self.thresholds)
        paired = "text" if data.pair is None or kind.pairs == "never" or kind.embeds else "pair"
        widths = _below(self.vector_width or width, self.widths)
        prefixes = {name: getattr(data, name) for name in PREFIXES}
        facts = {"input": paired, "widths": widths, **prefixes, **rows.training.task_facts}
        task = Task(kind.name, labels, kind.trained_activation, thresholds, **facts)
        numbers = rows.numbers or self.vector_width or kind.vector_width or 1
        return make_head(task, width=width, numbers=numbers, hidden=self.head_width, options=options)


def _below(full: int, widths: Sequence[int]) -> tuple[int, ...]:
    """Return the widths below the full one, without duplicates, in descending order.

    Raises:
        UsageError: one is larger than the full width.
    """
    if max(widths, default=0) > full:
        where, expected = argument("widths"), f"at most {full}, the width of the vectors"
        raise UsageError("a width exceeds that of the vectors", where=where, found=max(widths), expected=expected)
    return tuple(sorted({width for width in widths if width < full}, reverse=True))
