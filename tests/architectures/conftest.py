"""The bases of many architectures, each exported once for all tests that need it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from exported_bases import ExportedBase
from small_bases import ARCHITECTURES

from adapter_export.onnx.base import open_onnx
from adapter_export.torch.base import load_base, save_base
from adapter_export.torch.to_onnx import export_onnx


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportedBase]:
    """Makes the base of an architecture, with weights of standard deviation 0.15, when it is first asked for."""

    @cache
    def make(name: str) -> ExportedBase:
        folder, architecture = tmp_path_factory.mktemp(name), ARCHITECTURES[name]
        module, inputs = architecture.build(0.15), architecture.inputs(2, 7)
        save_base(module, inputs, folder / "model.pt", axes=architecture.axes())
        in_torch = load_base(folder / "model.pt")
        export_onnx(in_torch, folder / "model.onnx")
        return ExportedBase(name, module, in_torch, open_onnx(folder / "model.onnx"))

    return make
