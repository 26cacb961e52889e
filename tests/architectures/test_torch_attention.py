"""The fused projections of `torch.nn.MultiheadAttention`, which read tokens before batch, as sites with parts.

LoRA there must compute what the live module computes with the product of its matrices added to the fused weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_rows import assert_rows_are_those_of_slots
from slotted import in_slots
from tiny_onnx import random_adapter
from torch import Tensor, nn

from adapter_export.errors import AdapterError
from adapter_export.format.site_map_json import read_site_map, write_site_map
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import Kind, LoraOptions, houlsby, lora
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots
from adapter_export.sites.discover import discover
from adapter_export.sites.site_map import sites_of
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

D = 16
AXES = {"src": {0: "batch", 1: "source"}, "tgt": {0: "batch", 1: "target"}}
SHAPES = ((3, 7, 5), (1, 4, 9))
FUSED = {
    "encoder.layers.0.attention.qkv": {"query": (0, D), "key": (D, 2 * D), "value": (2 * D, 3 * D)},
    "decoder.layers.0.attention.qkv": {"query": (0, D), "key": (D, 2 * D), "value": (2 * D, 3 * D)},
    "decoder.layers.0.cross_attention.kv": {"key": (0, D), "value": (D, 2 * D)},
}
ROWS = {
    "encoder.layers.0.attention.qkv": ("encoder.layers.0.self_attn.in_proj_weight", 0),
    "encoder.layers.0.attention.query": ("encoder.layers.0.self_attn.in_proj_weight", 0),
    "encoder.layers.0.attention.value": ("encoder.layers.0.self_attn.in_proj_weight", 2 * D),
    "encoder.layers.0.attention.output": ("encoder.layers.0.self_attn.out_proj.weight", 0),
    "decoder.layers.0.attention.qkv": ("decoder.layers.0.self_attn.in_proj_weight", 0),
    "decoder.layers.0.attention.query": ("decoder.layers.0.self_attn.in_proj_weight", 0),
    "decoder.layers.0.attention.value": ("decoder.layers.0.self_attn.in_proj_weight", 2 * D),
    "decoder.layers.0.attention.output": ("decoder.layers.0.self_attn.out_proj.weight", 0),
    "decoder.layers.0.cross_attention.query": ("decoder.layers.0.multihead_attn.in_proj_weight", 0),
    "decoder.layers.0.cross_attention.kv": ("decoder.layers.0.multihead_attn.in_proj_weight", D),
    "decoder.layers.0.cross_attention.value": ("decoder.layers.0.multihead_attn.in_proj_weight", 2 * D),
    "decoder.layers.0.cross_attention.output": ("decoder.layers.0.multihead_attn.out_proj.weight", 0),
}
"""The weight behind each site, stored [out, in], and the first of its rows that belongs to the site."""

WHOLE = lora(
    LoraOptions(modules=("qkv", "kv", "cross_attention.query", "attention.output", "cross_attention.output"), rank=2)
)
PARTS = lora(LoraOptions(modules=("query", "value"), rank=3))


@dataclass(frozen=True)
class Base:
    """An encoder with a decoder of torch's own layers, in every form."""

    module: nn.Transformer
    in_torch: TorchBase
    in_onnx: OnnxBase


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("transformer")
    module = built()
    save_base(module, inputs_of(2, 7, 5), folder / "model.pt", axes=AXES)
    in_torch = load_base(folder / "model.pt")
    export_onnx(in_torch, folder / "model.onnx")
    return Base(module, in_torch, open_onnx(folder / "model.onnx"))


def built() -> nn.Transformer:
    torch.manual_seed(0)
    module = nn.Transformer(D, 2, 1, 1, 32, batch_first=True).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2 + (weight if weight.dim() == 1 else 0.0))
    return module


def inputs_of(batch: int, source: int, target: int) -> dict[str, Tensor]:
    return {"src": torch.randn(batch, source, D), "tgt": torch.randn(batch, target, D)}


def test_the_fused_projections_are_sites_with_parts(base: Base) -> None:
    for sites in (discover(flow_graph(base.in_torch.flat)), base.in_onnx.sites):
        found = {site.name: site for site in sites}
        assert found.keys() >= ROWS.keys()
        assert {name: dict(found[name].parts) for name in FUSED} == FUSED
        assert {name for name in ROWS if not found[name].sequence_first} == set()
        assert not found["encoder.layers.0.ffn.up"].sequence_first


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [WHOLE, PARTS], ids=["whole", "parts"])
def test_lora_on_fused_projections_equals_lora_in_the_weights(
    base: Base, kind: Kind, shape: tuple[int, int, int]
) -> None:
    adapter = random_adapter("a", kind, base.in_onnx)
    assert adapter.placements.keys() <= ROWS.keys()
    inputs = inputs_of(*shape)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    wanted = merged(adapter, inputs)
    with torch.no_grad():
        assert np.abs(wanted - base.module(**inputs).numpy()).max() > 0.05
    (found,) = in_slots(base.in_onnx, adapter)(arrays).values()
    (in_torch,) = TorchRunner(base.in_torch).run(arrays, adapter).values()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(in_torch, wanted, rtol=0, atol=1e-4)


def test_rows_of_a_batch_run_through_different_adapters(base: Base) -> None:
    adapters = [random_adapter(name, kind, base.in_onnx) for name, kind in (("whole", WHOLE), ("parts", PARTS))]
    adapters.append(random_adapter("h", houlsby(), base.in_onnx, bottleneck=4))
    inputs: Mapping[str, np.ndarray] = {name: value.numpy() for name, value in inputs_of(4, 6, 5).items()}
    assert_rows_are_those_of_slots(base.in_onnx, adapters, inputs, tolerance=1e-4)


def test_a_gate_over_tokens_is_refused_at_fused_projections(base: Base) -> None:
    gated = random_adapter("gated", lora(LoraOptions(modules=("qkv",), rank=2, gate=True)), base.in_onnx)
    with pytest.raises(AdapterError, match=r"qkv.*tokens before batch"):
        insert_slots(base.in_onnx, plan_slots([gated], base.in_onnx.sites))


def test_site_maps_keep_fused_projections(base: Base, tmp_path: Path) -> None:
    flow = flow_graph(base.in_torch.flat)
    write_site_map({"torch": discover(flow)}, tmp_path / "sites.json")
    given = sites_of(flow, "torch", read_site_map(tmp_path / "sites.json"))
    assert {(site.name, site.sequence_first) for site in given} == {
        (site.name, site.sequence_first) for site in discover(flow)
    }


def merged(adapter: Adapter, inputs: Mapping[str, Tensor]) -> np.ndarray:
    """Results of the live module with the adapter merged into its weights."""
    module = built()
    weights = dict(module.named_parameters())
    with torch.no_grad():
        for site in adapter.placements:
            low, high = (torch.from_numpy(adapter.weights[f"{site}.lora_{side}.weight"]) for side in "AB")
            name, start = ROWS[site]
            weights[name][start : start + high.shape[1]] += (low @ high).T
        return module(**inputs).numpy()
