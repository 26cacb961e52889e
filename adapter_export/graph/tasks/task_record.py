"""The record of a task: the contract between a text and an adapter's answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from adapter_export.errors import AdapterError, RequestError
from adapter_export.graph.graph import DATA_AXES
from adapter_export.graph.ops import Pooling, Shape
from adapter_export.graph.task_names import PROBLEM_TYPES, ProblemType
from adapter_export.graph.tasks.answers import Answer, sigmoid, softmax
from adapter_export.graph.tasks.task_type import Activation, HeadOutput, Mask, TaskType
from adapter_export.graph.tasks.types import HEAD_TYPES, TASK_TYPES
from adapter_export.interval import Interval
from adapter_export.modalities import FILE_MODALITIES, INPUTS
from adapter_export.tables import number_of
from adapter_export.text import TextSide
from adapter_export.words import argument, quoted

if TYPE_CHECKING:
    Input = str
else:  # records and schemas take the choices from this hint
    Input = Literal[INPUTS]

OUTPUT_SHAPES: Mapping[HeadOutput, str] = {
    "logits": "[batch, classes]",
    "token_logits": "[batch, tokens, classes]",
    "embedding": "[batch, width], with any width but `classes`",
    "token_embeddings": "[batch, tokens, width], with any width but `classes`",
}

CLASSES = "classes"
"""The symbol of the axis with one number per class, or per number of a regression."""

THRESHOLD = 0.5
"""The probability from which on a label applies, by default."""

_SHA256 = "[0-9a-f]{64}"
_TEMPLATE = r"((?!\{text\}|\{pair\}).)*\{text\}((?!\{text\}|\{pair\}).)*\{pair\}((?!\{text\}|\{pair\}).)*"
_SCHEMA_TEMPLATE = _TEMPLATE.replace(").)*", r")[\s\S])*")

_PREFIXES = ("prefix", "query_prefix", "document_prefix")


def _schema_rules() -> dict[str, Any]:
    """Return what JSON Schema says of a task beyond the types of its keys; `Task` itself checks the same."""

    def only(types: list[str], needed: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        return {"if": {"properties": {"type": {"enum": types}}}, "then": needed, "else": {"properties": others}}

    def where(fact: str) -> list[str]:
        return [name for name in PROBLEM_TYPES if getattr(TASK_TYPES[name], fact)]

    empty, labels = {"maxItems": 0}, {"labels": {"minItems": 1}}
    of_embeddings = {"pooling": {"const": None}, "normalised": {"const": False}}
    of_embeddings |= {name: {"const": ""} for name in _PREFIXES}
    no_template = {"template": {"const": ""}}
    return {
        "allOf": [
            {"properties": {"labels": {"uniqueItems": True, "items": {"minLength": 1}}}},
            {"properties": {name: {"pattern": f"^{_SHA256}$"} for name in ("tokenizer", "processor")}},
            only(where("has_labels"), {"required": ["labels"], "properties": labels}, {"labels": empty}),
            only(where("has_thresholds"), {}, {"thresholds": empty}),
            only(where("embeds"), {}, of_embeddings),
            only(where("is_vector"), {}, {"widths": empty}),
            only([name for name in where("embeds") if not TASK_TYPES[name].pools], {}, {"skiplist": empty}),
            only(where("ranks"), {"properties": {"template": {"pattern": f"^({_SCHEMA_TEMPLATE})?$"}}}, no_template),
            {
                "if": {"properties": {"input": {"enum": [*FILE_MODALITIES]}}, "required": ["input"]},
                "then": {"properties": {"type": {"enum": where("reads_files")}, "tokenizer": {"const": None}}},
                "else": {"properties": {"processor": {"const": None}}},
            },
            *(
                only([name], {"properties": {"activation": {"enum": [*TASK_TYPES[name].activations, None]}}}, {})
                for name in PROBLEM_TYPES
            ),
        ]
    }


@dataclass(frozen=True)
class Task:
    """The contract between a text and the answer of an adapter.

    Attributes:
        type: the kind of question: one label of a text (single_label) or any number of them (multi_label), one of
            several choices (multiple_choice; each choice is a row), a label of each token (token), the part of a text
            that answers a question (span), numbers (regression), a vector (embedding), a vector of each token
            (multi_vector), a weight of each vocabulary entry (sparse_embedding), or how well two texts go together
            (ranking).
        labels: the name of each class, in the order of the logits (single_label, multi_label and token only).
        activation: the function from logits to the numbers of an answer: softmax over the classes (over the choices of
            a question, over the tokens of a span's start and end), sigmoid of each number, or identity. Default:
            sigmoid for multi_label, identity for regression, ranking and all embeddings, softmax for all others.
        thresholds: the probability from which each label applies (multi_label only). Default: 0.5 for all.
        input: the format of a row: one text, a pair of texts, an image or an audio file.
        max_tokens: the maximum tokens of a row, special tokens included; longer texts are truncated. Default: the limit
            of the base.
        truncation: the side on which texts are truncated.
        tokenizer: the digest of the tokenizer that the adapter was trained with. Default: unknown.
        pooling: the input of the vector, such as the mean of the tokens or the last one (embedding only). Informative:
            the head's graph computes it.
        normalised: true if vectors have length 1, so that dot products are cosines (embedding and multi_vector only).
        prefix: the text put before each row (all embeddings only).
        query_prefix: the text put before a query, if queries and documents have different prefixes (all embeddings
            only). Each row must then state its side.
        document_prefix: the text put before a document, likewise.
        template: the text made of a pair, with the placeholders `{text}` and `{pair}` in this order (ranking only).
            A row longer than `max_tokens` is then refused, not truncated. Default: the tokenizer joins pairs.
        widths: the widths to which vectors may be truncated, beside the full one, the largest first; a truncated vector
            is normalised again where the task normalises (embedding only).
        processor: the digest of the processor that the adapter was trained with (images and audio only). Default:
            unknown.
        skiplist: the ids of tokens that have no vector in documents, such as punctuation (multi_vector only). Each row
            must then state its side.
    """

    type: ProblemType
    labels: tuple[str, ...] = ()
    activation: Activation | None = None
    thresholds: tuple[Annotated[float, Interval(0, 1)], ...] = ()
    input: Input = "text"
    max_tokens: Annotated[int, Interval(1)] | None = None
    truncation: Literal["right", "left"] = "right"
    tokenizer: str | None = None
    pooling: Pooling | None = None
    normalised: bool = False
    prefix: str = ""
    processor: str | None = None
    widths: tuple[Annotated[int, Interval(1)], ...] = ()
    query_prefix: str = ""
    document_prefix: str = ""
    template: str = ""
    skiplist: tuple[Annotated[int, Interval(0)], ...] = ()

    SCHEMA_RULES: ClassVar[Mapping[str, Any]] = _schema_rules()

    def __post_init__(self) -> None:
        for fault, value, expected in self._faults():
            raise AdapterError(fault, where="the task", found=value, expected=expected)
        if self.activation is None:
            object.__setattr__(self, "activation", self.kind.activations[0])

    def _faults(self) -> list[tuple[str, object, str]]:
        faults: list[tuple[str, object, str]] = []

        def check(holds: bool, fault: str, actual: object, expected: str) -> None:
            if not holds:
                faults.append((fault, actual, expected))

        named = quoted(PROBLEM_TYPES)
        check(self.type in PROBLEM_TYPES, "unknown problem type", f"`{self.type}`", f"one of {named}")
        if faults:
            return faults
        labels, count, kind = self.labels, len(self.labels), self.kind
        check(
            len(set(labels)) == count and all(labels),
            "the labels are not one name for each class",
            f"{number_of(count, 'label')}, {len(set(labels))} different",
            "different names",
        )
        wanted = "at least 1 different one" if kind.has_labels else f"no labels: the type is `{self.type}`"
        check((count > 0) == kind.has_labels, "labels and classes differ", number_of(count, "label"), wanted)
        check(
            self.activation is None or self.activation in kind.activations,
            f"an activation that `{self.type}` does not have",
            f"`{self.activation}`",
            " or ".join(f"`{name}`" for name in kind.activations),
        )
        check(
            not self.thresholds or (kind.has_thresholds and len(self.thresholds) == count),
            "thresholds are not one for each label of a multi-label task",
            f"{number_of(len(self.thresholds), 'threshold')} for {number_of(count, 'label')} of `{self.type}`",
            "one for each label, or none",
        )
        outside = [number for number in self.thresholds if not 0 <= number <= 1]
        check(not outside, "a threshold is a probability", outside[:1], "0 to 1")
        check(self.max_tokens is None or self.max_tokens >= 1, "no token fits", self.max_tokens, "1 token or more")
        for name in ("tokenizer", "processor"):
            digest, expected = getattr(self, name), "64 lower-case hexadecimal digits"
            good = digest is None or re.fullmatch(_SHA256, digest) is not None
            check(good, f"is not the digest of a {name}", f"`{digest}`", expected)
        is_medium = self.input in FILE_MODALITIES
        check(
            kind.reads_files or not is_medium,
            f"`{self.type}` reads texts",
            f"`{self.input}`",
            "`text` or `pair`",
        )
        owns = "tokenizer" if is_medium else "processor"
        check(getattr(self, owns) is None, f"`{self.input}` has a {owns}", "its digest", "none")
        falling = [*self.widths] == sorted({*self.widths}, reverse=True) and min(self.widths, default=1) > 0
        check(falling, "widths do not fall", self.widths, "different numbers above 0, the largest first")
        both = bool(self.prefix) and self.has_sides
        check(not both, "has a prefix of all rows, and one of queries or documents", f"`{self.prefix}`", "one of them")
        for name in ("pooling", "normalised", "widths", *_PREFIXES):
            value = getattr(self, name)
            may_have = kind.is_vector if name == "widths" else kind.embeds
            check(may_have or not value, f"only an embedding has `{name}`", f"`{value}`", "none")
        by_token = kind.embeds and not kind.pools
        check(by_token or not self.skiplist, "only vectors of tokens have `skiplist`", f"{self.skiplist}", "none")
        check(kind.ranks or not self.template, "only a ranking has `template`", f"`{self.template}`", "none")
        fits = not self.template or re.fullmatch(_TEMPLATE, self.template, re.DOTALL) is not None
        check(fits, "the template lacks placeholders for a pair", f"`{self.template}`", "`{text}`, then `{pair}`")
        return faults

    @property
    def kind(self) -> TaskType:
        """Its type."""
        return HEAD_TYPES[self.type]

    def filled(self, first: str, second: str) -> str:
        """Return the text that the template makes of a pair."""
        before, _, rest = self.template.partition("{text}")
        between, _, after = rest.partition("{pair}")
        return f"{before}{first}{between}{second}{after}"

    @property
    def has_sides(self) -> bool:
        """True if a row must state that it is a query or a document."""
        return bool(self.query_prefix or self.document_prefix or self.skiplist)

    def prefix_of(self, side: TextSide | None) -> str:
        """Return the text before a row; `side` is that of the row, if it says it.

        Raises:
            RequestError: the row does not say its side where it must, or says one that it cannot have.
        """
        prefixes = {"query": self.query_prefix, "document": self.document_prefix}
        if side is None and self.has_sides:
            raise RequestError(
                "does not say whether it is a query or a document, which are read differently",
                expected=quoted(prefixes),
                fix="say it: " + argument("side", "query") + ', or `{"text": …, "side": "query"}`',
            )
        if side is not None and (side not in prefixes or not self.kind.embeds):
            expected = quoted(prefixes) if self.kind.embeds else f"none: `{self.type}` gives no vectors"
            raise RequestError("is no side of a search", found=f"`{side}`", expected=expected)
        return (prefixes[side] if side is not None and self.has_sides else "") or self.prefix

    @property
    def output(self) -> HeadOutput:
        """The output that a head for it fills."""
        return self.kind.output

    def threshold(self, label: int) -> float:
        """Return the probability from which on a label, by its number, applies."""
        return self.thresholds[label] if self.thresholds else THRESHOLD

    def activated(self, result: np.ndarray) -> np.ndarray:
        """Return the result of a head after the activation, in float64."""
        if self.activation == "softmax":
            return softmax(result)
        return sigmoid(result) if self.activation == "sigmoid" else result.astype(np.float64)

    def answer(self, result: np.ndarray, real: Mask | None = None, context: Mask | None = None) -> Answer:
        """Return the answer to one row.

        Args:
            result: logits or numbers [classes], logits [tokens, classes], a vector [width], or vectors [tokens, width].
            real: which tokens are not padding, [tokens]; default: all.
            context: which tokens may be the answer to a question, or have a vector, [tokens]; default: all real ones.

        Raises:
            RequestError: the result holds NaN or Inf, or no token may be the answer.
        """
        rows = np.ones(len(result), bool) if real is None else real
        if not np.isfinite(result[rows] if result.ndim == 2 else result).all():
            raise RequestError(
                "an output is NaN or infinite", fix="run `adapter-export verify` on the bundle, and look at the inputs"
            )
        if self.labels and result.shape[-1] != len(self.labels):  # as from a row of another adapter
            raise RequestError(
                "a result has another number of classes than its adapter",
                found=result.shape[-1],
                expected=len(self.labels),
                fix="run `adapter-export verify` on the bundle",
            )
        return self.kind.answer(self, result, rows, context)

    def truncated(self, vector: np.ndarray, width: int) -> np.ndarray:
        """Return the first numbers of a vector, of length 1 again where vectors have it (Kusupati et al. 2022, §3).

        Args:
            vector: an answer, [full width].
            width: one of `widths`, or the full width.

        Raises:
            RequestError: the vector was not trained at this width.
        """
        if width == len(vector):
            return vector
        if width not in self.widths:
            expected = ", ".join(map(str, (len(vector), *self.widths)))
            raise RequestError("vectors were not trained at this width", found=width, expected=f"one of {expected}")
        cut = vector[:width]
        length = float(np.linalg.norm(cut))
        return cut / np.float32(length) if self.normalised and length > 0 else cut

    def is_decided(self, result: np.ndarray, absolute: float, context: Mask | None = None) -> bool:
        """Return true if the choice in an answer is the same within the allowed deviation of results.

        Args:
            result: of a head for one row.
            absolute: how far each number may be off.
            context: for a span, which tokens may be the answer.
        """
        return self.kind.is_decided(self, result, absolute, context)

    def document(self) -> dict[str, Any]:
        """Return the record as JSON; what has its default is left out."""
        document_of_task: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            is_default = field.name == "activation" and value == self.kind.activations[0]
            if field.name == "type" or (value != field.default and not is_default):
                document_of_task[field.name] = list(value) if isinstance(value, tuple) else value
        return document_of_task


def head_result(shape: Shape) -> HeadOutput | None:
    """Return the output that a head with a result of this symbolic shape fills; `None` if no head may have it."""
    if shape == ("batch", CLASSES):
        return "logits"
    if shape == ("batch", "tokens", CLASSES):
        return "token_logits"
    leading: Mapping[Shape, HeadOutput] = {("batch",): "embedding", ("batch", "tokens"): "token_embeddings"}
    return leading.get(shape[:-1]) if shape[-1] not in DATA_AXES else None
