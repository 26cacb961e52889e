"""Makers of the archives and graphs that tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import torch

from adapter_export.torch_backend.base.huggingface_folder import capture_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import load_base, save_base


def write_captured(folder: Path, model: Path) -> None:
    """Write `model.pt`, the archive of a Hugging Face folder."""
    capture_folder(model, folder / "model.pt")


def write_graph(folder: Path, archive: Path) -> None:
    """Write `model.onnx`, the graph of an archive."""
    export_onnx(load_base(archive), folder / "model.onnx")


def write_tiny_bert(folder: Path) -> None:
    """Write `model.pt`, a BERT with 2 layers of width 32 whose weights have standard deviation 0.2."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=99, initializer_range=0.2, **sizes))
    ids = torch.ones(2, 7, dtype=torch.int64)
    save_base(model, {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}, folder / "model.pt")
