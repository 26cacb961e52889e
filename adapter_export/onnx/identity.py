"""The number that a bundle's graph and its adapter files share, so that an adapter of another bundle is told apart."""

from __future__ import annotations

import hashlib

from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.slots import SlotPlan

_UNSAID = (0, 1)
"""What other programs write where they mean nothing."""


def model_version(base: OnnxBase, plan: SlotPlan) -> int:
    """The `model_version` of a graph with slots and of every adapter file that fits it."""
    return model_version_of(base.fingerprint, plan, None if base.given is None else base.given.digest)


def model_version_of(fingerprint: str, plan: SlotPlan, site_map: str | None) -> int:
    """31 bits of the sha256 over what decides whether an adapter file fits, a positive int32.

    The precision of the base is not in it: adapters of one precision fit another.

    Args:
        fingerprint: that of the base.
        plan: the slots, of which the topology counts.
        site_map: the digest of the site map that moved the sites of the base, if there was one.
    """
    digest = hashlib.sha256("\n".join((fingerprint, plan.digest, site_map or "")).encode()).digest()
    number = int.from_bytes(digest[:4], "little") & 0x7FFFFFFF
    return number if number not in _UNSAID else number + len(_UNSAID)
