"""A causal language model of transformers behind plain tensors: what it keeps of a text goes in and comes out again.

Importing this module needs transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from adapter_export.errors import BaseModelError
from adapter_export.torch.capture import AxisNames

BATCH, TOKENS, PAST = "batch", "sequence", "past_sequence"
_TOTAL = f"{PAST} + {TOKENS}"
_PAST_AXIS = 2
"""Keys and values are [batch, heads, tokens, width]."""

_EXAMPLE_BATCH, _EXAMPLE_TOKENS, _EXAMPLE_PAST = 2, 3, 5

Layers = Sequence[Mapping[str, Tensor]]
"""A cache: for each layer its `key` and `value`, [batch, heads, tokens, width]."""


class CachedDecoder(nn.Module):
    """Computes logits for new tokens behind a past that is handed in.

    The position of a token is the number of real tokens before it, as `generate` of transformers counts, so rows of a
    batch may be padded on the left.

    Args:
        model: a causal language model that keeps keys and values of each layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._counts_itself = "position_ids" not in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Layers) -> dict[str, Tensor]:
        """Compute `logits` [batch, sequence, words], and `present.N.key` and `present.N.value` of every layer N.

        Args:
            input_ids: the new tokens, [batch, sequence].
            attention_mask: 1 for the real tokens of past and new ones, [batch, past_sequence + sequence].
            past_key_values: what was `present` the last time; of length 0 at first.
        """
        _say_lengths(input_ids, attention_mask, past_key_values)
        cache = DynamicCache()
        for number, layer in enumerate(past_key_values):
            cache.update(layer["key"], layer["value"], number)
        options = {} if self._counts_itself else {"position_ids": _positions(attention_mask, input_ids.shape[1])}
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **options
        )
        return {"logits": result.logits, **_present(result.past_key_values)}

    def example_inputs(self) -> dict[str, Any]:
        """Inputs to capture it with.

        Raises:
            BaseModelError: the model keeps something else than keys and values of each layer.
        """
        ids = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
        mask = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_PAST + _EXAMPLE_TOKENS, dtype=torch.int64)
        past = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_PAST, dtype=torch.int64)
        with torch.no_grad():
            kept = self.model(input_ids=past, use_cache=True).past_key_values
        layers = [{"key": key, "value": value} for key, value in _layers(kept)]
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": layers}


def cache_axes(layers: int) -> AxisNames:
    """The names of the dynamic axes of a cached decoder."""
    past = {0: BATCH, _PAST_AXIS: PAST}
    caches = {f"past_key_values.{number}.{name}": past for number in range(layers) for name in ("key", "value")}
    return {"input_ids": {0: BATCH, 1: TOKENS}, "attention_mask": {0: BATCH, 1: _TOTAL}, **caches}


def _positions(attention_mask: Tensor, tokens: int) -> Tensor:
    """The positions of the last tokens, [batch, tokens]."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens:]


def _say_lengths(input_ids: Tensor, attention_mask: Tensor, past: Layers) -> None:
    """Tell torch which lengths are the same, so that the captured program has one name for each."""
    length = past[0]["key"].shape[_PAST_AXIS]
    _check: Any = torch._check
    _check(attention_mask.shape[1] == length + input_ids.shape[1])
    for layer in past:
        for kept in layer.values():
            _check(kept.shape[_PAST_AXIS] == length)


def _present(cache: object) -> dict[str, Tensor]:
    return {
        f"present.{number}.{name}": kept
        for number, layer in enumerate(_layers(cache))
        for name, kept in zip(("key", "value"), layer, strict=True)
    }


def _layers(cache: object) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer."""
    layers = getattr(cache, "layers", ())
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    kept = [(key, value) for key, value in pairs if isinstance(key, Tensor) and isinstance(value, Tensor)]
    if not kept or len(kept) != len(pairs) or any(tensor.dim() != 4 for pair in kept for tensor in pair):
        raise BaseModelError(
            "keeps something else of a text than keys and values of each layer",
            found=f"`{type(cache).__name__}`",
            expected="a cache of [batch, heads, tokens, width] tensors in every layer",
            fix="capture it without `--with-cache`",
        )
    return kept
