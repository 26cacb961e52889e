"""The number that a bundle's graph and its adapter files share, so that an adapter of another bundle is told apart."""

from __future__ import annotations

import hashlib

from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.slots import SlotPlan

_UNSAID = (0, 1)
"""What other programs write where they mean nothing."""


def model_version(base: OnnxBase, plan: SlotPlan) -> int:
    """The `model_version` of a graph with slots and of every adapter file that fits it, a positive int32.

    31 bits of the sha256 over the fingerprint of the base, the topology of the slots, and the site map that moved its
    sites. The precision of the base is not in it: adapters of one precision fit another.
    """
    site_map = "" if base.given is None else base.given.digest
    digest = hashlib.sha256("\n".join((base.fingerprint, plan.digest, site_map)).encode()).digest()
    number = int.from_bytes(digest[:4], "little") & 0x7FFFFFFF
    return number if number not in _UNSAID else number + len(_UNSAID)
