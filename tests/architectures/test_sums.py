"""Residual sums of every form, and streams that start from constants or change their width, with adapters inside.

What must come out is computed by the same modules with the adapter in each sum, or with hooks on them; neither
knows of sites, graphs or slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from acting import bottlenecks, with_hooks
from exported_bases import ExportedBase
from partial_bases import Block
from slotted import in_slots
from small_bases import stream
from tiers import some_quick
from tiny_onnx import random_adapter
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.sites.discover import discover
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

TOLERANCE = 1e-4
EVERYWHERE = houlsby.changed(sublayers=("attention", "cross_attention", "ffn"))

Adapt = Callable[[Tensor], Tensor]


class Gated(Block):
    """A block whose sum may have a gate that is computed from the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.scale = nn.Linear(16, 16), nn.Parameter(torch.ones(16))
        self.register_buffer("identity", torch.eye(16))

    def open(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x))

    def flat_sum(self, x: Tensor, h: Tensor) -> Tensor:
        """`x + h` inside a product with the matrix of ones and zeros."""
        return torch.addmm(x.flatten(0, 1), h.flatten(0, 1), self.identity).view_as(x)


FORMS: Mapping[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "sub": (
        lambda _, x, start, h: x - h,
        lambda _, x, start, h, adapt: x - adapt(h),
    ),
    "alpha": (
        lambda _, x, start, h: torch.add(x, h, alpha=0.5),
        lambda _, x, start, h, adapt: x + adapt(h * 0.5),
    ),
    "rsub": (
        lambda _, x, start, h: torch.rsub(h, x, alpha=0.5),
        lambda _, x, start, h, adapt: x - adapt(h * 0.5),
    ),
    "lerp": (
        lambda _, x, start, h: torch.lerp(x, h, 0.25),
        lambda _, x, start, h, adapt: 0.75 * x + 0.25 * adapt(h),
    ),
    "addcmul": (
        lambda block, x, start, h: torch.addcmul(x, h, block.scale),
        lambda block, x, start, h, adapt: x + adapt(h * block.scale),
    ),
    "addcdiv": (
        lambda block, x, start, h: torch.addcdiv(x, h, block.scale + 3),
        lambda block, x, start, h, adapt: x + adapt(h / (block.scale + 3)),
    ),
    "stack and sum": (
        lambda _, x, start, h: torch.stack([x, h]).sum(0),
        lambda _, x, start, h, adapt: x + adapt(h),
    ),
    "cat and mean": (
        lambda _, x, start, h: torch.cat([x.unsqueeze(-1), h.unsqueeze(-1)], -1).mean(-1),
        lambda _, x, start, h, adapt: (x + adapt(h)) / 2,
    ),
    "gate": (
        lambda block, x, start, h: block.open(x) * x + (1 - block.open(x)) * h,
        lambda block, x, start, h, adapt: block.open(x) * x + adapt((1 - block.open(x)) * h),
    ),
    "gated difference": (
        lambda block, x, start, h: x + block.open(x) * (h - x),
        lambda block, x, start, h, adapt: x + block.open(x) * (adapt(h) - x),
    ),
    "addmm": (
        lambda block, x, start, h: block.flat_sum(x, h),
        lambda _, x, start, h, adapt: x + adapt(h),
    ),
    "start": (
        lambda _, x, start, h: 0.7 * x + 0.4 * start + h,
        lambda _, x, start, h, adapt: 0.7 * x + 0.4 * start + adapt(h),
    ),
    "start first": (
        lambda _, x, start, h: 0.7 * x + (0.4 * start + h),
        lambda _, x, start, h, adapt: 0.7 * x + 0.4 * start + adapt(h),
    ),
}
"""Sums in bases, and the same with an adapter on the block, `x`, the stream's start and `h`."""


SUBLAYERS = [f"layers.{number // 2}.{('attention', 'ffn')[number % 2]}" for number in range(len(FORMS))]


