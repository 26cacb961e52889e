"""The tiny Llama of `examples/genai`, in float32 and after rounding to 4 bits, and what onnxruntime-genai writes."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "genai"

PROMPT = [5, 9, 33, 71]

_BUILDER = "onnxruntime_genai.models.builder"
_FIRST_BITS = 0x0F
_ZERO_POINT = 8


def example(name: str) -> ModuleType:
    """A program of the example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpacked_weights(model: ir.Model) -> dict[str, np.ndarray]:
    """The weights [out, in] of all `MatMulNBits`, 4 bits, symmetric, by the name of the module that they belong to."""
    weights = {}
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            packed, scales = (value.const_value.numpy() for value in node.inputs[1:3])
            pairs = np.stack([packed & _FIRST_BITS, packed >> 4], -1).reshape(*packed.shape[:2], -1)
            blocks = (pairs.astype(np.float32) - _ZERO_POINT) * scales.reshape(*packed.shape[:2], 1)
            name = node.inputs[1].name.removesuffix(".MatMul.weight_Q4")
            weights[name] = blocks.reshape(len(packed), -1)[:, : node.attributes.get_int("K")]
    return weights


def save_rounded(llama: Path, rounded: ir.Model, folder: Path) -> None:
    """Save the model of a folder with the weights of a graph that was built from it in 4 bits."""
    shutil.copytree(llama, folder)
    model = LlamaForCausalLM.from_pretrained(llama)
    weights = unpacked_weights(rounded)
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith("attn.qkv_proj"):
                attention = model.get_submodule(name.replace("attn.qkv_proj", "self_attn"))
                parts = [attention.q_proj, attention.k_proj, attention.v_proj]
            else:
                parts = [model.get_submodule(name.replace(".attn.", ".self_attn."))]
            rows = np.split(weight, np.cumsum([part.out_features for part in parts])[:-1])
            for part, values in zip(parts, rows, strict=True):
                part.weight.copy_(torch.from_numpy(values))
    model.save_pretrained(folder)


def run_builder(source: Path, folder: Path, precision: str, *options: str) -> None:
    """Run onnxruntime-genai's builder in this process, which has imported torch, with extra options `KEY=VALUE`."""
    extra = ["--extra_options", *options] if options else []
    given = ["-m", str(source), "-i", str(source), "-o", str(folder), "-p", precision, "-e", "cpu", *extra]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the builder's own
        patch.setattr(sys, "argv", [_BUILDER, *given])
        runpy.run_module(_BUILDER, run_name="__main__")


@dataclass(frozen=True)
class Text:
    """A generated text: its tokens, and the logits [tokens, words] by which each was chosen."""

    tokens: list[int]
    logits: np.ndarray


def in_genai(folder: Path, plan: Sequence[str | None]) -> Text:
    """Generate with onnxruntime-genai, which takes no adapter off again."""
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    adapters = genai.Adapters(model)
    for name in {name for name in plan if name is not None}:
        adapters.load(str(folder / "adapters" / f"{name}.onnx_adapter"), name)
    options = genai.GeneratorParams(model)
    options.set_search_options(do_sample=False, max_length=len(PROMPT) + len(plan))
    generator = genai.Generator(model, options)
    chosen = []
    for index, name in enumerate(plan):
        if name is not None and name != (plan[index - 1] if index else None):
            generator.set_active_adapter(adapters, name)
        if index == 0:
            generator.append_tokens(np.array([PROMPT], np.int32))
        chosen.append(np.array(generator.get_logits()).reshape(-1))
        generator.generate_next_token()
    return Text([int(token) for token in generator.get_sequence(0)][len(PROMPT) :], np.array(chosen))
