"""Bases of many architectures, each through the whole pipeline: archive, graph, slots, ONNX Runtime.

What must come out is computed by the live torch model with hooks at module paths that a person wrote down; the hooks
know nothing of sites, graphs or slots.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_bases import AdaptedBase, ExportedBase
from small_bases import ARCHITECTURES, Architecture
from tiny_onnx import random_adapter
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.graft.insert import insert_slots
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

SHAPES = ((3, 5), (1, 9))
TOLERANCE = 1e-4
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "bases.md"

# The modules whose results are the `h` of attention and of ffn in layer `n`; each base has two layers.
BERT = ("model.encoder.layer.{n}.attention.output.dense", "model.encoder.layer.{n}.output.dense")
ALBERT = "model.encoder.albert_layer_groups.0.albert_layers.0"  # one module for both layers
LLAMA = ("model.layers.{n}.self_attn.o_proj", "model.layers.{n}.mlp.down_proj")
VIT = ("model.layers.{n}.attention.o_proj", "model.layers.{n}.mlp.fc2")
TORCH_LAYER = ("model.layers.{n}.self_attn", "model.layers.{n}.linear2")
T5_LAYER = "model.encoder.block.{n}.layer"

LISTED = {
    "bert": BERT,
    "roberta": BERT,
    "distilbert": ("model.transformer.layer.{n}.attention.out_lin", "model.transformer.layer.{n}.ffn.lin2"),
    "electra": BERT,
    "albert": (f"{ALBERT}.attention.dense", f"{ALBERT}.ffn_output"),
    "deberta_v2": BERT,
    "modernbert": ("model.layers.{n}.attn.Wo", "model.layers.{n}.mlp.Wo"),
    "mpnet": ("model.encoder.layer.{n}.attention.attn.o", "model.encoder.layer.{n}.output.dense"),
    "gpt2": ("model.h.{n}.attn.c_proj", "model.h.{n}.mlp.c_proj"),
    "gpt_neox": ("model.layers.{n}.attention.dense", "model.layers.{n}.mlp.dense_4h_to_h"),
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma": LLAMA,
    "phi": ("model.layers.{n}.self_attn.dense", "model.layers.{n}.mlp.fc2"),
    "vit": VIT,
    "deit": VIT,
    "whisper_encoder": ("model.layers.{n}.self_attn.out_proj", "model.layers.{n}.fc2"),
    "t5_encoder": (f"{T5_LAYER}.0.SelfAttention.o", f"{T5_LAYER}.1.DenseReluDense.wo"),
    "bart_encoder": ("model.layers.{n}.self_attn.out_proj", "model.layers.{n}.fc2"),
    "torch_post_norm": TORCH_LAYER,
    "torch_pre_norm": TORCH_LAYER,
    "swiglu_block": ("model.{n}.out", "model.{n}.down"),
}

# The older exporter of torch writes the length of its example into the graphs of the other two.
LEGACY = [name for name in LISTED if name not in ("torch_post_norm", "torch_pre_norm")]


def listed(name: str) -> list[tuple[str, str]]:
    attention, ffn = LISTED[name]
    return [
        (f"layers.{n}.{role}", path.format(n=n))
        for n in range(2)
        for role, path in (("attention", attention), ("ffn", ffn))
    ]


@pytest.fixture(scope="module", params=LISTED)
def base(request: pytest.FixtureRequest, exported: Callable[[str], ExportedBase]) -> AdaptedBase:
    made = exported(request.param)
    adapter = random_adapter("a", houlsby(), made.in_onnx, bottleneck=4)
    return AdaptedBase(**vars(made), adapter=adapter)


def names_and_paths(sites: SiteMap) -> list[tuple[str, str | None]]:
    return [(site.name, site.path) for site in sites.sublayers]


def test_the_sites_are_those_that_a_person_lists(base: AdaptedBase) -> None:
    assert names_and_paths(discover(flow_graph(base.in_torch.flat))) == listed(base.name)
    assert names_and_paths(base.in_onnx.sites) == listed(base.name)


def test_both_graphs_have_the_same_linear_layers(base: AdaptedBase) -> None:
    def facts(sites: SiteMap) -> list[tuple[object, ...]]:
        inner = sites.of_roles(("linear", "embeddings"))
        return [(site.name, site.width_in, site.width, site.path, site.parts) for site in inner]

    found = facts(base.in_onnx.sites)
    assert found == facts(discover(flow_graph(base.in_torch.flat)))
    assert len(found) >= 6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_graph_computes_what_the_model_with_hooks_computes(base: AdaptedBase, shape: tuple[int, int]) -> None:
    inputs = ARCHITECTURES[base.name].inputs(*shape)
    wanted = with_hooks(base.module, base.name, base.adapter, inputs)
    assert np.abs(wanted - with_hooks(base.module, base.name, None, inputs)).max() > 0.05
    close(in_onnxruntime(base.in_onnx, base.adapter, inputs), wanted, inputs)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    (in_torch,) = TorchRunner(base.in_torch).run(arrays, base.adapter).values()
    close(in_torch, wanted, inputs)


@pytest.mark.parametrize("name", LEGACY)
def test_a_graph_of_the_older_exporter_does_so_as_well(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    module = architecture.build(0.15)
    export_by_the_older_exporter(module, architecture, tmp_path / "model.onnx")
    base = open_onnx(tmp_path / "model.onnx")
    assert [site.name for site in base.sites.sublayers] == [site for site, _ in listed(name)]
    adapter = random_adapter("a", houlsby(), base, bottleneck=4)
    for shape in SHAPES:
        inputs = architecture.inputs(*shape)
        close(in_onnxruntime(base, adapter, inputs), with_hooks(module, name, adapter, inputs), inputs)


def test_the_documentation_lists_these_architectures() -> None:
    lines = DOCUMENTATION.read_text(encoding="utf-8").partition("## Tested architectures")[2].partition("##")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines() if line.startswith("| `")]
    assert [row[0].split("`")[1] for row in rows] == list(LISTED)
    assert {row[0].split("`")[1] for row in rows if row[2]} == set(LEGACY)


def close(found: np.ndarray, wanted: np.ndarray, inputs: Mapping[str, Tensor]) -> None:
    """At real tokens: what stands at padding means nothing, and fused kernels differ there."""
    real = inputs["attention_mask"].numpy() == 1 if "attention_mask" in inputs else slice(None)
    np.testing.assert_allclose(found[real], wanted[real], rtol=0, atol=TOLERANCE)


def in_onnxruntime(base: OnnxBase, adapter: Adapter, inputs: Mapping[str, Tensor]) -> np.ndarray:
    plan = plan_slots([adapter], base.sites)
    session = open_session(insert_slots(base, plan), base.folder)
    feeds = {name: value.numpy() for name, value in inputs.items()} | dict(slot_tensors(plan, adapter))
    return run_session(session, feeds)[base.outputs[0].name]


def with_hooks(module: nn.Module, name: str, adapter: Adapter | None, inputs: Mapping[str, Tensor]) -> np.ndarray:
    """What the live model computes; a module that is called twice is two sites."""
    sites: dict[str, list[str]] = defaultdict(list)
    for site, path in listed(name) if adapter else ():
        sites[path].append(site)

    def adapt(path: str) -> Callable[..., object]:
        def hook(_module: object, _args: object, result: Tensor | tuple[Tensor, ...]) -> object:
            site = sites[path].pop(0)
            if isinstance(result, tuple):
                return (bottleneck(adapter, site, result[0]), *result[1:])
            return bottleneck(adapter, site, result)

        return hook

    handles = [module.get_submodule(path).register_forward_hook(adapt(path)) for path in sites]
    with torch.no_grad(), unfused():
        result = module(**inputs)
    for handle in handles:
        handle.remove()
    assert not any(sites.values())
    return result.numpy()


def bottleneck(adapter: Adapter, site: str, h: Tensor) -> Tensor:
    """Houlsby et al. 2019, figure 2."""
    down, down_bias, up, up_bias = (
        torch.from_numpy(adapter.weights[f"{site}.{name}"])
        for name in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return h + F.gelu(h @ down + down_bias) @ up + up_bias


@contextmanager
def unfused() -> Iterator[None]:
    """Torch's fused path for whole layers calls none of the modules in them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def export_by_the_older_exporter(module: nn.Module, architecture: Architecture, path: Path) -> None:
    inputs = architecture.inputs(2, 7)
    with warnings.catch_warnings(), unfused():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated calls
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            dynamo=False,
            input_names=list(inputs),
            output_names=["out"],
            dynamic_axes=architecture.axes(),
            opset_version=18,
        )
