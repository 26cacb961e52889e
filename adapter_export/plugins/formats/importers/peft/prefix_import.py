"""Import of PEFT's prefix tuning: keys and values that a decoder reads before the first token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapter_export.bases.base_view import BaseView, ImportRequest
from adapter_export.errors import AdapterError, TensorError, within
from adapter_export.graph.adapter import PREFIX, Adapter, Prefix
from adapter_export.numerics.prefix_inputs import cache_shapes, prefixed_caches
from adapter_export.plugins.formats.importers.peft.peft_folder import PeftFolder
from adapter_export.plugins.formats.importers.tensor_map import Imported
from adapter_export.words import quoted

_TENSOR = "prompt_embeddings"
"""PEFT saves the result of its encoder, so that a projection is already applied."""

_TASK = "CAUSAL_LM"

_CACHE = re.compile(r"(\d+)\.(?:.*\.)?(key|value)")
"""End of the name of a cache: its layer, and `key` or `value`."""


def import_prefix(read: PeftFolder, base: BaseView, request: ImportRequest) -> Imported:
    """Import trained keys and values for the caches of a decoder.

    Raises:
        AdapterError: it was trained for another task, or the base has no such caches or attends within a window.
        TensorError: a tensor is missing, unused or misshapen.
    """
    with within(read.path):
        _check_task(read.config)
        table = _table(read)
        tensors = _keys_and_values(table, read.config, base)
        shapes = {name: shape for name, shape in cache_shapes(base.inputs).items() if name in tensors}
        prefixed_caches(base.inputs, shapes)
    record = {"imported": {"from": "peft", "config": dict(read.config)}}
    weights = {f"{PREFIX}.{cache}": np.ascontiguousarray(tensor, np.float32) for cache, tensor in tensors.items()}
    prefix = Prefix(len(table), shapes)
    return Imported(Adapter(request.name, "prefix_tuning", base.fingerprint, {}, {}, weights, None, record, prefix), ())


def _check_task(config: Mapping[str, Any]) -> None:
    if config.get("task_type") != _TASK or config.get("num_transformer_submodules", 1) != 1:
        raise AdapterError(
            "has keys and values for another model than a decoder that generates",
            found=f"`task_type` {config.get('task_type')}",
            expected=f"`{_TASK}`: elsewhere, no past precedes the tokens",
            fix="train a LoRA, an IA3 or a bottleneck adapter instead",
        )


def _table(read: PeftFolder) -> np.ndarray:
    """Return the trained vectors, [tokens, 2 × layers × heads × width]."""
    tensor = read.tensors.get(_TENSOR)
    others = sorted(read.tensors.keys() - {_TENSOR})
    if tensor is None or tensor.ndim != 2 or others or not np.isfinite(tensor).all():
        found = quoted(others) if others else "none" if tensor is None else f"{list(tensor.shape)}, possibly NaN"
        expected = f"only `{_TENSOR}`, finite, [tokens, 2 × layers × heads × width]"
        raise TensorError("tensors are missing or left over", found=found, expected=expected)
    return np.asarray(tensor)


def _keys_and_values(table: np.ndarray, config: Mapping[str, Any], base: BaseView) -> dict[str, np.ndarray]:
    """Return the tensor [heads, tokens, width] of each cache, as `PeftModel.get_prompt` does."""
    layers, heads, width = (config.get(key) for key in ("num_layers", "num_attention_heads", "token_dim"))
    numbers = [number for number in (layers, heads, width) if type(number) is int and number > 0]
    if len(numbers) != 3 or numbers[2] % numbers[1] or table.shape[1] != 2 * numbers[0] * numbers[2]:
        raise TensorError(
            "tensors do not match the config",
            found=f"`{_TENSOR}` {list(table.shape)}",
            expected=f"[tokens, 2 × {layers} layers × {width}], in {heads} heads",
        )
    # view, then permute([2, 0, 3, 1, 4]) in PEFT; here without the batch
    parts = table.reshape(len(table), 2 * numbers[0], numbers[1], -1).transpose(1, 2, 0, 3)
    return {name: parts[place] for name, place in _places(base, numbers[0]).items()}


def _places(base: BaseView, layers: int) -> dict[str, int]:
    """Return the place of each cache of the base in the trained vectors."""
    places = {}
    for record in base.inputs:
        named = _CACHE.search(record.name)
        if record.role == "cache" and named is not None:
            places[record.name] = 2 * int(named[1]) + (named[2] == "value")
    if sorted(places.values()) != list(range(2 * layers)):
        raise AdapterError(
            "has keys and values for another number of layers, or the base was captured without a cache",
            found=f"{layers} layers",
            expected=f"those of the caches {quoted(places) or '(none)'}",
            fix="pass the language model that it was trained on, captured with its cache",
        )
    return places
