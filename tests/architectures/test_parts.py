"""Adapters at the parts of fused layers: LoRA on queries and values that a base computes together with keys.

What must come out is computed by the live model with its layer written out as three: the weights are cut by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_rows import assert_rows_are_those_of_slots
from building import build_bundle
from exported_bases import ExportedBase, by_architecture
from tiny_onnx import random_adapter
from torch import Tensor, nn

from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.errors import AdapterError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import Ia3Options, LoraOptions, ia3, lora
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.slots import plan_slots
from adapter_export.torch_backend.torch_runner import TorchRunner

FUSED: Mapping[str, tuple[str, Mapping[str, list[int]]]] = {
    "gpt2": ("model.h.{n}.attn.c_attn", {"query": [*range(16)], "value": [*range(32, 48)]}),
    "modernbert": ("model.layers.{n}.attn.Wqkv", {"query": [*range(16)], "value": [*range(32, 48)]}),
    "gpt_neox": (
        "model.layers.{n}.attention.query_key_value",  # query, key and value of one head, then of the other
        {"query": [*range(8), *range(24, 32)], "value": [*range(16, 24), *range(40, 48)]},
    ),
}
"""The fused layer, and by hand which of its features are queries and values."""


@pytest.mark.parametrize("name", by_architecture(FUSED))
def test_lora_acts_on_its_part_alone(name: str, exported: Callable[[str], ExportedBase]) -> None:
    made = exported(name)
    adapter = random_adapter("a", lora(LoraOptions(("query", "value"), rank=3, alpha=6)), made.in_onnx)
    assert set(adapter.placements) == {f"layers.{n}.attention.{part}" for n in range(2) for part in ("query", "value")}
    inputs = made.architecture.inputs(3, 5)
    arrays = {key: tensor.numpy() for key, tensor in inputs.items()}
    real = arrays["attention_mask"] == 1
    wanted = with_lora(made.module, *FUSED[name], adapter, inputs)[real]
    (alone,) = TorchRunner(made.in_torch).run(arrays, None).values()
    assert np.abs(wanted - alone[real]).max() > 0.05
    for runner in (TorchRunner(made.in_torch), CutRunner(made.in_onnx)):
        (found,) = runner.run(arrays, adapter).values()
        np.testing.assert_allclose(found[real], wanted, rtol=0, atol=1e-4)


def test_gradients_reach_all_tensors_of_part_adapters(exported: Callable[[str], ExportedBase]) -> None:
    made = exported("gpt_neox")
    model = TorchRunner(made.in_torch).model(random_adapter("a", lora(LoraOptions(rank=3)), made.in_onnx))
    (result,) = model(**made.architecture.inputs(2, 5)).values()
    result.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in model.tensors().values())


def test_a_bundle_proves_itself_at_parts(exported: Callable[[str], ExportedBase], tmp_path: Path) -> None:
    """Every form of the graph, row by row, against the cut base; and each place on its own."""
    base = exported("gpt_neox").in_onnx
    adapters = [
        random_adapter("lora", lora(LoraOptions(("query", "value"), rank=3)), base),
        random_adapter("whole", lora(LoraOptions(("qkv",), rank=2)), base),
    ]
    runner = CutRunner(base)
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 3, "tokens": 5}])
    build_bundle(base, adapters, tmp_path / "bundle", references=runner, cases=cases, bake=["lora"])
    report = prove(plan_check(tmp_path / "bundle"), Reference("base", runner))
    assert report.passed
    assert {site.name for site in report.sites if site.adapter == "lora"} >= set(adapters[0].placements)


def test_parts_cannot_replace_their_common_input(exported: Callable[[str], ExportedBase]) -> None:
    base = exported("gpt_neox").in_onnx
    adapter = random_adapter("a", ia3(Ia3Options((), ("query",))), base)
    with pytest.raises(AdapterError, match="replaces `u`, which the parts of a fused layer read in common, at"):
        plan_slots([adapter], base.sites)


@pytest.mark.parametrize("name", by_architecture(FUSED))
def test_rows_of_a_batch_have_parts_and_wholes_of_their_own(name: str, exported: Callable[[str], ExportedBase]) -> None:
    base = exported(name).in_onnx
    adapters = [
        random_adapter("lora", lora(LoraOptions(("query", "value"), rank=3)), base),
        random_adapter("wider", lora(LoraOptions(("query",), rank=5)), base),
        random_adapter("ia3", ia3(Ia3Options(("key", "value"), ("ffn.down",))), base),
        random_adapter("whole", lora(LoraOptions(("qkv",), rank=2)), base),
    ]
    inputs = exported(name).architecture.arrays(3, 5)
    assert_rows_are_those_of_slots(base, adapters, inputs, tolerance=1e-4)


def with_lora(
    module: nn.Module, path: str, features: Mapping[str, list[int]], adapter: Adapter, inputs: Mapping[str, Tensor]
) -> np.ndarray:
    """The live model, its fused layers with `(alpha/r)·B A u` added to some of their features."""

    def hook(number: int) -> Callable[..., Tensor]:
        def add(_module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
            changed = result.clone()
            for part, indices in features.items():
                down, up = (
                    torch.from_numpy(adapter.weights[f"layers.{number}.attention.{part}.lora_{name}.weight"])
                    for name in "AB"
                )
                changed[..., indices] += 2 * args[0] @ down @ up
            return changed

        return add

    layers = [module.get_submodule(path.format(n=n)) for n in range(2)]
    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    with torch.no_grad():
        result = module(**inputs)
    for handle in handles:
        handle.remove()
    return result.numpy()
