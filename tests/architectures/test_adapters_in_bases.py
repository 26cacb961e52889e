"""Bases of many architectures, each through the whole pipeline: archive, graph, slots, ONNX Runtime.

What must come out is computed by the live torch model with hooks at module paths that a person wrote down; the hooks
know nothing of sites, graphs or slots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from acting import with_hooks
from exported_bases import ExportedBase, by_architecture
from slotted import in_slots
from tiny_onnx import random_adapter
from torch import Tensor

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.torch_runner import TorchRunner

SHAPES = ((3, 5), (1, 9))
TOLERANCE = 1e-4
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"

# The modules whose results are the `h` of attention and of ffn in layer `n`; some bases have one layer, as theirs are
# like those of another.
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

OF_ONE_LAYER = {"roberta", "electra", "deberta_v2", "mpnet", "qwen2", "gemma", "phi", "deit"} | {
    f"{name}_encoder" for name in ("whisper", "t5", "bart")
}

# The older exporter of torch writes the length of its example into the graphs of the other two.
LEGACY = [name for name in LISTED if name not in ("torch_post_norm", "torch_pre_norm")]


def listed(name: str) -> list[tuple[str, str]]:
    attention, ffn = LISTED[name]
    return [
        (f"layers.{n}.{role}", path.format(n=n))
        for n in range(1 if name in OF_ONE_LAYER else 2)
        for role, path in (("attention", attention), ("ffn", ffn))
    ]


@pytest.fixture(scope="module", params=by_architecture(LISTED))
def base(request: pytest.FixtureRequest, exported: Callable[[str], ExportedBase]) -> ExportedBase:
    return exported(request.param)


def hooked(base: ExportedBase, adapter: Adapter | None, inputs: Mapping[str, Tensor]) -> np.ndarray:
    return with_hooks(base.module, listed(base.name), adapter, lambda: base.module(**inputs))


def test_the_sites_are_those_that_a_person_lists(base: ExportedBase) -> None:
    for sites in (base.torch_sites, base.in_onnx.sites):
        assert [(site.name, site.path) for site in sites.sublayers] == listed(base.name)


def test_both_graphs_have_the_same_linear_layers(base: ExportedBase) -> None:
    def facts(sites: SiteMap) -> list[tuple[object, ...]]:
        inner = sites.of_roles(("linear", "embeddings"))
        return [(site.name, site.width_in, site.width, site.path, site.parts) for site in inner]

    found = facts(base.in_onnx.sites)
    assert found == facts(base.torch_sites)
    assert len(found) >= 4


def test_the_graph_computes_what_the_model_with_hooks_computes(base: ExportedBase) -> None:
    adapter = random_adapter("a", houlsby(), base.in_onnx, bottleneck=4)
    run = in_slots(base.in_onnx, adapter)
    for shape in SHAPES:
        inputs = base.architecture.inputs(*shape)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        wanted = hooked(base, adapter, inputs)
        assert np.abs(wanted - hooked(base, None, inputs)).max() > 0.05
        close(run(arrays)[base.in_onnx.outputs[0].name], wanted, inputs)
        (in_torch,) = TorchRunner(base.in_torch).run(arrays, adapter).values()
        close(in_torch, wanted, inputs)


@pytest.mark.parametrize("name", by_architecture(LEGACY))
def test_a_graph_of_the_older_exporter_matches_the_model_with_hooks(
    name: str, exported: Callable[[str], ExportedBase], tmp_path: Path
) -> None:
    """It records neither shapes nor module paths."""
    base = exported(name)
    graph = base.of_older_exporter(tmp_path)
    found = [(site.name, site.width, site.path) for site in graph.sites.sublayers]
    assert found == [(site, 16, None) for site, _ in listed(name)]
    assert graph.sites.final == "out" or name in ("gpt2", "vit", "deit")  # which reshape it, or normalise it twice
    adapter = random_adapter("a", houlsby(), graph, bottleneck=4)
    run = in_slots(graph, adapter)
    for shape in SHAPES:
        inputs = base.architecture.inputs(*shape)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        close(run(arrays)["out"], hooked(base, adapter, inputs), inputs)


def test_the_documentation_lists_these_architectures() -> None:
    section = DOCUMENTATION.read_text(encoding="utf-8").partition("## Tested architectures")[2].partition("\n##")[0]
    both, current = (set(re.findall(r"`(\w+)`", part)) for part in section.split("\n- With the "))
    assert both == set(LEGACY)
    assert current == set(LISTED) - set(LEGACY)


def close(found: np.ndarray, wanted: np.ndarray, inputs: Mapping[str, Tensor]) -> None:
    """Compare at real tokens: values at padding are meaningless, and fused kernels differ there."""
    real = inputs["attention_mask"].numpy() == 1 if "attention_mask" in inputs else slice(None)
    np.testing.assert_allclose(found[real], wanted[real], rtol=0, atol=TOLERANCE)
