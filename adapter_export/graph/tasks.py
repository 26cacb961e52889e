"""Tasks: what lies between a text and an adapter's answer, as one record, and the outputs that heads fill."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_args

from adapter_export.errors import AdapterError, quoted
from adapter_export.graph.graph import DATA_AXES
from adapter_export.graph.ops import Interval, Shape

ProblemType = Literal[
    "single_label", "multi_label", "multiple_choice", "token", "span", "regression", "embedding", "ranking"
]
"""The kind of question that a head answers."""

CAUSAL_LM: Literal["causal_lm"] = "causal_lm"
"""Language modelling: the next token, which the base itself gives. No head answers it, and so no `Task` records it."""

Learnt = Literal[ProblemType, "causal_lm"]
"""What is trained."""

HeadOutput = Literal["logits", "token_logits", "embedding"]
"""Outputs of heads: `logits` [batch, classes], `token_logits` [batch, tokens, classes], `embedding` [batch, width]."""

Activation = Literal["softmax", "sigmoid", "identity"]
"""What turns the result of a head into the numbers of an answer."""

PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)

LEARNT: tuple[Learnt, ...] = (*PROBLEM_TYPES, CAUSAL_LM)

DEFAULT_TYPE: ProblemType = "single_label"
"""What is trained if nobody says it."""

LABELLED: tuple[ProblemType, ...] = ("single_label", "multi_label", "token")
"""The types whose answers are classes with names."""

TOKEN_TYPES: tuple[ProblemType, ...] = ("token", "span")
"""The types whose heads pool nothing."""

MEDIA_TYPES: tuple[ProblemType, ...] = ("single_label", "multi_label", "regression", "embedding")
"""The types that may be asked of an image or an audio file."""

TYPE_OUTPUTS: Mapping[ProblemType, HeadOutput] = {
    "single_label": "logits",
    "multi_label": "logits",
    "multiple_choice": "logits",
    "token": "token_logits",
    "span": "token_logits",
    "regression": "logits",
    "embedding": "embedding",
    "ranking": "logits",
}
"""A regression's numbers stand where the logits of a classification stand, so that both may share a head's slots."""

RESULT_WIDTHS: Mapping[ProblemType, int] = {"multiple_choice": 1, "span": 2, "ranking": 1}
"""How many numbers a head gives where the type says it: a score, or logits for the start and the end of a span."""

ACTIVATIONS: Mapping[ProblemType, tuple[Activation, ...]] = {
    "single_label": ("softmax",),
    "multi_label": ("sigmoid",),
    "multiple_choice": ("softmax",),
    "token": ("softmax",),
    "span": ("softmax",),
    "regression": ("identity", "sigmoid"),
    "embedding": ("identity",),
    "ranking": ("identity", "sigmoid"),
}
"""The activations that each type may have, its own first."""

OUTPUT_SHAPES: Mapping[HeadOutput, str] = {
    "logits": "[batch, classes]",
    "token_logits": "[batch, tokens, classes]",
    "embedding": "[batch, width], with any width but `classes`",
}

CLASSES = "classes"
"""The symbol of the axis with one number per class, or per number of a regression."""

THRESHOLD = 0.5
"""The probability from which on a label of a multi-label task applies, if no other is said."""

_SHA256 = "[0-9a-f]{64}"


def _schema_rules() -> dict[str, Any]:
    """What JSON Schema says of a task beyond the types of its keys; `Task` itself checks the same."""

    def only(types: tuple[str, ...], needed: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        return {"if": {"properties": {"type": {"enum": list(types)}}}, "then": needed, "else": {"properties": others}}

    empty, labels = {"maxItems": 0}, {"labels": {"minItems": 1}}
    of_vectors = {"pooling": {"const": None}, "normalised": {"const": False}, "prefix": {"const": ""}}
    return {
        "allOf": [
            {"properties": {"labels": {"uniqueItems": True, "items": {"minLength": 1}}}},
            {"properties": {name: {"pattern": f"^{_SHA256}$"} for name in ("tokenizer", "processor")}},
            only(LABELLED, {"required": ["labels"], "properties": labels}, {"labels": empty}),
            only(("multi_label",), {}, {"thresholds": empty}),
            only(("embedding",), {}, of_vectors),
            {
                "if": {"properties": {"input": {"enum": ["image", "audio"]}}, "required": ["input"]},
                "then": {"properties": {"type": {"enum": list(MEDIA_TYPES)}, "tokenizer": {"const": None}}},
                "else": {"properties": {"processor": {"const": None}}},
            },
            *(
                only((name,), {"properties": {"activation": {"enum": [*allowed, None]}}}, {})
                for name, allowed in ACTIVATIONS.items()
            ),
        ]
    }


@dataclass(frozen=True)
class Task:
    """The contract between a text and the answer of an adapter.

    Attributes:
        type: the kind of question: one label of a text (single_label) or any number of them (multi_label), one of
            several choices (multiple_choice; each choice is a row), a label of each token (token), the part of a text
            that answers a question (span), numbers (regression), a vector (embedding), or how well two texts go
            together (ranking).
        labels: the name of each class, in the order of the logits; of single_label, multi_label and token only.
        activation: what turns logits into the numbers of an answer: softmax over the classes (over the choices of a
            question, over the tokens of a span's start and end), sigmoid of each number, or identity, the numbers as
            they are. The type's own if left out: sigmoid for multi_label, identity for regression, embedding and
            ranking, softmax for all others.
        thresholds: of multi_label: for each label the probability from which on it applies; 0.5 for all if left out.
        input: what a row is: one text, a pair of texts, an image or an audio file.
        max_tokens: the most tokens that a row may have, special tokens included; longer texts are cut. Only the base
            limits them if left out.
        truncation: the side of a text that is cut.
        tokenizer: the digest of the tokenizer that the adapter was trained with; not known if left out.
        pooling: of embedding: what the vector is made of, the mean of the tokens or the first one. For people: the
            head's graph computes it.
        normalised: of embedding: whether vectors have length 1, so that dot products are cosines.
        prefix: of embedding: what is put before each text.
        processor: of images and audio: the digest of the processor that the adapter was trained with; not known if
            left out.
    """

    type: ProblemType
    labels: tuple[str, ...] = ()
    activation: Activation | None = None
    thresholds: tuple[Annotated[float, Interval(0, 1)], ...] = ()
    input: Literal["text", "pair", "image", "audio"] = "text"
    max_tokens: Annotated[int, Interval(1)] | None = None
    truncation: Literal["right", "left"] = "right"
    tokenizer: str | None = None
    pooling: Literal["mean", "first"] | None = None
    normalised: bool = False
    prefix: str = ""
    processor: str | None = None

    SCHEMA_RULES: ClassVar[Mapping[str, Any]] = _schema_rules()

    def __post_init__(self) -> None:
        for fault, found, expected in self._faults():
            raise AdapterError(fault, where="the task", found=found, expected=expected)
        if self.activation is None:
            object.__setattr__(self, "activation", ACTIVATIONS[self.type][0])

    def _faults(self) -> list[tuple[str, object, str]]:
        faults: list[tuple[str, object, str]] = []

        def check(holds: bool, fault: str, found: object, expected: str) -> None:
            if not holds:
                faults.append((fault, found, expected))

        named = quoted(PROBLEM_TYPES)
        check(self.type in PROBLEM_TYPES, "unknown problem type", f"`{self.type}`", f"one of {named}")
        if faults:
            return faults
        labels, count = self.labels, len(self.labels)
        has_labels = self.type in LABELLED
        check(
            len(set(labels)) == count and all(labels),
            "the labels are not one name for each class",
            f"{count} labels, {len(set(labels))} different",
            "different names",
        )
        check((count > 0) == has_labels, "labels and classes differ", f"{count} labels", _labels_of(self.type))
        allowed = ACTIVATIONS[self.type]
        check(
            self.activation is None or self.activation in allowed,
            f"an activation that `{self.type}` does not have",
            f"`{self.activation}`",
            " or ".join(f"`{name}`" for name in allowed),
        )
        check(
            not self.thresholds or (self.type == "multi_label" and len(self.thresholds) == count),
            "thresholds are not one for each label of a multi-label task",
            f"{len(self.thresholds)} thresholds for {count} labels of `{self.type}`",
            "one for each label, or none",
        )
        outside = [number for number in self.thresholds if not 0 <= number <= 1]
        check(not outside, "a threshold is a probability", outside[:1], "0 to 1")
        check(self.max_tokens is None or self.max_tokens >= 1, "no token fits", self.max_tokens, "1 token or more")
        for name in ("tokenizer", "processor"):
            digest, expected = getattr(self, name), "64 lower-case hexadecimal digits"
            good = digest is None or re.fullmatch(_SHA256, digest) is not None
            check(good, f"is not the digest of a {name}", f"`{digest}`", expected)
        is_medium = self.input in ("image", "audio")
        check(
            self.type in MEDIA_TYPES or not is_medium,
            f"`{self.type}` reads texts",
            f"`{self.input}`",
            "`text` or `pair`",
        )
        owns = "tokenizer" if is_medium else "processor"
        check(getattr(self, owns) is None, f"`{self.input}` has a {owns}", "its digest", "none")
        for name in ("pooling", "normalised", "prefix"):
            value = getattr(self, name)
            check(self.type == "embedding" or not value, f"only an embedding has `{name}`", f"`{value}`", "none")
        return faults

    @property
    def output(self) -> HeadOutput:
        """The output that a head for it fills."""
        return TYPE_OUTPUTS[self.type]

    def threshold(self, label: int) -> float:
        """Return the probability from which on a label, by its number, applies."""
        return self.thresholds[label] if self.thresholds else THRESHOLD

    def document(self) -> dict[str, Any]:
        """Return the record as JSON; what has its default is left out."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            own = field.name == "activation" and value == ACTIVATIONS[self.type][0]
            if field.name == "type" or (value != field.default and not own):
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found


def is_classified(task: Task | None) -> bool:
    """Return whether the largest number of a head's last axis is an answer: all graphs must agree on it."""
    return task is not None and task.type in ("single_label", "token")


def _labels_of(problem: ProblemType) -> str:
    return "at least 1 different one" if problem in LABELLED else f"no labels: the type is `{problem}`"


def head_result(shape: Shape) -> HeadOutput | None:
    """The output that a head with a result of this symbolic shape fills; none if no head may have it."""
    if shape == ("batch", CLASSES):
        return "logits"
    if shape == ("batch", "tokens", CLASSES):
        return "token_logits"
    vector = len(shape) == 2 and shape[0] == "batch" and shape[1] not in DATA_AXES
    return "embedding" if vector else None
