"""All kinds of faults that a self-test plants, in order."""

from __future__ import annotations

from adapter_export.bundle.proof.faults.adapter_faults import ADAPTERS
from adapter_export.bundle.proof.faults.bank_faults import BANK, INPUTS
from adapter_export.bundle.proof.faults.fault import Fault
from adapter_export.bundle.proof.faults.manifest_faults import MANIFEST
from adapter_export.bundle.proof.faults.node_faults import NODES
from adapter_export.bundle.proof.faults.partial_faults import GOLDEN, RECORDED
from adapter_export.bundle.proof.faults.shape_faults import SHAPES
from adapter_export.bundle.proof.faults.site_faults import SITES
from adapter_export.bundle.proof.faults.text_faults import BATCHES, TEXTS
from adapter_export.bundle.proof.faults.weight_faults import WEIGHTS

_STORED = (*ADAPTERS, *BANK, *INPUTS, *MANIFEST, *TEXTS, *BATCHES, *GOLDEN, *RECORDED)

FAULTS: tuple[Fault, ...] = (*WEIGHTS, *NODES, *SHAPES, *SITES, *_STORED)
