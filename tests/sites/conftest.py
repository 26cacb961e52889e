"""The ONNX graphs of small bases: most as this package exports them, some as torch's own call does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from exported_bases import ExportedBase

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx

DECOMPOSED = frozenset({"cohere", "hand_written"})
"""The bases whose ONNX graphs are those of torch's own call, in which masks, reshapes and chunks are decomposed."""


@pytest.fixture(scope="session")
def in_onnx(
    exported: Callable[[str], ExportedBase], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], OnnxBase]:
    """Gives the ONNX graph of an architecture, made once per session."""

    @cache
    def get(name: str) -> OnnxBase:
        base = exported(name)
        return open_onnx(_by_torch_alone(base, tmp_path_factory.mktemp(name))) if name in DECOMPOSED else base.in_onnx

    return get


def _by_torch_alone(base: ExportedBase, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated calls and of packages that it does not find
        torch.onnx.export(base.in_torch.program, f=folder / "model.onnx", dynamo=True, verbose=False)
    return folder / "model.onnx"
