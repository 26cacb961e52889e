"""Models of images with text, and of series."""

from __future__ import annotations

from functools import partial

import torch
import transformers as hf
from recipes import IMAGE, SIZES, WORDS, Model, Tensors, of_transformers, text, values, words
from torch import nn


def _llava() -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES, **IMAGE),
        text_config=hf.LlamaConfig(**SIZES, **WORDS, num_key_value_heads=2),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    return hf.LlavaModel(config)


def _clip() -> nn.Module:
    return hf.CLIPModel(hf.CLIPConfig(text_config={**SIZES, **WORDS}, vision_config={**SIZES, **IMAGE}))


def _images_and_words() -> Tensors:
    return {**words(), "pixel_values": torch.randn(2, 3, 16, 16)}


def _llava_inputs() -> Tensors:
    ids = torch.cat([torch.full((2, 16), 3), torch.randint(4, 50, (2, 7))], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 16, 16)}


def _vilt() -> Model:
    make = partial(of_transformers, "vilt", **{**SIZES, **WORDS, **IMAGE}, max_image_length=-1)
    mask = {"pixel_mask": torch.ones(2, 16, 16, dtype=torch.int64)}
    ids = torch.randint(3, 50, (2, 7))
    types = {"token_type_ids": torch.zeros_like(ids)}
    inputs = lambda: {**_images_and_words(), **types, **mask}  # noqa: E731
    return Model(4, make, inputs)


MORE = {
    "CLIP": Model(8, _clip, _images_and_words),
    "LLaVA": Model(8, _llava, _llava_inputs),
    "ViLT": _vilt(),
    "BLIP text": text(4, "blip_text_model", name="BlipTextModel", encoder_hidden_size=16, is_decoder=False),
    "PatchTST": Model(
        4,
        partial(
            of_transformers,
            "patchtst",
            d_model=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            context_length=24,
            patch_length=4,
            patch_stride=4,
            num_input_channels=2,
        ),
        values("past_values", 24, 2),
    ),
}
