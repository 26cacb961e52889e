"""All kinds of faults that a self-test plants, in order."""

from __future__ import annotations

from adapter_export.plugins.selftest.adapter_faults import ADAPTERS
from adapter_export.plugins.selftest.bank_faults import BANK, INPUTS
from adapter_export.plugins.selftest.engine_faults import ENGINE
from adapter_export.plugins.selftest.fault import Fault
from adapter_export.plugins.selftest.manifest_faults import MANIFEST
from adapter_export.plugins.selftest.node_faults import NODES
from adapter_export.plugins.selftest.partial_faults import GOLDEN, RECORDED
from adapter_export.plugins.selftest.shape_faults import SHAPES
from adapter_export.plugins.selftest.site_faults import SITES
from adapter_export.plugins.selftest.text_faults import BATCHES, TEXTS
from adapter_export.plugins.selftest.weight_faults import WEIGHTS

_STORED = (*ADAPTERS, *BANK, *INPUTS, *MANIFEST, *TEXTS, *BATCHES, *GOLDEN, *RECORDED, *ENGINE)

FAULTS: tuple[Fault, ...] = (*WEIGHTS, *NODES, *SHAPES, *SITES, *_STORED)
