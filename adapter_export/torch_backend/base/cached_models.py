"""Transformers models that generate text, with their caches as plain tensors: past in, logits out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import DynamicCache, EncoderDecoderCache

from adapter_export.errors import BaseModelError
from adapter_export.format.lengths import Bounds, Lengths, axis_lengths
from adapter_export.torch_backend.base.capture_module import AxisNames
from adapter_export.torch_backend.base.log_capture import first_line
from adapter_export.words import argument

Layers = Sequence[Mapping[str, Tensor]]
"""Cache: for each layer its `key` and `value`, [batch, heads, tokens, width]."""

CAPTURE_BARE = "capture the bare model, without language head and cache: " + argument("bare", True)
"""Fix for a model that cannot be captured with its cache."""

_SOURCE, _WRITTEN = "sequence", "decoder_sequence"
"""Axes of the new tokens of an encoder (all in the first call of a text, none afterwards) and of a decoder."""

MEDIA_INPUT = "input_features"
"""Input of an encoder of sound or images, [batch, windows, …]."""

_WINDOWS, _PAST_WINDOWS = "windows", "past_windows"
"""Axes of the windows of a file: one in the first call of a text, none afterwards, and the opposite in the caches."""

_TOLERANCE = 1e-4
"""Tolerance relative to the largest number: float32 products of one token and of three sum in different orders."""


class _CachedModel(nn.Module):
    """A generating model; its weights keep their names in the model, so its fingerprint is unchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in model._non_persistent_buffers_set)
        self._whole = (model,)  # a tuple: as a submodule, it would prefix the names of all weights

    @property
    def _model(self) -> Any:
        """The model in transformers, under a name that none of its children has."""
        return self._whole[0]


