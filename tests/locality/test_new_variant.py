"""A graph variant is one module, and its name in the format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.graph.kinds import houlsby
from adapter_export.onnx_backend.base.onnx_base import open_onnx

if TYPE_CHECKING:
    from conftest import TrialChange

MODULE = '''"""The base alone, for a device without adapters."""

from __future__ import annotations

import onnx_ir as ir

from adapter_export.bundle.variants.variant import GraphInterface, RebuiltGraph, Variant, data_inputs, outputs_of


class PlainVariant(Variant):
    """The graph with slots whose slots are constants with their neutral values."""

    name = "plain"
    file = "model.plain.onnx"
    summary = "no adapter"
    standard = False

    def write(self, draft, base):
        ir.save(_without_slots(draft.model, draft.plan.slots), draft.folder / self.file)

    def adapters(self, manifest, file):
        return (None,)

    def interfaces(self, manifest):
        for file in self.files(manifest):
            yield GraphInterface(file, data_inputs(manifest), outputs_of(manifest))

    def feeds(self, graph, arrays, chosen):
        return dict(arrays)

    def rebuild(self, bundle, base):
        for file in self.files(bundle.manifest):
            slots = bundle.model(bundle.manifest.graphs["slots"])
            model = _without_slots(slots, bundle.plan.slots)
            yield RebuiltGraph(file, model, "its derivation from the graph with slots")


def _without_slots(model, slots):
    copy = model.clone()
    for slot in slots:
        copy.graph.inputs.remove(copy.graph.initializers[slot.name])
    return copy


VARIANT = PlainVariant()
'''


def test_a_graph_variant_touches_two_files(trial: TrialChange) -> None:
    trial.edit("format/manifest.py", '"bank", "fanout", "baked"]', '"bank", "fanout", "plain", "baked"]')
    row = '    "fanout": "as in'
    trial.edit("format/manifest.py", row, '    "plain": "nowhere",\n' + row)
    trial.add("bundle/variants/plain_variant.py", MODULE)
    base = open_onnx(save_tiny(trial.folder))
    for name in ("a", "b"):
        ae.save(random_adapter(name, houlsby(), base, labels="xy"), trial.folder / name)
    build = ("build", base.path, "--adapters", "a", "--variants", "slots,bank,plain", "-o", "bundle")
    assert "no adapter" in trial.command(*build)
    assert "nowhere" in trial.command("inspect", "bundle")
    found = trial.json("check", "bundle", "--against", base.path)
    outputs = [one for each in found["findings"] for one in each["measurements"]]
    assert {one["adapter"] for one in outputs if one["variant"] == "plain"} == {None}
    nodes = [one for one in found["findings"] if (one["check"], one["subject"]) == ("nodes", "model.plain.onnx")]
    assert {one["status"] for one in nodes} == {"exact"}
    trial.command("add", "bundle", "b", "--against", base.path)
    assert trial.json("verify", "bundle")["verdict"] == "passed"
    assert "model.plain.onnx" not in trial.json(*build[:5], "slots", "-o", "other")["manifest"]["graphs"].values()
    assert trial.touched == ["format/manifest.py", "bundle/variants/plain_variant.py"]
