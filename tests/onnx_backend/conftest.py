"""A tiny base, opened once."""

from __future__ import annotations

import pytest
from tiny_onnx import save_tiny

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return open_onnx(save_tiny(tmp_path_factory.mktemp("tiny")))
