"""Reasons for which a cell may be refused; any other refusal is a fault."""

from __future__ import annotations

from collections.abc import Mapping

KNOWN: Mapping[str, str] = {
    "acts on layers that the base also calls on other values": "DeBERTa projects relative positions with its queries",
}
"""Beginnings of errors, with the reason why no adapter or bundle can be there."""


def is_known(reason: str) -> bool:
    """Return whether an error is one of the known refusals."""
    return any(reason.startswith(known) for known in KNOWN)
