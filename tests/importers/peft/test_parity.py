"""Whole models: torch and ONNX Runtime compute with the imported adapter what PEFT computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from peft_bases import peft_base
from peft_folders import CASES, Arrays, adapter_folder, base_folder, expected, import_peft

from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.graft.insert import insert_slots
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base
from adapter_export.torch_backend.torch_runner import TorchRunner

TOLERANCE = 2e-5

# Nothing here has a head of language: what PEFT computed with it is compared at the layers alone.
WITH_OUTPUTS = [name for name in CASES if name != "llama_lora_causal"]


@dataclass(frozen=True)
class Base:
    """A base in both forms."""

    in_torch: TorchBase
    in_onnx: OnnxBase
    runner: TorchRunner


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    @cache
    def make(name: str) -> Base:
        folder = peft_base(tmp_path_factory, name)
        in_torch = load_base(folder / "model.pt")
        return Base(in_torch, open_onnx(folder / "model.onnx"), TorchRunner(in_torch))

    return make


def test_the_cases_are_all_that_peft_wrote() -> None:
    assert len(CASES) > 35


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_both_compute_what_peft_computed(name: str, bases: Callable[[str], Base]) -> None:
    base, record = bases(base_folder(name).name), expected(name)
    inputs = {key.removeprefix("input."): array for key, array in record.items() if key.startswith("input.")}
    inputs = completed(inputs, base.in_torch)
    adapter = imported(name, base)
    found = {"torch": base.runner.run(inputs, adapter), "onnxruntime": in_onnxruntime(base.in_onnx, adapter, inputs)}
    for runner, outputs in found.items():
        output, wanted = compared(record, outputs)
        for dtype in ("float32", "float64"):
            np.testing.assert_allclose(output, wanted[dtype], rtol=0, atol=TOLERANCE, err_msg=f"{runner}, {dtype}")


@pytest.mark.parametrize("name", ["bert_lora", "bert_ia3", "gpt2_lora", "t5_lora", "albert_lora"])
def test_onnx_and_torch_find_one_adapter(name: str, bases: Callable[[str], Base]) -> None:
    base = bases(base_folder(name).name)
    in_onnx = import_peft(adapter_folder(name), base.in_onnx.sites, base=base.in_onnx.fingerprint, name="a").adapter
    in_torch = imported(name, base)
    assert in_onnx.placements == in_torch.placements
    assert all(np.array_equal(in_onnx.weights[key], in_torch.weights[key]) for key in in_torch.weights)


def imported(name: str, base: Base) -> Adapter:
    sites: SiteMap = base.runner.sites
    tensors = {key: value.detach().numpy() for key, value in base.in_torch.program.state_dict.items()}
    return import_peft(
        adapter_folder(name), sites, base=base.in_torch.fingerprint, name="a", base_tensor=tensors.get
    ).adapter


def completed(inputs: Arrays, base: TorchBase) -> Arrays:
    """What the base takes beside what PEFT's model was given: the types of the tokens, all 0."""
    missing = [record.name for record in base.inputs if record.name not in inputs]
    assert set(missing) <= {"token_type_ids"}
    return inputs | {name: np.zeros_like(inputs["input_ids"]) for name in missing}


def in_onnxruntime(base: OnnxBase, adapter: Adapter, inputs: Arrays) -> Arrays:
    plan = plan_slots([adapter], base.sites)
    session = open_session(insert_slots(base, plan), base.folder)
    return run_session(session, inputs | dict(slot_tensors(plan, adapter)))


def compared(record: Arrays, outputs: Arrays) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An output and what it should be, at real tokens: what stands at padding means nothing."""
    output = next(key.partition(".")[2] for key in record if key.startswith("float64."))
    name = "token_logits" if output == "logits" and "token_logits" in outputs else output
    wanted = {dtype: record[f"{dtype}.{output}"] for dtype in ("float32", "float64")}
    masks = [key for key in ("input.decoder_attention_mask", "input.attention_mask") if key in record]
    if outputs[name].ndim == 2 or not masks:
        return outputs[name], wanted
    real = record[masks[0]] == 1
    return outputs[name][real], {dtype: array[real] for dtype, array in wanted.items()}
