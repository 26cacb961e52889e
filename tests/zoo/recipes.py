"""Recipes for tiny models: sizes, inputs, and the number of sublayers counted by hand.

A sublayer adds a result computed through weights to a residual stream: attention, an ffn, a mixer, all experts
together. A model of two usual layers has 4, an encoder–decoder of two layers each 10, a model without a stream 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import small_bases
import torch
import transformers as hf
from torch import nn

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {**LAYERS, "intermediate_size": 32}
WORDS = {"vocab_size": 50, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {"image_size": 16, "patch_size": 4}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2} | {
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
STACK_SIZES = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")} | {
    "d_model": 16,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
TWO_STACKS = {**STACK_SIZES, "decoder_start_token_id": 1}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "vocab_size": 50,
} | {"decoder_start_token_id": 0}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8} | {
    "num_key_value_heads": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
FIXED = ("sequence=16",)
STATES = {"state_size": 4, "expand": 2, "conv_kernel": 4, "time_step_rank": 4}

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Model:
    """Recipe for a model.

    Attributes:
        sublayers: number of sublayers, counted by hand.
        make: creates it with initial weights.
        inputs: example inputs; `None` if the folder determines them.
        axes: dynamic axes of the inputs. Default: those chosen by `capture`.
        lengths: lengths for `capture`, such as `sequence=16`, if torch supports only one.
    """

    sublayers: int
    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensors] | None = None
    axes: Mapping[str, Mapping[int, str]] | None = None
    lengths: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """The model; its matrices have standard deviation 0.2, biases and weights of norms keep their mean."""
        torch.manual_seed(0)
        module = self.make().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                mean = parameter if parameter.dim() < 2 else torch.zeros(())
                if parameter.is_floating_point():
                    parameter.copy_(torch.randn(parameter.shape) * (0.2 if parameter.dim() > 1 else 0.1) + mean)
        return module


def of_transformers(kind: str, /, *, name: str | None = None, **settings: Any) -> nn.Module:
    """The bare model of a type of transformers; `name` is a class, if it is another one."""
    config = hf.AutoConfig.for_model(kind, **settings)
    config.use_cache = False
    return hf.AutoModel.from_config(config) if name is None else getattr(hf, name)(config)


def words() -> Tensors:
    ids = torch.randint(3, 50, (2, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def two_texts() -> Tensors:
    return {**words(), "decoder_input_ids": torch.randint(3, 50, (2, 5))}


def text(
    sublayers: int,
    kind: str,
    /,
    *,
    inputs: Callable[[], Tensors] = words,
    lengths: tuple[str, ...] = (),
    **settings: Any,
) -> Model:
    """Return a token model of the usual sizes with the given settings; `None` removes a setting."""
    given = {name: value for name, value in {**SIZES, **WORDS, **settings}.items() if value is not None}
    return Model(sublayers, partial(of_transformers, kind, **given), inputs, lengths=lengths)


def decoder(sublayers: int, kind: str, /, **settings: Any) -> Model:
    return text(sublayers, kind, **{"num_key_value_heads": 2, **settings})


def two_stacks(kind: str, /, **settings: Any) -> Model:
    """An encoder and a decoder."""
    return Model(10, partial(of_transformers, kind, **{**WORDS, **TWO_STACKS, **settings}), two_texts)


def values(name: str, *shape: int) -> Callable[[], Tensors]:
    return lambda: {name: torch.randn(2, *shape)}


def image(sublayers: int, kind: str, /, *, size: int = 16, **settings: Any) -> Model:
    given = {**SIZES, **IMAGE, "image_size": size, **settings}
    given = {name: value for name, value in given.items() if value is not None}
    return Model(sublayers, partial(of_transformers, kind, **given), values("pixel_values", 3, size, size))


def sound(sublayers: int, kind: str, /, **settings: Any) -> Model:
    """A model that reads samples of sound."""
    given = {**SIZES, **CONVOLUTIONS, "vocab_size": 20, "apply_spec_augment": False, **settings}
    return Model(sublayers, partial(of_transformers, kind, **given), values("input_values", 100))


def by_hand(sublayers: int, base: small_bases.Architecture) -> Model:
    """A module written for the tests."""
    return Model(sublayers, base.make, lambda: base.inputs(2, 7), base.axes())


def part_of(kind: str, part: str, /, **settings: Any) -> nn.Module:
    """A submodule of a model of transformers."""
    whole: nn.Module = of_transformers(kind, **settings).get_submodule(part)
    return whole
