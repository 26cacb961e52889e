"""The bases that PEFT's adapters were made for, in torch and as ONNX graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from captured import captured
from kept import kept
from peft_folders import FIXTURES
from transformers import AutoModel, LlamaForCausalLM, T5EncoderModel

from adapter_export.torch_backend.base.huggingface_folder import capture_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base

_KINDS = {"t5": T5EncoderModel, "tied": LlamaForCausalLM}
"""The base is the encoder of T5, and the whole `tied` model with its language head."""

_ARCHIVED = ("bert", "gpt2")
"""Bases passed to commands as archives."""


def peft_base(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder with `model.onnx`, and of some bases `model.pt`."""
    return kept(factory, f"peft_{name}", _write, name, FIXTURES / "bases" / name)


def _write(folder: Path, name: str, source: Path) -> None:
    if name in _ARCHIVED:
        capture_folder(source, folder / "model.pt")
    export_onnx(peft_base_in_torch(folder, name), folder / "model.onnx")


def peft_base_in_torch(folder: Path, name: str) -> TorchBase:
    """The base of a folder that `peft_base` makes."""
    if name in _ARCHIVED:
        return load_base(folder / "model.pt")
    return captured(FIXTURES / "bases" / name, _KINDS.get(name, AutoModel))
