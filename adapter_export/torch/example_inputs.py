"""Inputs to capture a module with: as somebody describes them, or as they follow from what the module takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from adapter_export.format.manifest import InputRecord
from adapter_export.torch.capture import AxisNames

_BATCH, _TOKENS, _DECODER_TOKENS = 2, 7, 5
"""The lengths of the example inputs; nothing depends on them, but torch takes equal ones for one."""

_DECODER = "decoder_"

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


def obvious_inputs(module: nn.Module) -> tuple[dict[str, Tensor], AxisNames] | None:
    """Example inputs of a module that takes tokens, images or sound by their usual names; none of another.

    Tokens are `input_ids` [batch, sequence], with the `attention_mask` and `token_type_ids` that the module takes;
    images are `pixel_values`, [batch, channels, height, width] as the module's `config` says; sound is
    `input_features` [batch, bands, frames], likewise. A module with a decoder takes `decoder_input_ids` and
    `decoder_attention_mask` [batch, decoder_sequence] as well.

    Returns:
        The inputs, and the names of their dynamic axes.
    """
    parameters = inspect.signature(module.forward).parameters
    needed = {
        name
        for name, each in parameters.items()
        if each.default is inspect.Parameter.empty and each.kind not in _VARIADIC
    }
    offered = _tokens(module, parameters) or _images(module, parameters) or _sound(module, parameters)
    if offered:
        offered |= _decoder_tokens(parameters)
    if not offered or not needed <= offered.keys():
        return None
    return offered, {name: _axes(name, tensor) for name, tensor in offered.items()}


def _axes(name: str, tensor: Tensor) -> dict[int, str]:
    text = "decoder_sequence" if name.startswith(_DECODER) else "sequence"
    return {0: "batch", 1: text} if tensor.dim() == len(("batch", "tokens")) else {0: "batch"}


def _tokens(module: nn.Module, taken: Mapping[str, object]) -> dict[str, Tensor]:
    if "input_ids" not in taken:
        return {}
    ids = torch.ones(_BATCH, _TOKENS, dtype=torch.int64)
    config: Any = getattr(module, "config", None)
    # without a table of token types, models of transformers add the embedding of a token instead
    typed = config is None or (getattr(config, "type_vocab_size", 0) or 0) > 0
    offered = {"input_ids": ids, "attention_mask": ids, **({"token_type_ids": ids * 0} if typed else {})}
    return {name: tensor for name, tensor in offered.items() if name in taken}


def _decoder_tokens(taken: Mapping[str, object]) -> dict[str, Tensor]:
    ids = torch.ones(_BATCH, _DECODER_TOKENS, dtype=torch.int64)
    names = (f"{_DECODER}input_ids", f"{_DECODER}attention_mask")
    return {name: ids for name in names if name in taken and names[0] in taken}


def _images(module: nn.Module, taken: Mapping[str, object]) -> dict[str, Tensor]:
    config: Any = getattr(module, "config", None)
    size = getattr(config, "image_size", None)
    if "pixel_values" not in taken or size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.zeros(_BATCH, getattr(config, "num_channels", 3), height, width)}


def _sound(module: nn.Module, taken: Mapping[str, object]) -> dict[str, Tensor]:
    """As many frames as the convolutions in front make the positions of."""
    config: Any = getattr(module, "config", None)
    bands, positions = (getattr(config, name, None) for name in ("num_mel_bins", "max_source_positions"))
    if "input_features" not in taken or not isinstance(bands, int) or not isinstance(positions, int):
        return {}
    strides = [part.stride[0] for part in module.modules() if isinstance(part, nn.Conv1d)]
    return {"input_features": torch.zeros(_BATCH, bands, positions * prod(strides))}


def most_tokens(module: nn.Module) -> int | None:
    """The number of positions in a module's `config`, less those that a table with a padding row skips (RoBERTa)."""
    config: Any = getattr(module, "config", None)
    known = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions")]
    positions = next((number for number in known if isinstance(number, int) and number > 0), None)
    if positions is None:
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
