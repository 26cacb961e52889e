"""The same adapter in another file is the same adapter; its factor goes into the weights at export."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft_folders import TENSORS, Arrays, adapter_folder, bare_bert, changed, import_peft
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from tiers import examples

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.slot_form import fold_weights, inference_form
from adapter_export.sites.site import SiteMap

BODY = "base_model.model."


def imported(folder: Path, sites: SiteMap | None = None) -> Adapter:
    bert, tensors = bare_bert()
    options = {"base_tensor": tensors.get}
    return import_peft(folder, sites or bert, base="sha256:0", name="a", **options).adapter


def alike(one: Adapter, other: Adapter) -> None:
    assert one.placements == other.placements
    assert one.graphs == other.graphs
    assert one.weights.keys() == other.weights.keys()
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


def prefixed(tensors: Arrays, prefix: str) -> Arrays:
    return {f"{BODY}{prefix}.{name.removeprefix(BODY)}": tensor for name, tensor in tensors.items()}


@examples(12)
@given(
    name=st.sampled_from(["bert_lora", "bert_lora_bias", "bert_ia3"]),
    prefix=st.sampled_from(["", "bert", "model.bert", "deep.er.still"]),
    pickled=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_order_prefix_and_file_type_change_nothing(name: str, prefix: str, pickled: bool, seed: int) -> None:
    with TemporaryDirectory() as temporary:
        folder = changed(adapter_folder(name), Path(temporary) / "a")
        tensors = load_file(folder / TENSORS)
        tensors = prefixed(tensors, prefix) if prefix else tensors
        names = list(tensors)
        random.Random(seed).shuffle(names)
        if pickled:
            (folder / TENSORS).unlink()
            torch.save({name: torch.from_numpy(tensors[name]) for name in names}, folder / "adapter_model.bin")
        else:
            changed(folder, Path(temporary) / "b", tensors=lambda _: {name: tensors[name] for name in names})
            folder = Path(temporary) / "b"
        alike(imported(folder), imported(adapter_folder(name)))


def test_the_pickled_folder_of_peft_has_tensors_of_its_own() -> None:
    pickled = imported(adapter_folder("bert_lora_bin"))
    assert pickled.placements == imported(adapter_folder("bert_lora")).placements


@pytest.mark.parametrize("name", ["bert_lora_bfloat16", "bert_lora_float16"])
def test_narrow_types_are_widened_without_loss(name: str) -> None:
    tensors = load_torch(adapter_folder(name) / TENSORS)
    adapter = imported(adapter_folder(name))
    wanted = tensors[f"{BODY}encoder.layer.1.attention.self.value.lora_B.weight"].float().numpy().T
    np.testing.assert_array_equal(adapter.weights["layers.1.attention.value.lora_B.weight"], wanted)


@pytest.mark.parametrize(
    ("name", "factor"), [("bert_lora", 6 / 4), ("bert_lora_rslora", 6 / 2), ("bert_lora_bias", 6 / 4)]
)
def test_the_factor_goes_into_the_second_matrix_at_export(name: str, factor: float) -> None:
    adapter = imported(adapter_folder(name))
    (graph,) = adapter.graphs.values()
    assert "scale" not in [node.op for node in inference_form(graph).nodes]
    for site in adapter.placements:
        plain = adapter.parameters(site)
        folded = fold_weights(graph, plain)
        assert folded.keys() == plain.keys()
        for parameter, tensor in plain.items():
            wanted = tensor if "lora_A" in parameter else (tensor.astype(np.float64) * factor).astype(np.float32)
            np.testing.assert_array_equal(folded[parameter], wanted)


def test_calls_of_one_module_are_sites_with_the_same_weights(tmp_path: Path) -> None:
    bert, _ = bare_bert()
    first = [site for site in bert if site.layer == 0]
    second = [replace(site, name=site.name.replace("layers.0", "layers.1"), layer=1) for site in first]
    folder = changed(
        adapter_folder("bert_lora"),
        tmp_path / "a",
        tensors=lambda tensors: {name: tensor for name, tensor in tensors.items() if ".layer.0." in name},
    )
    adapter = imported(folder, SiteMap((*first, *second), "final", 32))
    modules = ("attention.query", "attention.value")
    assert list(adapter.placements) == [f"layers.{layer}.{module}" for layer in range(2) for module in modules]
    for module in modules:
        one, other = (adapter.parameters(f"layers.{layer}.{module}") for layer in range(2))
        assert all(np.array_equal(one[name], other[name]) for name in one)
