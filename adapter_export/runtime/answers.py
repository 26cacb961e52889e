"""From the results of heads to answers, by the task of each row's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError
from adapter_export.format.axes import masks_of
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import ProblemType, Task
from adapter_export.runtime.bank import MASK_BELOW
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.loaded_adapters import Entry

LONGEST_SPAN = 30
"""The most tokens of the span that answers a question."""


class Head(NamedTuple):
    """The adapter of a row as it was when the row was asked: its name, its task, and the output of its head."""

    adapter: str | None
    task: Task | None
    output: str | None


@dataclass(frozen=True)
class Prediction:
    """The class of a text, or of a token.

    Attributes:
        label: the most probable class.
        probability: its probability, the softmax over the classes.
        probabilities: of every class, in the order of the logits.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class LabelSet:
    """The labels that apply to a text, any number of them.

    Attributes:
        labels: those whose probability reaches their threshold, in the order of the logits.
        probabilities: of every label, the sigmoid of its logit.
    """

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class TokenLabels:
    """The class of each token; none where the mask says that it is padding."""

    tokens: tuple[Prediction | None, ...]


@dataclass(frozen=True)
class Span:
    """The part of a row that answers a question: the places of its first and its last token, and its probability.

    The probability is the product of the softmax of the start and of the end over the tokens that may be the answer; of
    all spans of at most `LONGEST_SPAN` tokens, this one has the highest.
    """

    first_token: int
    last_token: int
    probability: float


@dataclass(frozen=True)
class Numbers:
    """The numbers of a regression, float64 [numbers]."""

    numbers: np.ndarray


@dataclass(frozen=True)
class Vector:
    """An embedding, float32 [width]."""

    vector: np.ndarray


@dataclass(frozen=True)
class Score:
    """How well two texts go together, or how good a choice is before the softmax over all choices of its question."""

    score: float


Answer = Prediction | LabelSet | TokenLabels | Span | Numbers | Vector | Score


def answer(
    task: Task,
    result: np.ndarray,
    real: npt.NDArray[np.bool_] | None = None,
    context: npt.NDArray[np.bool_] | None = None,
) -> Answer:
    """Return what the result of a head says about one row.

    Args:
        task: that of the row's adapter.
        result: logits or numbers [classes], logits [tokens, classes], or a vector [width].
        real: which tokens are no padding, [tokens]; all if not given.
        context: which tokens may be the answer to a question, [tokens]; all real ones if not given.

    Raises:
        RequestError: the result holds NaN or Inf, or no token may be the answer.
    """
    rows = np.ones(len(result), bool) if real is None else real
    if not np.isfinite(result[rows] if result.ndim == 2 else result).all():
        raise RequestError(
            "an output is NaN or infinite", fix="run `adapter-export verify` on the bundle, and look at the inputs"
        )
    if task.labels and result.shape[-1] != len(task.labels):  # as from a row of another adapter
        raise RequestError(
            "a result has another number of classes than its adapter",
            found=result.shape[-1],
            expected=len(task.labels),
            fix="run `adapter-export verify` on the bundle",
        )
    match task.type:
        case "single_label":
            return _prediction(result, task.labels)
        case "multi_label":
            shares = activated(task, result)
            chosen = [label for at, label in enumerate(task.labels) if shares[at] >= task.threshold(at)]
            return LabelSet(tuple(chosen), dict(zip(task.labels, map(float, shares), strict=True)))
        case "token":
            pairs = zip(result, rows, strict=True)
            return TokenLabels(tuple(_prediction(one, task.labels) if keep else None for one, keep in pairs))
        case "span":
            return _span(result, rows, rows if context is None else context)
        case "embedding":
            return Vector(result)
        case "regression":
            return Numbers(activated(task, result))
        case "multiple_choice":
            return Score(float(result[0]))
        case "ranking":
            return Score(float(activated(task, result)[0]))


def document(found: Answer) -> dict[str, Any]:
    """Return an answer as JSON, the same in every client; specified in docs/format.md."""
    match found:
        case Prediction():
            return {"label": found.label, "probability": found.probability, "probabilities": dict(found.probabilities)}
        case LabelSet():
            return {"labels": list(found.labels), "probabilities": dict(found.probabilities)}
        case TokenLabels():
            return {"tokens": [None if one is None else document(one) for one in found.tokens]}
        case Span():
            return {"first_token": found.first_token, "last_token": found.last_token, "probability": found.probability}
        case Numbers():
            return {"numbers": found.numbers.tolist()}
        case Vector():
            return {"vector": found.vector.tolist()}
        case Score():
            return {"score": found.score}


def activated(task: Task, result: np.ndarray) -> np.ndarray:
    """Return the result of a head after its task's activation, in float64."""
    match task.activation:
        case "softmax":
            return softmax(result)
        case "sigmoid":
            return sigmoid(result)
        case _:
            return result.astype(np.float64)


