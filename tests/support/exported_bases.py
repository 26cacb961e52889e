"""A base of one of many architectures in every form."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from base_files import write_graph
from kept import kept
from partial_bases import BASES
from small_bases import ARCHITECTURES, Architecture
from tiers import some_quick
from torch import Tensor, nn

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base
from adapter_export.torch_backend.fx_view import flow_graph

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

STD = 0.15
"""The standard deviation of the weights."""


QUICK = ("bert", "gpt2", "gpt_neox", "llama", "vit")
"""The architectures of the quick tier: norms behind and before sublayers, RMS norms, parallel sublayers, images."""


def by_architecture(names: Iterable[str]) -> list[ParameterSet | str]:
    """Parameters of a test or of a fixture, of which all but those in `QUICK` are extended."""
    return some_quick(names, *QUICK)


def _architecture(name: str) -> Architecture:
    return (ARCHITECTURES | BASES)[name]


def _write_archive(folder: Path, name: str) -> None:
    architecture = _architecture(name)
    example, axes = architecture.inputs(2, 7), architecture.axes()
    save_base(architecture.build(STD), example, folder / "model.pt", axes=axes)


@dataclass(frozen=True)
class ExportedBase:
    """A base in every form, each made when it is first asked for; do not change it."""

    name: str
    factory: pytest.TempPathFactory = field(repr=False, compare=False)

    @property
    def architecture(self) -> Architecture:
        return _architecture(self.name)

    @cached_property
    def module(self) -> nn.Module:
        return self.architecture.build(STD)

    @cached_property
    def archive(self) -> Path:
        return kept(self.factory, f"architecture_{self.name}", _write_archive, self.name) / "model.pt"

    @cached_property
    def in_torch(self) -> TorchBase:
        return load_base(self.archive)

    @cached_property
    def in_onnx(self) -> OnnxBase:
        return open_onnx(kept(self.factory, f"graph_{self.name}", write_graph, self.archive) / "model.onnx")

    @cached_property
    def torch_sites(self) -> SiteMap:
        return discover(flow_graph(self.in_torch.flat))

    def of_older_exporter(self, folder: Path) -> OnnxBase:
        """Export with torch's older exporter, which runs the module once."""
        architecture = self.architecture
        return by_older_exporter(self.module, architecture.inputs(2, 7), architecture.axes(), folder)


def by_older_exporter(
    module: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]], folder: Path
) -> OnnxBase:
    """A module that reads inputs by position as torch's older exporter writes it; it records no module paths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated calls
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            folder / "model.onnx",
            dynamo=False,
            input_names=list(inputs),
            output_names=["out"],
            dynamic_axes=axes,
            opset_version=18,
        )
    return open_onnx(folder / "model.onnx")
