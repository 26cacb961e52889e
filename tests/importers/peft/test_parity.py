"""Whole models: torch and ONNX Runtime compute with the imported adapter what PEFT computed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from peft_bases import peft_base, peft_base_in_torch
from peft_folders import CASES, Arrays, adapter_folder, base_folder, expected, import_peft
from slotted import Slotted
from tiers import some_quick

from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.base_layers import layer_finder
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.architecture_head import architecture_head
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.torch_runner import TorchRunner

TOLERANCE = 2e-5

# There is no language head here: PEFT's results with one are compared only at the layers.
WITH_OUTPUTS = [name for name in CASES if name != "llama_lora_causal"]


BASES = sorted({base_folder(name).name for name in WITH_OUTPUTS})


def test_the_cases_are_all_that_peft_wrote() -> None:
    assert len(CASES) > 35


@pytest.mark.parametrize("base", some_quick(BASES, "bert", "gpt2"))
def test_torch_and_onnxruntime_compute_what_peft_computed(base: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In one graph with slots for all of them."""
    folder = peft_base(tmp_path_factory, base)
    in_torch, in_onnx = peft_base_in_torch(folder, base), open_onnx(folder / "model.onnx")
    runner = TorchRunner(in_torch)
    adapters = {name: imported(name, runner.sites, in_torch) for name in WITH_OUTPUTS if base_folder(name).name == base}
    for name in {"bert_lora", "bert_ia3", "gpt2_lora", "t5_lora", "albert_lora"} & adapters.keys():
        same = imported(name, in_onnx.sites, in_onnx)
        assert same.placements == adapters[name].placements
        assert all(np.array_equal(same.weights[key], tensor) for key, tensor in adapters[name].weights.items())
    slotted = Slotted(in_onnx, list(adapters.values()))
    for name, adapter in adapters.items():
        record = expected(name)
        inputs = {key.removeprefix("input."): array for key, array in record.items() if key.startswith("input.")}
        inputs = completed(inputs, in_torch)
        found = {"torch": runner.run(inputs, adapter), "onnxruntime": slotted.run(inputs, adapter)}
        for computed, outputs in found.items():
            output, wanted = compared(record, outputs, adapter)
            for dtype in ("float32", "float64"):
                what = f"{name}, {computed}, {dtype}"
                np.testing.assert_allclose(output, wanted[dtype], rtol=0, atol=TOLERANCE, err_msg=what)


def imported(name: str, sites: SiteMap, base: TorchBase | OnnxBase) -> Adapter:
    return import_peft(
        adapter_folder(name),
        sites,
        base=base.fingerprint,
        name="a",
        base_tensor=base.tensor,
        layer_at=layer_finder(base),
        head_of=partial(architecture_head, base) if isinstance(base, TorchBase) else lambda *_: None,
    ).adapter


def completed(inputs: Arrays, base: TorchBase) -> Arrays:
    """Add further inputs of the base: token types, all 0."""
    missing = [record.name for record in base.inputs if record.name not in inputs]
    assert set(missing) <= {"token_type_ids"}
    return inputs | {name: np.zeros_like(inputs["input_ids"]) for name in missing}


def compared(record: Arrays, outputs: Arrays, adapter: Adapter) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return an output and its expected values at real tokens; values at padding are meaningless."""
    output = next(key.partition(".")[2] for key in record if key.startswith("float64."))
    name = adapter.head.output if output == "logits" and adapter.head is not None else output
    wanted = {dtype: record[f"{dtype}.{output}"] for dtype in ("float32", "float64")}
    masks = [key for key in ("input.decoder_attention_mask", "input.attention_mask") if key in record]
    if outputs[name].ndim == 2 or not masks:
        return outputs[name], wanted
    real = record[masks[0]] == 1
    return outputs[name][real], {dtype: array[real] for dtype, array in wanted.items()}
