"""Risks of unverified claims, for the person who signs a release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapter_export.format.check_report import Finding
from adapter_export.words import argument

_RISKS: Mapping[str, str] = {
    "source": "A risk only if the adapters in the bundle are not the ones that you trained: "
    + argument("adapters")
    + " rules it out.",
    "providers": "No risk for a service on the CPU. On another device, replay the golden vectors there first.",
    "left out": "A risk: this part was excluded by choice, and nothing is known about it.",
    "model": "A risk if the bundle changed after it was built: " + argument("against") + " compares it with the model.",
    "live model not compared": "A small risk: the captured model was compared instead of the live one.",
    "padding not compared": "No risk for clients that ask texts one by one; others must not pad.",
    "recorded runs not compared": "No risk: the golden vectors were compared, within the error budget.",
    "faults barely shown": "A risk: a client cannot see from its golden data if a part of this adapter is missing.",
    "golden generation": "A risk for generated texts, which were not compared here.",
    "node": "No risk for the outputs, which were compared; only the place of a difference is less exact.",
}
"""Risks by check."""

_OTHER = "A risk for those who rely on it."


def risk(findings: Sequence[Finding]) -> str:
    """Return the risk of unverified claims that have one reason."""
    return _RISKS.get(findings[0].check, _OTHER)
