"""A provider of ONNX Runtime is one row of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.graph.kinds import pfeiffer
from adapter_export.onnx_backend.base.onnx_base import open_onnx

if TYPE_CHECKING:
    from conftest import TrialChange

TABLE, NAME = "PROVIDERS: Mapping[ProviderName, Provider] = {\n", '"webgpu", "qnn"]\n'


def test_a_provider_touches_one_file(trial: TrialChange) -> None:
    """The Azure provider is in every build of ONNX Runtime, and leaves all nodes of a graph to the CPU."""
    trial.edit("providers.py", NAME, '"webgpu", "qnn", "azure"]\n')
    trial.edit("providers.py", TABLE, f'{TABLE}    "azure": Provider("AzureExecutionProvider", "onnxruntime"),\n')
    base = open_onnx(save_tiny(trial.folder))
    ae.save(random_adapter("tone", pfeiffer(), base, labels="xy"), trial.folder / "tone")
    trial.command("build", base.path, "--adapters", "tone", "-o", "bundle")
    found = trial.json("verify", "bundle", "--provider", "azure")
    assert [one["status"] for one in found["findings"] if one["check"] == "providers"] == ["tested"]
    found = trial.json("check", "bundle", "--quick", "--providers", "all")
    assert [one["status"] for one in found["findings"] if one["subject"] == "azure"] == ["tested"]
    assert trial.touched == ["providers.py"]
