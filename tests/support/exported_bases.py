"""A base of one of many architectures in every form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.torch_backend.base.torch_base import TorchBase


@dataclass(frozen=True)
class ExportedBase:
    """A base in every form; nobody changes it."""

    name: str
    module: nn.Module
    in_torch: TorchBase
    in_onnx: OnnxBase


@dataclass(frozen=True)
class AdaptedBase(ExportedBase):
    """A base in every form, and an adapter with random weights at all of its sublayers."""

    adapter: Adapter
