"""At single layers: the NumPy reference computes in float64 what PEFT computed in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peft_folders import CASES, Arrays, adapter_folder, base_folder, expected, import_peft, linear_site, named_layers
from safetensors.numpy import load_file

from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.evaluate_adapter import evaluate, evaluate_head
from adapter_export.sites.site import SiteMap

# Their recorded layers are compared as wholes, in `test_parity.py`: a pooler is part of the head, the outputs of base
# layers were recorded with their trained biases, images have other paths in their files than in the model, and changes
# of weights were computed in float64 and rounded once; the list of GPT-2 does not show its head.
ELSEWHERE = (
    "bert_lora_classify_pooler",
    "bert_lora_bias_lora_only",
    "bert_lora_bias_all",
    "vit",
    "deit",
    "change_",
    "tied",
    "gpt2_lora_tag",
)

CONV1D = ("gpt2",)
"""Bases whose layers store [in, out]."""


def recorded(name: str) -> dict[str, Arrays]:
    """Return recorded values by layer."""
    layers: dict[str, Arrays] = {}
    for key, array in expected(name).items():
        if key.startswith("layer."):
            path, _, value = key.removeprefix("layer.").rpartition(".")
            layers.setdefault(path, {})[value] = array
    return layers


def listed_sites(folder: Path) -> tuple[SiteMap, Arrays]:
    """A site for every matrix of the base, as wide as it is."""
    tensors = load_file(folder / "model.safetensors")
    matrices = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    shapes = {path: tensor.shape if folder.name in CONV1D else tensor.shape[::-1] for path, tensor in matrices.items()}
    return SiteMap(tuple(linear_site(f"x.0.{path}", path, *shape) for path, shape in shapes.items()), "f", 32), tensors


def adapter_of(name: str) -> Adapter:
    sites, tensors = listed_sites(base_folder(name))
    layer_at = named_layers(tensors.get, in_first=base_folder(name).name in CONV1D)
    return import_peft(
        adapter_folder(name), sites, base="sha256:0", name="a", base_tensor=tensors.get, layer_at=layer_at
    ).adapter


def site_of(adapter: Adapter, path: str) -> str:
    (site,) = (site for site in adapter.placements if f".{path}".endswith(site.removeprefix("x.0")))
    return site


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(ELSEWHERE)])
def test_a_layer_computes_what_peft_computed(name: str) -> None:
    adapter = adapter_of(name)
    layers = recorded(name)
    assert layers
    for path, values in layers.items():
        site = site_of(adapter, path)
        graph = adapter.graphs[adapter.placements[site].graph]
        found = evaluate(graph, values, adapter.parameters(site))
        wanted = values["scaled"] if graph.replaces == "u" else values["result"]
        assert np.abs(wanted - values[graph.replaces]).max() > 0.05
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)


HEADS = [name for name in CASES if "head.hidden" in expected(name)]
UNLISTED = (
    "vit",
    "deit",
    "bert_lora_bias_all",
    "gpt2_lora_tag",
)  # paths that differ, and biases of norms that are not in the list


@pytest.mark.parametrize("name", [name for name in HEADS if not name.startswith(UNLISTED)])
def test_a_head_computes_what_peft_computed(name: str) -> None:
    record = expected(name)
    mask = record["input.attention_mask"]
    found = evaluate_head(adapter_of(name), record["head.hidden"], mask)
    # a pooler that training changed was put together in float64 and rounded once
    tolerance = 1e-6 if name in ("bert_lora_classify_pooler", "change_oft") else 1e-10
    np.testing.assert_allclose(found, record["float64.logits"], rtol=0, atol=tolerance)


def test_factors_by_pattern_are_those_of_peft() -> None:
    """`uery` is the end of no whole name, and the first pattern that matches counts."""
    adapter = adapter_of("bert_lora_patterns")

    def found(layer: int, module: str) -> tuple[int, float]:
        placement = adapter.placements[f"x.0.encoder.layer.{layer}.attention.self.{module}"]
        factors = [node.attributes["factor"] for node in adapter.graphs[placement.graph].nodes if node.op == "scale"]
        return (placement.widths["r"], *(factors or [1.0]))

    assert found(0, "query") == (2, 6 / 2)
    assert found(1, "query") == (4, 1 / 4)
    assert found(0, "key") == found(1, "key") == (3, 6 / 3)
    assert found(0, "value") == (4, 10.5 / 4)
    assert found(1, "value") == (6, 10.5 / 6)
