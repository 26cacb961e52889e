"""The tiny Llama of `examples/genai`, in float32 and as it is after rounding its weights to 4 bits."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import torch
from transformers import LlamaForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "genai"

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
