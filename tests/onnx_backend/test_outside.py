"""Linear layers outside all sublayers as sites: a pooler [batch, d], a language head, and layers that are not sites."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_onnx import WIDTH, random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.errors import AdapterError
from adapter_export.graph.kinds import KINDS, Ia3Options, LoraOptions
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.bank_graph import bank_rows, insert_bank
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.site_map import GivenSites, sites_of

PATHS = {"pooled": "pooler.dense", "logits": "head", "unread": "unused", "once": "twice", "again": "twice"}
INPUTS = token_inputs(4, 2, 3, 1, seed=1)


def model() -> onnx.ModelProto:
    """Return the tiny model with additional layers, whose nodes name their modules like torch's exporter."""
    made = tiny_model(more=f", float[batch, {WIDTH}] pooled, float[batch, tokens, 7] logits, float[batch, 5] again")
    nodes = {
        "first": ("Gather", ["hidden", "zero"]),
        "pooled": ("MatMul", ["first", "pooling"]),
        "logits": ("MatMul", ["hidden", "words"]),
        "unread": ("MatMul", ["hidden", "words"]),
        "once": ("MatMul", ["first", "pooling"]),
        "bent": ("Tanh", ["once"]),
        "again": ("MatMul", ["bent", "fives"]),
    }
    for name, (op, read) in nodes.items():
        node = onnx.helper.make_node(op, read, [name], name=name, **({"axis": 1} if op == "Gather" else {}))
        scopes = str(["", PATHS.get(name, "other"), name])
        node.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=scopes))
        made.graph.node.append(node)
    rng = np.random.default_rng(3)
    shapes = {"pooling": (WIDTH, WIDTH), "words": (WIDTH, 7), "fives": (WIDTH, 5)}
    tensors = {name: (0.4 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in {**tensors, "zero": np.array(0)}.items():
        made.graph.initializer.append(numpy_helper.from_array(tensor, name))
    return onnx.shape_inference.infer_shapes(made)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return open_onnx(save_tiny(tmp_path_factory.mktemp("outside"), model()))


def test_outside_sites_are_named_by_unambiguous_module_paths(base: OnnxBase) -> None:
    linear = [site for site in base.sites.of_roles(("linear",)) if site.is_outside]
    outside = {site.name: (site.h, site.width_in, site.width) for site in linear}
    assert outside == {
        "pooler.dense": ("pooled", WIDTH, WIDTH),
        "outside.head": ("logits", WIDTH, 7),
        "outside.linear0": ("once", WIDTH, WIDTH),
        "outside.linear1": ("again", WIDTH, 5),
    }


def test_outside_layers_are_selected_only_by_full_name(base: OnnxBase) -> None:
    for name, maker in KINDS.items():
        assert not any(site.is_outside for site, _ in maker().at(base.sites)), name
    named = KINDS["lora"](LoraOptions(modules=("pooler.dense",)))
    assert [site.name for site, _ in named.at(base.sites)] == ["pooler.dense"]
    with pytest.raises(AdapterError, match="no site for kind `lora`"):
        KINDS["lora"](LoraOptions(modules=("dense",))).placed(base.sites)


def test_site_maps_can_remove_outside_layers(base: OnnxBase) -> None:
    given = GivenSites("map.json", "sha256:0", {"pooler.dense": None, "layers.0.ffn": None}, {})
    left = {site.name for site in sites_of(base.flow, "onnx", given)}
    every = {site.name for site in base.sites}
    assert every - left == {name for name in every if name.startswith(("pooler.dense", "layers.0.ffn"))}


def test_rows_of_a_bank_select_adapters_of_outside_layers(base: OnnxBase) -> None:
    """Run `pooled + B(A first)` and `l⊙pooled`, and the same at layers with an axis of tokens, in one call."""
    on = ("pooler.dense", "outside.head", "query")
    adapters = [
        random_adapter("a", KINDS["lora"](LoraOptions(modules=on, rank=3)), base),
        random_adapter("b", KINDS["ia3"](Ia3Options(modules=on[:2], scaled_inputs=("outside.linear1",))), base),
    ]
    plan = plan_slots(adapters, base.sites)
    slots = open_session(insert_slots(base, plan), base.folder)
    plain = run_session(slots, dict(INPUTS))
    bank = open_session(insert_bank(base, plan, bank_rows(plan, (), adapters)), base.folder)
    rows = np.array([1, 0, 2, 1])
    mixed = run_session(bank, {**INPUTS, "adapter_ids": rows})
    for row, adapter in enumerate([None, *adapters]):
        tensors = {} if adapter is None else dict(slot_tensors(plan, adapter))
        alone = plain if adapter is None else run_session(slots, {**INPUTS, **tensors})
        for name in ("hidden", "pooled", "logits", "again"):
            np.testing.assert_allclose(mixed[name][rows == row], alone[name][rows == row], rtol=0, atol=2e-5)
    a, b = adapters
    first = run_session(slots, {**INPUTS, **slot_tensors(plan, a)})["hidden"][:, 0]
    pooling = numpy_helper.to_array(next(one for one in model().graph.initializer if one.name == "pooling"))
    lora = a.weights["pooler.dense.lora_A.weight"] @ a.weights["pooler.dense.lora_B.weight"]
    np.testing.assert_allclose(mixed["pooled"][[0, 3]], (first @ (pooling + lora))[[0, 3]], rtol=0, atol=2e-5)
    scaled = plain["pooled"] * b.weights["pooler.dense.scaling.weight"]
    np.testing.assert_allclose(mixed["pooled"][2], scaled[2], rtol=0, atol=2e-5)
    assert np.abs(scaled - plain["pooled"]).max() > 0.05
