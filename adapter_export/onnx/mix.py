"""Which slots hold the weights of a weighted fusion, and whether each row of a batch can have its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import BaseModelError, ParityError, RequestError
from adapter_export.format.manifest import MixRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.sums import MIX, weighted_members
from adapter_export.onnx.golden import Golden
from adapter_export.onnx.slots import SlotPlan, topology_key
from adapter_export.reference.runner import Arrays


def mix_record(plan: SlotPlan, adapter: Adapter) -> MixRecord | None:
    """What a request must know to give a fusion weights of its own; none for an adapter that has no such weights."""
    members = weighted_members(adapter)
    if members is None:
        return None
    own = {(owner, topology_key(graph)) for owner, graph, _ in adapter.parts()}
    slots = [part.slot(MIX) for part in plan.parts if (part.owner, part.key) in own and MIX in part.graph.parameters]
    return MixRecord(tuple(dict.fromkeys(slots)), members)


def check_rows_apart(
    run: Callable[[Mapping[str, np.ndarray]], Arrays], record: MixRecord, tensors: Weights, golden: Golden
) -> None:
    """Hold that weights of one row leave the others alone: every second row has the adapter's, the others have zeros.

    Args:
        run: the graph, from inputs and tensors to outputs.
        record: where the weights go.
        tensors: the adapter's.
        golden: its golden vectors.

    Raises:
        BaseModelError: they act on other rows, as where tokens come before the batch and no shape says so.
    """
    for index, case in enumerate(golden.cases):
        batch = len(next(iter(case.arrays.values())))
        for first in range(2) if batch > 1 else ():
            mask = (np.arange(batch) % 2 == first).astype(np.float32)[:, None]
            feeds = {**case.arrays, **tensors, **{slot: mask * tensors[slot] for slot in record.slots}}
            try:
                found = run(feeds)
                for row in range(first, batch, 2):
                    golden.compare_row(index, row, found, "a fusion with weights for each row")
            except (ParityError, RequestError) as error:
                raise BaseModelError(
                    "has no batch as the first axis where a fusion acts, so that rows cannot have weights of their own",
                    found=error.found,
                    fix="compose the adapters with fixed weights: `adapter-export compose average`",
                ) from error