def choose(scores: Sequence[Score]) -> tuple[int, list[float]]:
    """Return which of the choices of a question is the best, from 0, and the softmax over their scores."""
    shares = softmax(np.array([one.score for one in scores]))
    return int(shares.argmax()), shares.tolist()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return `1 / (1 + exp(−x))` of each number, in float64, without overflow."""
    shifted = np.exp(-np.abs(logits.astype(np.float64)))
    shares: np.ndarray = np.where(logits >= 0, 1 / (1 + shifted), shifted / (1 + shifted))
    return shares


def _prediction(logits: np.ndarray, labels: Sequence[str]) -> Prediction:
    shares = softmax(logits)
    best = int(shares.argmax())
    return Prediction(labels[best], float(shares[best]), dict(zip(labels, map(float, shares), strict=True)))


def _span(logits: np.ndarray, real: npt.NDArray[np.bool_], context: npt.NDArray[np.bool_]) -> Span:
    """Return the best span of logits [tokens, 2] within the tokens that may be the answer."""
    if context.shape != logits.shape[:1]:
        raise RequestError(
            "`context` needs one value per token of the row", found=len(context), expected=f"{len(logits)} tokens"
        )
    places = np.flatnonzero(context & real)
    if not len(places):
        raise RequestError("no token may be the answer", expected="a text beside the question")
    starts, ends = softmax(logits[places, 0]), softmax(logits[places, 1])
    shares = np.where(within_reach(places), np.outer(starts, ends), 0.0)
    first, last = np.unravel_index(int(shares.argmax()), shares.shape)
    return Span(int(places[first]), int(places[last]), float(shares[first, last]))


def within_reach(places: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return for each pair of places whether a span may lead from the first to the second."""
    lengths = places[None, :] - places[:, None] + 1
    return (lengths >= 1) & (lengths <= LONGEST_SPAN)


def own_results(outputs: Arrays, manifest: Manifest, filled: Sequence[str | None]) -> Arrays:
    """Return the outputs of a bank, those of heads as wide as the widest of their rows.

    `filled` is for each row the output that its adapter's head fills; none without a head. Other rows of an output of
    heads become NaN, and classes that a row's adapter does not have −inf. The base's outputs stay as they are.
    """
    found = dict(outputs)
    for name in {head.output for head in manifest.heads} & set(outputs):
        own = np.array([name == output for output in filled])
        result = np.where(outputs[name] < MASK_BELOW, -np.inf, outputs[name]).astype(outputs[name].dtype)
        result[~own] = np.nan
        found[name] = np.ascontiguousarray(result[..., : _width(result[own])])
    return found


def own_classes(row: np.ndarray) -> np.ndarray:
    """Return what a row's adapter has of a result [classes] or [tokens, classes]."""
    return row[..., : _width(row)]


def _width(results: np.ndarray) -> int:
    """Return how many classes are anybody's: those behind them are −inf in all rows."""
    return int(np.count_nonzero(~np.isneginf(results).all(axis=tuple(range(results.ndim - 1)))))


_METHODS: Mapping[ProblemType, str] = {
    "single_label": "classify",
    "token": "classify_tokens",
    "regression": "predict",
    "embedding": "embed",
}


def check_type(entry: Entry | None, problem: ProblemType | None = None) -> tuple[Entry, Task]:
    """Return an adapter whose head answers, questions of this type if one is given, and its task.

    RequestError if it does not, if nobody knows what its results mean, or if there is none.
    """
    asked = "answer" if problem is None else f"do `{problem}`"
    if entry is None:
        raise RequestError(f"the base alone cannot {asked}", fix="give every row an adapter, or call `run`")
    if entry.task is None or entry.output is None:
        raise RequestError(
            f"an adapter without a known task cannot {asked}",
            where=f"adapter `{entry.name}`",
            found="no head" if entry.output is None else "a head, and nothing says what its results mean",
            fix="call `run`, which gives results as they are, or give `labels` or `task` to `load`",
        )
    if problem is not None and entry.task.type != problem:
        raise RequestError(
            f"an adapter with another task cannot {asked}",
            where=f"adapter `{entry.name}`",
            found=f"the problem type `{entry.task.type}`",
            fix=f"call `{_METHODS.get(entry.task.type, 'answer')}`",
        )
    return entry, entry.task


def check_context(task: Task, context: npt.NDArray[np.bool_] | None, where: str) -> None:
    """Raise RequestError if a row for a `span` does not say which tokens may be the answer: it may be the question."""
    if task.type == "span" and context is None:
        raise RequestError(
            "a row of arrays for a `span` needs to say which of its tokens may be the answer",
            where=where,
            expected="`context`, such as the tokens of the second text",
            fix="give `context`, or the texts themselves",
        )


def stacked(results: Sequence[np.ndarray], entries: Sequence[Entry]) -> np.ndarray:
    """Return results of rows as one array [batch, width]; RequestError if they are of different widths."""
    widths = {entry.name: result.shape[-1] for result, entry in zip(results, entries, strict=True)}
    if len(set(widths.values())) > 1:
        raise RequestError(
            "the adapters of a batch give results of different widths",
            found=", ".join(f"`{name}`: {width}" for name, width in widths.items()),
            fix="call it for each of them",
        )
    return np.stack(results)


def real_tokens(
    results: Sequence[np.ndarray], inputs: Mapping[str, np.ndarray], manifest: Manifest
) -> Sequence[npt.NDArray[np.bool_] | None]:
    """Return for each row which of its tokens are no padding; none where its result has no axis of tokens."""
    tokens = next((len(result) for result in results if result.ndim == 2), None)
    if tokens is None:
        return [None] * len(results)
    shape = (len(results), tokens)
    # the masks of the tokens that have labels: not that of an encoder's where they are a decoder's
    known = {axis for record in manifest.inputs for axis in record.axes}
    labelled = [record for record in manifest.outputs if record.name.endswith("token_logits")]
    axes = {record.axes[1] for record in labelled if len(record.axes) > 1} & known
    names = masks_of(manifest.inputs, axes.pop() if len(axes) == 1 else None)
    masks = [np.asarray(inputs[name]) != 0 for name in names]
    real = next((mask for mask in masks if mask.shape == shape), np.ones(shape, bool))
    return [row if result.ndim == 2 else None for result, row in zip(results, real, strict=True)]
