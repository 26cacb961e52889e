"""Small bases with random weights, seen both as a torch graph and as the ONNX graph that torch exports from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from partial_bases import BASES
from small_bases import ARCHITECTURES, Architecture
from torch import nn

from adapter_export.onnx_backend.base.flow import flow_graph as onnx_flow
from adapter_export.onnx_backend.base.normalise import open_sums
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.expand_sums import open_sums as open_torch_sums
from adapter_export.torch_backend.base.to_onnx import converted
from adapter_export.torch_backend.base.torch_base import load_base
from adapter_export.torch_backend.fx_view import flow_graph as torch_flow

DECOMPOSED = frozenset({"bert", "cohere", "torch_pre_norm", "hand_written"})
"""The bases whose ONNX graphs are those of torch's own call, in which masks, reshapes and chunks are decomposed."""


@dataclass(frozen=True)
class Exported:
    """A base, its torch graph and, where torch manages to export it, its ONNX graph."""

    architecture: Architecture
    module: nn.Module
    program: torch.export.ExportedProgram
    name: str = ""

    def torch_graph(self) -> torch.fx.GraphModule:
        graph = self.program.module(check_guards=False)
        open_torch_sums(graph)
        return graph

    def onnx_graph(self) -> ir.Model:
        if self.name in DECOMPOSED:
            with _quiet():
                model = torch.onnx.export(self.program, dynamo=True, verbose=False).model
        else:
            model = converted(self.program)
        open_sums(model.graph)
        return model

    def legacy_onnx_graph(self, path: Path) -> ir.Model:
        """What torch's older exporter makes of it, by running it once."""
        inputs = self.architecture.inputs(2, 7)
        with _quiet():
            torch.onnx.export(
                self.module,
                tuple(inputs.values()),
                path,
                dynamo=False,
                input_names=list(inputs),
                output_names=["out"],
                dynamic_axes=self.architecture.axes(),
                opset_version=18,
            )
        return ir.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns of its own deprecated calls and of packages that it does not find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Views:
    """What was found in the torch graph and in the ONNX graph of one base."""

    exported: Exported
    torch_graph: torch.fx.GraphModule
    onnx_graph: ir.Model
    in_torch: SiteMap
    in_onnx: SiteMap


@pytest.fixture(scope="session")
def exported(architecture_archive: Callable[[str], Path]) -> Callable[[str], Exported]:
    """An architecture, exported once per run."""

    @cache
    def get(name: str) -> Exported:
        architecture = (ARCHITECTURES | BASES)[name]
        return Exported(architecture, architecture.build(0.15), load_base(architecture_archive(name)).program, name)

    return get


@pytest.fixture(scope="session")
def views(exported: Callable[[str], Exported]) -> Callable[[str], Views]:
    """The sites of an architecture in both of its graphs, found once per session."""

    @cache
    def get(name: str) -> Views:
        base = exported(name)
        torch_graph, onnx_graph = base.torch_graph(), base.onnx_graph()
        found = discover(torch_flow(torch_graph)), discover(onnx_flow(onnx_graph))
        return Views(base, torch_graph, onnx_graph, *found)

    return get
