"""The bases of many architectures, each exported once in a run for all tests that need it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from exported_bases import ExportedBase
from once import once
from small_bases import ARCHITECTURES

from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportedBase]:
    """Makes the base of an architecture, with weights of standard deviation 0.15, when it is first asked for."""

    @cache
    def make(name: str) -> ExportedBase:
        architecture = ARCHITECTURES[name]
        module = architecture.build(0.15)

        def files(folder: Path) -> None:
            save_base(module, architecture.inputs(2, 7), folder / "model.pt", axes=architecture.axes())
            loaded.append(load_base(folder / "model.pt"))
            export_onnx(loaded[0], folder / "model.onnx")

        loaded: list[TorchBase] = []
        folder = once(tmp_path_factory, f"architecture_{name}", files)
        in_torch = loaded[0] if loaded else load_base(folder / "model.pt")
        return ExportedBase(name, module, in_torch, open_onnx(folder / "model.onnx"))

    return make
