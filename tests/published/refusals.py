"""Reasons for which a cell may be refused, and faults that are being fixed; any other outcome but a pass is a fault."""

from __future__ import annotations

from collections.abc import Mapping

KNOWN: Mapping[str, str] = {
    "acts on layers that the base also calls on other values": "DeBERTa projects relative positions with its queries",
    "has a head with unknown pooling": "PEFT does not save how Swin, DINOv2 and audio classifiers pool",
    "has fully trained modules that cannot be expressed": "ModernBERT normalizes each token before its head",
    "the batch is not the first axis where an adapter acts": "Swin turns windows into rows, so a bank has no row ids",
    "the head has too many layers": "ModernBERT normalizes the pooled text before its head",
}
"""Beginnings of errors, with their reasons."""

BROKEN: Mapping[str, str] = {
    "the results of the exported graph differ from the reference": "Qwen3's int8-weights exceed the build's budget",
}
"""Beginnings of failures, with their causes. A release has none."""


def is_known(reason: str) -> bool:
    """Return whether an error is one of the known refusals."""
    return any(reason.startswith(known) for known in KNOWN)


def is_being_fixed(reason: str) -> bool:
    """Return whether a failure is one of those that are being fixed."""
    return any(reason.startswith(known) for known in BROKEN)
