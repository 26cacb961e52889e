"""Example inputs of a module: as described, from its folder's processors, by their usual names, or as documented."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from adapter_export.format.manifest import InputRecord
from adapter_export.torch_backend.base.capture_module import AxisNames

Examples = tuple[dict[str, Tensor], AxisNames]
"""Example inputs by name, and the names of their dynamic axes."""

_BATCH, _SEQUENCE, _DECODER = "batch", "sequence", "decoder_"

SAMPLES = "samples"
"""Axis of recorded audio, [batch, samples]."""

_EXAMPLE_BATCH, _TOKENS, _DECODER_TOKENS = 2, 7, 5
"""Lengths of the example inputs; arbitrary, but different, because torch treats equal lengths as one."""


@dataclass(frozen=True)
class Prepared:
    """Inputs that the tokenizer and the processor of a folder make for its model.

    Attributes:
        typed: whether the tokenizer marks the texts of a pair with `token_type_ids`; `None` if unknown.
        values: example outputs of the processor, and their dynamic axes.
    """

    typed: bool | None = None
    values: Mapping[str, tuple[Tensor, Mapping[int, str]]] = field(default_factory=dict)


def described_inputs(records: Sequence[InputRecord]) -> Examples:
    """Return example inputs of these types and axes; dynamic axes have length 1, and `capture` widens them."""
    shapes = {record.name: [1 if isinstance(axis, str) else axis for axis in record.axes] for record in records}
    examples = {one.name: torch.ones(shapes[one.name], dtype=getattr(torch, one.dtype)) for one in records}
    axes = {
        record.name: {place: axis for place, axis in enumerate(record.axes) if isinstance(axis, str)}
        for record in records
    }
    return examples, axes


def obvious_inputs(module: nn.Module, prepared: Prepared | None = None) -> Examples | None:
    """Return example inputs and their dynamic axes, for a module with inputs under usual names or with documentation.

    Tokens are `input_ids` [batch, sequence], with the `attention_mask` and `token_type_ids` that the module accepts and
    its tokenizer makes; images are `pixel_values`, [batch, channels, height, width]; audio is `input_features` [batch,
    bands, frames] or `input_values`: from the processor, or according to the module's `config`. A module with a decoder
    also takes `decoder_input_ids` and `decoder_attention_mask` [batch, decoder_sequence]. Other required inputs, and
    numbers per token (`bbox`), get the shapes in the module's documentation. Returns `None` if these rules do not cover
    a required input.
    """
    prepared = prepared or Prepared()
    parameters = inspect.signature(module.forward).parameters
    needed = {
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    offered = _tokens(module, parameters, prepared.typed)
    prepared_inputs = {
        name: value for name, (value, _) in prepared.values.items() if name in parameters and name not in offered
    }
    seen = not offered or "image" in getattr(module, "input_modalities", ())  # models of text with images list both
    offered |= prepared_inputs or (_images(module, parameters) or _sound(module, parameters) if seen else {})
    if offered and f"{_DECODER}input_ids" in parameters:
        ids = torch.ones(_EXAMPLE_BATCH, _DECODER_TOKENS, dtype=torch.int64)
        decoder = (f"{_DECODER}input_ids", f"{_DECODER}attention_mask")
        offered |= {name: ids for name in decoder if name in parameters}
    axes: dict[str, dict[int, str]] = {name: {0: _BATCH} for name in offered}
    for name, tensor in offered.items():
        if name in prepared_inputs:
            axes[name] = dict(prepared.values[name][1])
        elif tensor.dim() == 2:
            axes[name][1] = f"{_DECODER}{_SEQUENCE}" if name.startswith(_DECODER) else _SEQUENCE
    main = getattr(module, "main_input_name", None) if not offered else None
    for name, tensor, places in _documented(module):
        each_token = tensor.dim() > 2 and tensor.dtype == torch.int64 and places == {0: _BATCH, 1: _SEQUENCE}
        each_token = each_token and not name.endswith("_embeds")  # replace ids; some documented as `LongTensor`
        if name in parameters and ((name in needed and name not in offered) or name == main or each_token):
            offered[name], axes[name] = tensor, places
    in_order = {name: offered[name] for name in parameters if name in offered}
    return (in_order, axes) if offered and needed <= offered.keys() else None


def _tokens(module: nn.Module, parameters: Mapping[str, object], typed: bool | None) -> dict[str, Tensor]:
    if "input_ids" not in parameters:
        return {}
    ids = torch.ones(_EXAMPLE_BATCH, _TOKENS, dtype=torch.int64)
    config: Any = getattr(module, "config", None)
    # a single type has no effect; without a table of types, transformers models add a token's embedding instead
    if config is not None and (getattr(config, "type_vocab_size", 0) or 0) < 2:
        typed = False
    offered = {"input_ids": ids, "attention_mask": ids, **({} if typed is False else {"token_type_ids": ids * 0})}
    return {name: tensor for name, tensor in offered.items() if name in parameters}


def _images(module: nn.Module, taken: Mapping[str, object]) -> dict[str, Tensor]:
    config: Any = getattr(module, "config", None)
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    if "pixel_values" not in taken or size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.zeros(_EXAMPLE_BATCH, getattr(config, "num_channels", 3), height, width)}


def _sound(module: nn.Module, taken: Mapping[str, object]) -> dict[str, Tensor]:
    """Return as many frames as the front convolutions need for all positions."""
    config: Any = getattr(module, "config", None)
    bands, positions = (getattr(config, name, None) for name in ("num_mel_bins", "max_source_positions"))
    if "input_features" not in taken or not isinstance(bands, int) or not isinstance(positions, int):
        return {}
    strides = [layer.stride[0] for layer in module.modules() if isinstance(layer, nn.Conv1d)]
    return {"input_features": torch.zeros(_EXAMPLE_BATCH, bands, positions * prod(strides))}


_DOCUMENTED = re.compile(r"^[ \t]*(\w+) \(`?(?:torch\.)?(\w*)Tensor`? of shape `\(([\w, ]+)\)`(?! or)", re.MULTILINE)
"""An argument in a model's documentation: ``bbox (`torch.LongTensor` of shape `(batch_size, sequence_length, 4)`)``."""

