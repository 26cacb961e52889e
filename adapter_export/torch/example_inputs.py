"""Inputs to capture a module with: as somebody describes them, or as they follow from what the module takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapter_export.format.manifest import InputRecord
from adapter_export.torch.capture import AxisNames

_BATCH, _TOKENS = 2, 7
"""The lengths of the example inputs; nothing depends on them."""

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def described_inputs(records: Sequence[InputRecord]) -> tuple[dict[str, Tensor], AxisNames]:
    """Example inputs of some names, types and shapes, and the names of their dynamic axes.

    A dynamic axis has the length 1, which `capture` widens.
    """
    inputs = {
        record.name: torch.ones(
            [1 if isinstance(axis, str) else axis for axis in record.axes], dtype=getattr(torch, record.dtype)
        )
        for record in records
    }
    axes = {
        record.name: {place: axis for place, axis in enumerate(record.axes) if isinstance(axis, str)}
        for record in records
    }
    return inputs, axes


def obvious_inputs(module: nn.Module) -> dict[str, Tensor] | None:
    """Example inputs of a module that takes tokens or images by their usual names; none of another.

    Tokens are `input_ids` [batch, sequence], with the `attention_mask` and `token_type_ids` that the module takes;
    images are `pixel_values`, [batch, channels, height, width] as the module's `config` says.
    """
    parameters = inspect.signature(module.forward).parameters
    needed = {
        name
        for name, each in parameters.items()
        if each.default is inspect.Parameter.empty and each.kind not in _VARIADIC
    }
    offered = _tokens(module, parameters) or _images(module, parameters)
    return offered if offered and needed <= offered.keys() else None


def _tokens(module: nn.Module, taken: Mapping[str, object]) -> dict[str, Tensor]:
    if "input_ids" not in taken:
        return {}
    ids = torch.ones(_BATCH, _TOKENS, dtype=torch.int64)
    config: Any = getattr(module, "config", None)
    # without a table of token types, models of transformers add the embedding of a token instead
    typed = config is None or (getattr(config, "type_vocab_size", 0) or 0) > 0
    offered = {"input_ids": ids, "attention_mask": ids, **({"token_type_ids": ids * 0} if typed else {})}
    return {name: tensor for name, tensor in offered.items() if name in taken}


def _images(module: nn.Module, taken: Mapping[str, object]) -> dict[str, Tensor]:
    config: Any = getattr(module, "config", None)
    size = getattr(config, "image_size", None)
    if "pixel_values" not in taken or size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.zeros(_BATCH, getattr(config, "num_channels", 3), height, width)}


def most_tokens(module: nn.Module) -> int | None:
    """The number of positions in a module's `config`, less those that a table with a padding row skips (RoBERTa)."""
    config: Any = getattr(module, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    skipped = [
        part.padding_idx + 1
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding)
        and "position" in name
        and part.num_embeddings == positions
        and part.padding_idx is not None
    ]
    return positions - max(skipped, default=0)