class CachedDecoder(_CachedModel):
    """A causal language model with keys and values as plain tensors: past in, logits out.

    The position of a token is the number of real tokens before it, as in `generate` of transformers, so rows of a batch
    may be padded on the left.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._counts_itself = "position_ids" not in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Layers) -> dict[str, Tensor]:
        """Compute `logits` [batch, sequence, words], and `present.N.key` and `present.N.value` of every layer N.

        Args:
            input_ids: new tokens, [batch, sequence].
            attention_mask: 1 for real past and new tokens, [batch, past_sequence + sequence].
            past_key_values: `present` of the previous call; of length 0 in the first.
        """
        check: Any = torch._check  # makes the mask's length a sum in the captured program
        check(attention_mask.shape[1] == past_key_values[0]["key"].shape[2] + input_ids.shape[1])
        # padding on the left gets position 0, as in `generate` of transformers
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        options = {} if self._counts_itself else {"position_ids": positions}
        result = self._model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=_filled(past_key_values),
            use_cache=True,
            **options,
        )
        present = {
            f"present.{number}.{name}": kept
            for number, layer in enumerate(_layers(result.past_key_values))
            for name, kept in layer.items()
        }
        return {"logits": result.logits, **present}

    def example_inputs(self) -> tuple[dict[str, Any], AxisNames]:
        """Return inputs for capturing it, and their axes; BaseModelError if it caches more than keys and values."""
        # all different, and none is 1: torch treats equal lengths as one axis, and 1 as a constant
        batch, tokens, past = 2, 3, 5
        with torch.no_grad():
            kept = self._model(input_ids=torch.ones(batch, past, dtype=torch.int64), use_cache=True).past_key_values
        layers = _layers(kept)
        inputs = {
            "input_ids": torch.ones(batch, tokens, dtype=torch.int64),
            "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64),
            "past_key_values": layers,
        }
        names = [f"past_key_values.{number}.{name}" for number, layer in enumerate(layers) for name in layer]
        axes = {
            "input_ids": {0: "batch", 1: "sequence"},
            "attention_mask": {0: "batch", 1: "past_sequence + sequence"},
            **{name: {0: "batch", 2: "past_sequence"} for name in names},
        }
        return inputs, axes


class CachedSeq2Seq(_CachedModel):
    """An encoder–decoder that caches the keys and values of both: of its own tokens, and of the encoder's for it.

    The encoder computes the tokens of a text in the first call. Later calls have no encoder tokens: it then computes
    with empty tensors, and attention reads the keys and values of the first call. So one graph contains both halves,
    and an adapter acts in both or in neither.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # fused attention decomposes into reshapes that fail for zero tokens, and brings nothing for ONNX
        self._model.set_attn_implementation("eager")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        past_key_values: Sequence[Mapping[str, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """Compute `logits` [batch, decoder_sequence, words], and `present.N.decoder.key` and so on of every layer N.

        Args:
            input_ids: the encoder's new tokens, [batch, sequence]: all in the first call, none in later ones.
            attention_mask: 1 for the real tokens of the encoder, [batch, past_sequence + sequence].
            decoder_input_ids: the decoder's new tokens, [batch, decoder_sequence].
            past_key_values: `present` of the last call, `encoder` and `decoder` of each layer; of length 0 in the
                first.
        """
        past = past_key_values[0]["encoder"]["key"].shape[2]
        check: Any = torch._check  # makes the mask's length a sum in the captured program
        check(attention_mask.shape[1] == past + input_ids.shape[1])
        encoded = self._model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask[:, past:])
        # filled after creation: a cache that already has encoder keys would ignore the new ones
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        cache.self_attention_cache = _filled([layer["decoder"] for layer in past_key_values])
        cache.cross_attention_cache = _filled([layer["encoder"] for layer in past_key_values])
        # a mask with four axes is used unchanged; with two, it would be cut to the encoder's new tokens
        hidden = (1 - attention_mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
        result = self._model(
            encoder_outputs=encoded,
            attention_mask=hidden,
            decoder_input_ids=decoder_input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        kept = {"decoder": _layers(cache.self_attention_cache), "encoder": _layers(cache.cross_attention_cache)}
        return {"logits": result.logits, **_present(kept)}

    def example_inputs(self) -> tuple[dict[str, Any], AxisNames]:
        """Return inputs for capturing it, and their axes; BaseModelError if it caches more than keys and values."""
        # all different, and none is 1, as for a decoder
        batch, tokens, past, new, before = 2, 7, 4, 3, 5
        ids = torch.ones(batch, past, dtype=torch.int64)
        with torch.no_grad():
            cache = self._model(
                input_ids=ids, decoder_input_ids=torch.ones(batch, before, dtype=torch.int64), use_cache=True
            ).past_key_values
        if not isinstance(cache, EncoderDecoderCache):
            raise _other_cache(cache)
        halves = {"decoder": _layers(cache.self_attention_cache), "encoder": _layers(cache.cross_attention_cache)}
        layers = [dict(zip(halves, pair, strict=True)) for pair in zip(*halves.values(), strict=True)]
        inputs = {
            "input_ids": torch.ones(batch, tokens, dtype=torch.int64),
            "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64),
            "decoder_input_ids": torch.ones(batch, new, dtype=torch.int64),
            "past_key_values": layers,
        }
        pasts = {"decoder": f"past_{_WRITTEN}", "encoder": f"past_{_SOURCE}"}
        caches = {
            f"past_key_values.{number}.{half}.{name}": {0: "batch", 2: pasts[half]}
            for number, layer in enumerate(layers)
            for half, pair in layer.items()
            for name in pair
        }
        axes = {
            "input_ids": {0: "batch", 1: _SOURCE},
            "attention_mask": {0: "batch", 1: f"past_{_SOURCE} + {_SOURCE}"},
            "decoder_input_ids": {0: "batch", 1: _WRITTEN},
            **caches,
        }
        return inputs, axes

    def lengths(self, found: Bounds, most: int | None) -> Bounds:
        """Return the given lengths with those of both halves; a decoder may have at most `most` positions."""
        source = replace(axis_lengths(_SOURCE, found), minimum=0)
        written = {axis: Lengths(1, most) for axis in (_WRITTEN, f"past_{_WRITTEN} + {_WRITTEN}") if most is not None}
        return {**found, **written, _SOURCE: source}

    def check_steps(self, program: ExportedProgram) -> None:
        """Compare two steps of the program, the second without new encoder tokens, with one step of the model.

        Raises:
            BaseModelError: the program cannot run the steps, or its results differ.
        """
        inputs, _ = self.example_inputs()
        ids = torch.arange(4).repeat(2, 1)
        empty = [
            {half: {name: value[:, :, :0] for name, value in pair.items()} for half, pair in layer.items()}
            for layer in inputs["past_key_values"]
        ]
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :3]}
        # the guards were derived from examples with encoder tokens
        flat = program.module(check_guards=False)
        try:
            with torch.no_grad():
                expected = self(**whole, past_key_values=empty)
                first = flat(**{**whole, "decoder_input_ids": ids[:, :2]}, past_key_values=empty)
                past = [
                    {half: {name: first[f"present.{number}.{half}.{name}"] for name in pair} for half, pair in layer}
                    for number, layer in enumerate(layer.items() for layer in empty)
                ]
                later = {"input_ids": ids[:, :0], "decoder_input_ids": ids[:, 2:3]}
                outputs = flat(**{**whole, **later}, past_key_values=past)
        except (RuntimeError, IndexError) as error:
            raise _no_steps(first_line(error)) from error
        expected["logits"] = expected["logits"][:, -1:]
        for name, value in expected.items():
            if not torch.allclose(outputs[name], value, rtol=0, atol=_TOLERANCE * float(value.abs().max())):
                raise _no_steps(f"`{name}` differs from that of a single step")


class CachedMediaSeq2Seq(_CachedModel):
    """An encoder of sound or images, whose input has one size, with a decoder that caches the keys and values of both.

    The encoder reads one window in the first call of a text, and none in later calls: its rows are those of the batch
    times the windows, so that it then computes with empty tensors. The keys and values for its states have the axis
    `windows`, too. So one graph contains both halves, as in `CachedSeq2Seq`.

    Args:
        model: the model.
        shape: the size of the encoder's input, without the batch.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int]) -> None:
        super().__init__(model)
        self._model.set_attn_implementation("eager")  # as in `CachedSeq2Seq`
        self.shape = tuple(shape)

    def forward(
        self,
        input_features: Tensor,
        decoder_input_ids: Tensor,
        past_key_values: Sequence[Mapping[str, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """Compute `logits` [batch, decoder_sequence, words], and `present.N.decoder.key` and so on of every layer N.

        Args:
            input_features: the encoder's input, [batch, windows, …]: a window in the first call, none in later ones.
            decoder_input_ids: the decoder's new tokens, [batch, decoder_sequence].
            past_key_values: `present` of the last call, `encoder` and `decoder` of each layer; of length 0 in the
                first. Those of the encoder are [batch, heads, windows, states, width].
        """
        # -1, since ONNX reads a length 0 as one that stays
        encoded = self._model.get_encoder()(input_features.reshape(-1, *self.shape))[0]
        states, width = encoded.shape[1:]
        encoded = encoded.reshape(input_features.shape[0], -1, width)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        cache.self_attention_cache = _filled([layer["decoder"] for layer in past_key_values])
        cache.cross_attention_cache = _filled([_map(_flat, layer["encoder"]) for layer in past_key_values])
        result = self._model(
            encoder_outputs=(encoded,),
            decoder_input_ids=decoder_input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        of_windows = [_map(partial(_in_windows, states=states), one) for one in _layers(cache.cross_attention_cache)]
        kept = {"decoder": _layers(cache.self_attention_cache), "encoder": of_windows}
        return {"logits": result.logits, **_present(kept)}

    def example_inputs(self) -> tuple[dict[str, Any], AxisNames]:
        """Return inputs for capturing it, and their axes; BaseModelError if it caches more than keys and values."""
        # all different, and none is 1, as for a decoder
        batch, windows, past, new, before = 2, 3, 4, 6, 5
        with torch.no_grad():
            cache = self._model(
                torch.zeros(1, *self.shape),
                decoder_input_ids=torch.ones(1, before, dtype=torch.int64),
                use_cache=True,
            ).past_key_values
        if not isinstance(cache, EncoderDecoderCache):
            raise _other_cache(cache)
        of_windows = [
            _map(lambda tensor: tensor[:, :, None].repeat(batch, 1, past, 1, 1), layer)
            for layer in _layers(cache.cross_attention_cache)
        ]
        written = [
            _map(lambda tensor: tensor.repeat(batch, 1, 1, 1), layer) for layer in _layers(cache.self_attention_cache)
        ]
        layers = [{"decoder": own, "encoder": other} for own, other in zip(written, of_windows, strict=True)]
        inputs = {
            MEDIA_INPUT: torch.zeros(batch, windows, *self.shape),
            "decoder_input_ids": torch.ones(batch, new, dtype=torch.int64),
            "past_key_values": layers,
        }
        pasts = {"decoder": f"past_{_WRITTEN}", "encoder": _PAST_WINDOWS}
        caches = {
            f"past_key_values.{number}.{half}.{name}": {0: "batch", 2: pasts[half]}
            for number, layer in enumerate(layers)
            for half, pair in layer.items()
            for name in pair
        }
        axes = {
            MEDIA_INPUT: {0: "batch", 1: _WINDOWS},
            "decoder_input_ids": {0: "batch", 1: _WRITTEN},
            **caches,
        }
        return inputs, axes

    def lengths(self, found: Bounds, most: int | None) -> Bounds:
        """Return the given lengths with those of both halves; a decoder may have at most `most` positions."""
        windows = {axis: Lengths(0, 1) for axis in (_WINDOWS, _PAST_WINDOWS)}
        written = {axis: Lengths(1, most) for axis in (_WRITTEN, f"past_{_WRITTEN} + {_WRITTEN}") if most is not None}
        return {**found, **written, **windows, f"{_PAST_WINDOWS} + {_WINDOWS}": Lengths(1, 1)}

    def check_steps(self, program: ExportedProgram) -> None:
        """Compare two steps of the program, the second without a window, with one call of the model itself.

        Raises:
            BaseModelError: the program cannot run the steps, or its results differ.
        """
        inputs, _ = self.example_inputs()
        ids = torch.arange(4).repeat(2, 1)[:, :3]
        features = torch.randn(2, 1, *self.shape, generator=torch.Generator().manual_seed(0))
        empty = [
            {half: _map(lambda value: value[:, :, :0], pair) for half, pair in layer.items()}
            for layer in inputs["past_key_values"]
        ]
        flat = program.module(check_guards=False)
        try:
            with torch.no_grad():
                expected = self._model(features[:, 0], decoder_input_ids=ids).logits
                first = flat(input_features=features, decoder_input_ids=ids[:, :2], past_key_values=empty)
                past = [
                    {half: {name: first[f"present.{number}.{half}.{name}"] for name in pair} for half, pair in layer}
                    for number, layer in enumerate(layer.items() for layer in empty)
                ]
                later = flat(input_features=features[:, :0], decoder_input_ids=ids[:, 2:], past_key_values=past)
        except (RuntimeError, IndexError) as error:
            raise _no_steps(first_line(error)) from error
        found = torch.cat([first["logits"], later["logits"]], 1)
        if not torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max())):
            raise _no_steps("`logits` differ from those of a single call")


def fix_sizes(program: ExportedProgram) -> None:
    """Replace sizes that a view infers by known ones: for empty tensors they cannot be inferred."""
    for node in program.graph.nodes:
        # with zero elements, any size fits in place of -1
        if node.target in (torch.ops.aten.view.default, torch.ops.aten.reshape.default) and -1 in node.args[1]:
            sizes = zip(node.args[1], node.meta["val"].shape, strict=True)
            known = [size if own == -1 and isinstance(size, int) else own for own, size in sizes]
            node.args = (node.args[0], known)
    program.graph_module.recompile()


def _filled(layers: Layers) -> DynamicCache:
    """Return a cache of transformers with these keys and values."""
    cache = DynamicCache()
    for number, layer in enumerate(layers):
        cache.update(layer["key"], layer["value"], number)
    return cache


def _layers(cache: object) -> list[dict[str, Tensor]]:
    """Return keys and values of every layer."""
    layers = getattr(cache, "layers", ())
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    kept = [(key, value) for key, value in pairs if isinstance(key, Tensor) and isinstance(value, Tensor)]
    if not kept or len(kept) != len(pairs) or any(tensor.dim() != 4 for pair in kept for tensor in pair):
        raise _other_cache(cache)
    return [{"key": key, "value": value} for key, value in kept]


def _present(kept: Mapping[str, Layers]) -> dict[str, Tensor]:
    """Return the outputs with the caches of both halves."""
    return {
        f"present.{number}.{half}.{name}": value
        for number in range(len(kept["decoder"]))
        for half, layers in kept.items()
        for name, value in layers[number].items()
    }


def _map(change: Callable[[Tensor], Tensor], layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: change(tensor) for name, tensor in layer.items()}


def _flat(tensor: Tensor) -> Tensor:
    """Return keys or values [batch, heads, windows, states, width] as [batch, heads, tokens, width]."""
    batch, heads, _, _, width = tensor.shape
    return tensor.reshape(batch, heads, -1, width)


def _in_windows(tensor: Tensor, states: int) -> Tensor:
    """Return keys or values [batch, heads, tokens, width] as [batch, heads, windows, states, width]."""
    batch, heads, _, width = tensor.shape
    return tensor.reshape(batch, heads, -1, states, width)


def _other_cache(cache: object) -> BaseModelError:
    return BaseModelError(
        "caches more than keys and values of each layer",
        found=f"`{type(cache).__name__}`",
        expected="a cache of [batch, heads, tokens, width] tensors in every layer",
        fix=CAPTURE_BARE,
    )


def _no_steps(found: str) -> BaseModelError:
    return BaseModelError(
        "cannot continue from its cache",
        found=found,
        expected="a model that can run a decoder step without new encoder tokens",
        fix=CAPTURE_BARE,
    )