_DTYPES = {"Long": torch.int64, "Int": torch.int32, "Bool": torch.bool, "Float": torch.float32}
_ROWS = ("batch_size", "batch", "bs")
_TOKEN_WORDS = ("sequence_length", "token_sequence_length", "seq_length", "seq_len")


def _documented(module: nn.Module) -> Iterator[tuple[str, Tensor, dict[int, str]]]:
    """Yield the arguments of `forward` whose type and shape are documented, with their dynamic axes.

    A word in the shape is a number if the module's `config` has one by that name; otherwise it is a dynamic axis.
    """
    config: Any = getattr(module, "config", None)
    for name, dtype, words in _DOCUMENTED.findall(inspect.getdoc(module.forward) or ""):
        shape, places = list[int](), dict[int, str]()
        for place, word in enumerate(word.strip() for word in words.split(",") if word.strip()):
            size = int(word) if word.isdecimal() else getattr(config, word, None)
            if isinstance(size, int) and not isinstance(size, bool) and word not in _ROWS:
                shape.append(size)
                continue
            shape.append(1)
            places[place] = _BATCH if word in _ROWS else _SEQUENCE if word in _TOKEN_WORDS else word
        if not dtype or name.endswith(("_values", "_features")):  # some document audio as `LongTensor`
            dtype = "Long" if name.endswith(("_ids", "_mask")) else "Float"
        value = torch.ones(shape, dtype=_DTYPES.get(dtype, torch.float32))
        if value.is_floating_point() and places.keys() == {0, 1} and value.dim() == 2:
            places[1] = SAMPLES
        yield name, value, places
