"""Facts about a head's task for adapters that are packed or imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


class TaskFacts(TypedDict, total=False):
    """Facts about encoding and answers that tensors and configurations do not reveal."""

    thresholds: Annotated[
        tuple[float, ...],
        "Probability from which a label applies, one for all or one each (`multi_label` only).  [default: 0.5]",
    ]
    input: Annotated[Literal["text", "pair"], "Row format: one text, or a pair of texts."]
    max_tokens: Annotated[int, Option("Maximum tokens in training; longer texts are truncated.", least=1)]
    truncation: Annotated[Literal["right", "left"], "Side on which long texts are truncated.  [default: right]"]
    prefix: Annotated[str, "Text put before each row (`embedding` only)."]
    query_prefix: Annotated[str, "Text put before each query (`embedding` only)."]
    document_prefix: Annotated[str, "Text put before each document (`embedding` only)."]


def check_thresholds(given: Sequence[float]) -> None:
    """Raise UsageError for a threshold outside 0 to 1."""
    outside = [number for number in given if not 0 <= number <= 1]
    if outside:
        raise UsageError("a threshold must be a probability", found=outside[0], expected="0 to 1")


def thresholds_for(labels: Sequence[str], given: Sequence[float]) -> tuple[float, ...]:
    """Return one threshold per label, repeating a single one; raises UsageError for other numbers."""
    check_thresholds(given)
    found = tuple(given) * len(labels) if len(given) == 1 else tuple(given)
    if found and len(found) != len(labels):
        expected = f"1, or {len(labels)}, one per label"
        raise UsageError("the number of thresholds does not match the labels", found=len(found), expected=expected)
    return found


def with_facts(adapter: Adapter, facts: Mapping[str, Any]) -> Adapter:
    """Return an adapter with these facts added to its task."""
    if not facts:
        return adapter
    head = adapter.head
    if head is None or head.task is None:
        given = joined(map(argument, facts))
        raise UsageError("the adapter's head has no task, so facts about it cannot be set", found=given)
    each = {"thresholds": thresholds_for(head.labels, facts["thresholds"])} if "thresholds" in facts else {}
    return replace(adapter, head=replace(head, task=replace(head.task, **{**facts, **each})))
