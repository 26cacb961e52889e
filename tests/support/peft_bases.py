"""The bases that PEFT's adapters were made for, as archives and as ONNX graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from once import once
from peft_folders import FIXTURES
from transformers import LlamaForCausalLM, T5EncoderModel

from adapter_export.torch_backend.base.huggingface_folder import capture_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import load_base, save_base


def peft_base(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder with `model.pt` and `model.onnx`, made once in a run."""

    def make(folder: Path) -> None:
        _capture(FIXTURES / "bases" / name, folder / "model.pt")
        export_onnx(load_base(folder / "model.pt"), folder / "model.onnx")

    return once(factory, f"peft_{name}", make)


def _capture(folder: Path, path: Path) -> None:
    """The base as `capture` makes it; of T5, the encoder alone, of `tied` all with its language head."""
    kinds = {"t5": T5EncoderModel, "tied": LlamaForCausalLM}
    if folder.name not in kinds:
        capture_folder(folder, path)
        return
    ids = torch.ones(2, 7, dtype=torch.int64)
    model = kinds[folder.name].from_pretrained(folder)
    model.config.use_cache = False
    save_base(model, {"input_ids": ids, "attention_mask": ids}, path)
