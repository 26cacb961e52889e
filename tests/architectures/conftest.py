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
from adapter_export.torch_backend.base.torch_base import load_base


@pytest.fixture(scope="session")
def exported(
    architecture_archive: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ExportedBase]:
    """Makes the base of an architecture, with weights of standard deviation 0.15, when it is first asked for."""

    @cache
    def make(name: str) -> ExportedBase:
        base = load_base(architecture_archive(name))
        folder = once(tmp_path_factory, f"graph_{name}", lambda folder: export_onnx(base, folder / "model.onnx"))
        module = ARCHITECTURES[name].build(0.15)
        return ExportedBase(name, module, base, open_onnx(folder / "model.onnx"))

    return make