class EveryForm(nn.Module):
    """One sublayer for each form of sum, attention and ffn in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Gated() for _ in SUBLAYERS])

    def forward(self, values: Tensor) -> Tensor:
        return self.compute(values, None)

    def compute(self, values: Tensor, adapts: Mapping[str, Adapt] | None) -> Tensor:
        x = values
        for block, (base, adapted), name in zip(self.blocks, FORMS.values(), SUBLAYERS, strict=True):
            h = block.ffn(x) if name.endswith("ffn") else block.attention(x)
            x = base(block, x, values, h) if adapts is None else adapted(block, x, values, h, adapts[name])
            x = F.layer_norm(x, (16,))  # or differences grow from block to block
        return x


HIERA = """
    layers.0.attention  model.encoder.stages.0.layers.0.attn
    layers.0.ffn        model.encoder.stages.0.layers.0.mlp
    layers.1.attention  model.encoder.stages.1.layers.0.attn
    layers.1.ffn        model.encoder.stages.1.layers.0.mlp
    layers.2.attention  model.encoder.stages.1.layers.1.attn
    layers.2.ffn        model.encoder.stages.1.layers.1.mlp
"""
PERCEIVER = """
    layers.0.cross_attention  model.encoder.cross_attention.attention.output.dense
    layers.0.ffn              model.encoder.cross_attention.mlp.dense2
    layers.1.attention        model.encoder.self_attends.0.attention.output.dense
    layers.1.ffn              model.encoder.self_attends.0.mlp.dense2
    layers.2.attention        model.encoder.self_attends.1.attention.output.dense
    layers.2.ffn              model.encoder.self_attends.1.mlp.dense2
"""
DETR = """
    encoder.layers.0.attention        model.encoder.layers.0.self_attn.o_proj
    encoder.layers.0.ffn              model.encoder.layers.0.mlp.fc2
    decoder.layers.0.attention        model.decoder.layers.0.self_attn.o_proj
    decoder.layers.0.cross_attention  model.decoder.layers.0.encoder_attn.o_proj
    decoder.layers.0.ffn              model.decoder.layers.0.mlp.fc2
"""
LISTED = {"hiera": HIERA, "perceiver": PERCEIVER, "detr": DETR}
"""The sublayers of a base, each with the module whose result is its `h`."""


def computed(base: TorchBase, graph: OnnxBase, adapter: Adapter, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Results of ONNX Runtime and torch for a base with an adapter."""
    arrays = {name: value.numpy() for name, value in inputs.items()}
    found = in_slots(graph, adapter)(arrays), TorchRunner(base).run(arrays, adapter)
    return [outputs[base.outputs[0].name] for outputs in found]


def test_sums_of_every_form_are_followed(tmp_path: Path) -> None:
    architecture = stream(EveryForm)
    module = architecture.build(0.2)
    save_base(module, architecture.inputs(2, 7), tmp_path / "model.pt", axes=architecture.axes())
    base = load_base(tmp_path / "model.pt")
    export_onnx(base, tmp_path / "model.onnx")
    graph = open_onnx(tmp_path / "model.onnx")
    for sites in (discover(flow_graph(base.flat)), graph.sites):
        assert [site.name for site in sites.sublayers] == SUBLAYERS
        assert str(sites.coverage) == f"{len(FORMS)} of {len(FORMS)} sublayers"
    adapter = random_adapter("a", houlsby(), graph, bottleneck=4)
    for shape in ((3, 5), (1, 1)):
        inputs = architecture.inputs(*shape)
        with torch.no_grad():
            expected = module.model.compute(inputs["values"], bottlenecks(adapter)).numpy()
            assert np.abs(expected - module(inputs["values"]).numpy()).max() > 0.05
        for found in computed(base, graph, adapter, inputs):
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", some_quick(LISTED))
def test_streams_may_start_from_constants_or_change_width(name: str, exported: Callable[[str], ExportedBase]) -> None:
    base = exported(name)
    listed = [tuple(line.split()) for line in LISTED[name].strip().splitlines()]
    for sites in (base.torch_sites, base.in_onnx.sites):
        assert [site.name for site in sites.sublayers] == [site for site, _ in listed]
        assert sites.coverage.is_complete
    adapter = random_adapter("a", EVERYWHERE, base.in_onnx, bottleneck=4)
    inputs = base.architecture.inputs(3, 7)
    expected, plain = (with_hooks(base.module, listed, each, lambda: base.module(**inputs)) for each in (adapter, None))
    assert np.abs(expected - plain).max() > 0.05
    for found in computed(base.in_torch, base.in_onnx, adapter, inputs):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
