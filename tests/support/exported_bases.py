"""A base of one of many architectures in every form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from adapter_export.onnx.base import OnnxBase
from adapter_export.torch.base import TorchBase


@dataclass(frozen=True)
class ExportedBase:
    """A base in every form; nobody changes it."""

    name: str
    module: nn.Module
    in_torch: TorchBase
    in_onnx: OnnxBase
