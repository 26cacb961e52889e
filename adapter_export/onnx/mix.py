"""Which slots hold the weights of a weighted fusion."""

from __future__ import annotations

from adapter_export.format.manifest import MixRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.sums import MIX, weighted_members
from adapter_export.onnx.slots import SlotPlan, topology_key


def mix_record(plan: SlotPlan, adapter: Adapter) -> MixRecord | None:
    """What a request must know to give a fusion weights of its own; none for an adapter that has no such weights."""
    members = weighted_members(adapter)
    if members is None:
        return None
    own = {(owner, topology_key(graph)) for owner, graph, _ in adapter.parts()}
    slots = [part.slot(MIX) for part in plan.parts if (part.owner, part.key) in own and MIX in part.graph.parameters]
    return MixRecord(tuple(dict.fromkeys(slots)), members)
