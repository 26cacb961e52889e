"""The weights that a bundle's graph computes with, as float32 for transformers: it has rounded them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

Use = Literal["table", "product", "any"]

NEAREST: Mapping[Use, float] = {"table": 0.4, "product": 0.4, "any": 0.01}
"""Maximum distance of a rounded copy, relative to the weight: 4 bits come to 0.1, and unrelated matrices to 1.4.

Those of float16 include weights of norms, which are all near 1.
"""


@dataclass(frozen=True)
class Constant:
    """A rounded matrix of a graph, and whether rows are looked up in it or it is multiplied."""

    array: np.ndarray
    use: Use


def give_rounded_weights(module: nn.Module, graph: Path) -> None:
    """Replace the weights of a module by their rounded copies in a graph; those without a copy stay as they are."""
    untie(module)
    constants = list(graph_constants(graph))
    with torch.no_grad():
        for path, part in module.named_modules():
            if "pooler" in path:
                continue  # heads read it, and a head is in float32
            wanted: Use = "table" if isinstance(part, nn.Embedding) else "product"
            for parameter in part.parameters(recurse=False):
                copy = _rounded_copy(parameter.numpy(), [each for each in constants if each.use in (wanted, "any")])
                if copy is not None:
                    parameter.copy_(torch.from_numpy(copy))


def untie(module: nn.Module) -> None:
    """Give each part of a module weights of its own: a graph rounds a table by rows, and a product by columns."""
    taken = set[int]()
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.data_ptr() in taken:
                setattr(part, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            taken.add(parameter.data_ptr())


def _rounded_copy(weight: np.ndarray, constants: list[Constant]) -> np.ndarray | None:
    """Return the nearest constant in the weight's layout, or `None` if none is near."""
    size = float(np.linalg.norm(weight)) or 1.0
    best, copy = 1.0, None
    for constant in constants:
        for array in (constant.array, constant.array.T):
            if array.shape == weight.shape:
                distance = float(np.linalg.norm(array - weight)) / size / NEAREST[constant.use]
                best, copy = min((best, copy), (distance, array), key=lambda pair: pair[0])
    return None if copy is None else np.ascontiguousarray(copy, np.float32)


def graph_constants(graph: Path) -> Iterator[Constant]:
    """Yield the rounded matrices of a graph, and in float16 all of its tensors."""
    model = onnx.load(graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            yield Constant(_unpacked(node, arrays), "product")
    for name, array in arrays.items():
        stem = name.removesuffix("_quantized")
        if name.endswith(".int8"):
            yield Constant(array.astype(np.float32) * arrays[f"{name.removesuffix('.int8')}.step"], "product")
        elif stem != name and f"{stem}_scale" in arrays:
            centred = array.astype(np.float32) - arrays[f"{stem}_zero_point"].astype(np.float32)
            yield Constant(centred * arrays[f"{stem}_scale"], "table")
        elif array.dtype == np.float16:
            yield Constant(array.astype(np.float32), "any")


def _unpacked(node: onnx.NodeProto, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the weight [out, in] of a `MatMulNBits`: blocks of 4 or 8 bits, each with a scale and a zero point."""
    settings = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    packed, scales = (arrays[name] for name in node.input[1:3])
    zeros = arrays.get(node.input[3]) if len(node.input) > 3 else None
    bits, rows = settings["bits"], settings["N"]
    codes = _codes(packed.reshape(rows, -1), bits).reshape(rows, -1, settings["block_size"])
    steps = scales.reshape(rows, -1, 1)
    middle = np.float32(1 << (bits - 1))
    offsets = middle if zeros is None else _codes(zeros.reshape(rows, -1), bits)[:, : steps.shape[1], None]
    return ((codes - offsets) * steps).reshape(rows, -1)[:, : settings["K"]].astype(np.float32)


def _codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """Unpack bytes [rows, bytes] into codes [rows, codes]; in 4 bits, the low half of a byte is the first."""
    if bits == 8:
        return packed.astype(np.float32)
    return np.stack([packed & 0x0F, packed >> 4], -1).reshape(len(packed), -1).astype(np.float32)
