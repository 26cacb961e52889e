"""Models of images with text, and of series."""

from __future__ import annotations

from functools import partial

import torch
import transformers as hf
from image_models import WINDOWS
from recipes import (
    GROUPED,
    IMAGE,
    SIZES,
    STACK_SIZES,
    WORDS,
    Model,
    Tensors,
    of_transformers,
    text,
    values,
    words,
)
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


def _vilt() -> Model:
    make = partial(of_transformers, "vilt", **{**SIZES, **WORDS, **IMAGE}, max_image_length=-1)
    mask = {"pixel_mask": torch.ones(2, 16, 16, dtype=torch.int64)}
    ids = torch.randint(3, 50, (2, 7))
    types = {"token_type_ids": torch.zeros_like(ids)}
    inputs = lambda: {**_images_and_words(), **types, **mask}  # noqa: E731
    return Model(4, make, inputs)


def _two_towers(kind: str) -> nn.Module:
    return of_transformers(kind, text_config={**SIZES, **WORDS}, vision_config={**SIZES, **IMAGE})


def _images_and_queries() -> Tensors:
    """Two images with two queries each."""
    ids = torch.randint(3, 50, (4, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 16, 16)}


def _groupvit() -> nn.Module:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, **IMAGE, "depths": [1, 1, 1]}
    vision |= {"num_hidden_layers": 3, "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 2]}
    return hf.GroupViTModel(
        hf.GroupViTConfig(
            text_config={**SIZES, **WORDS}, vision_config=vision, projection_dim=8, projection_intermediate_dim=16
        )
    )


def _paligemma() -> hf.PaliGemmaConfig:
    return hf.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **SIZES, **IMAGE, "vision_use_head": False},
        text_config={"model_type": "gemma", **SIZES, **WORDS, **GROUPED, "use_cache": False},
        image_token_index=3,
        projection_dim=16,
        hidden_size=16,
        vocab_size=50,
    )


def _gemma3() -> nn.Module:
    windows = {"sliding_window": 8, "query_pre_attn_scalar": 8, "use_cache": False}
    config = hf.Gemma3Config(
        text_config={**SIZES, **WORDS, **GROUPED, **windows},
        vision_config={**SIZES, **IMAGE, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=3,
        boi_token_index=4,
        eoi_token_index=5,
    )
    return hf.Gemma3Model(config)


def _after_image(tokens: int) -> Tensors:
    """A text after the tokens of an image."""
    ids = torch.cat([torch.full((2, tokens), 3), torch.randint(6, 50, (2, 7))], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 16, 16)}


def _regions_and_words() -> Tensors:
    regions = {"visual_embeds": torch.randn(2, 4, 12), "visual_attention_mask": torch.ones(2, 4, dtype=torch.int64)}
    return {**words(), **regions}


def _pix2struct() -> nn.Module:
    sizes = {"hidden_size": 16, "d_ff": 32, "d_kv": 8}
    vision = {**sizes, "patch_embed_hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "seq_len": 12}
    config = hf.Pix2StructConfig(
        text_config={**sizes, "num_layers": 2, "num_heads": 2, "vocab_size": 50, "eos_token_id": 2},
        vision_config=vision,
    )
    config.use_cache = False
    return hf.Pix2StructForConditionalGeneration(config)


def _patches() -> Tensors:
    """Nine patches of an image, with their rows and columns, and an answer."""
    places = torch.stack([torch.arange(9) % 3 + 1, torch.arange(9) // 3 + 1], -1).float()
    return {
        "flattened_patches": torch.cat([places.expand(2, 9, 2), torch.randn(2, 9, 12)], -1),
        "attention_mask": torch.ones(2, 9),
        "decoder_input_ids": torch.randint(3, 50, (2, 5)),
    }


def _seq2seq(vision: hf.PreTrainedConfig, writer: hf.PreTrainedConfig) -> nn.Module:
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, writer)
    config.decoder_start_token_id, config.pad_token_id, config.decoder.use_cache = 1, 0, False
    return hf.VisionEncoderDecoderModel(config)


def _vit_to_gpt2() -> nn.Module:
    writer = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40, vocab_size=50, add_cross_attention=True)
    return _seq2seq(hf.ViTConfig(**SIZES, **IMAGE), writer)


def _deit_to_trocr() -> nn.Module:
    layers = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    return _seq2seq(hf.DeiTConfig(**SIZES, **IMAGE), hf.TrOCRConfig(**WORDS, **layers, cross_attention_hidden_size=16))


def _donut() -> nn.Module:
    writer = hf.MBartConfig(**WORDS, **STACK_SIZES, is_decoder=True, add_cross_attention=True)
    return _seq2seq(hf.DonutSwinConfig(**WINDOWS), writer)


def _image_and_answer(size: int) -> Tensors:
    return {"pixel_values": torch.randn(2, 3, size, size), "decoder_input_ids": torch.randint(3, 50, (2, 5))}


MORE = {
    "CLIP": Model(8, _clip, _images_and_words),
    "Chinese CLIP": Model(8, partial(_two_towers, "chinese_clip"), _images_and_words),
    "MetaCLIP 2": Model(8, partial(_two_towers, "metaclip_2"), _images_and_words),
    "SigLIP": Model(9, partial(_two_towers, "siglip"), _images_and_words),
    "OWL-ViT": Model(8, partial(_two_towers, "owlvit"), _images_and_queries),
    "OWLv2": Model(8, partial(_two_towers, "owlv2"), _images_and_queries),
    "GroupViT": Model(10, _groupvit, _images_and_words),
    "VisualBERT": Model(
        4, partial(of_transformers, "visual_bert", **SIZES, **WORDS, visual_embedding_dim=12), _regions_and_words
    ),
    "ViT to GPT-2": Model(10, _vit_to_gpt2, partial(_image_and_answer, 16)),
    "DeiT to TrOCR": Model(10, _deit_to_trocr, partial(_image_and_answer, 16)),
    "Donut": Model(12, _donut, partial(_image_and_answer, 32)),
    "Pix2Struct": Model(10, _pix2struct, _patches),
    "PaliGemma": Model(8, lambda: hf.PaliGemmaModel(_paligemma()), partial(_after_image, 16)),
    "ColPali": Model(
        8,
        lambda: hf.ColPaliForRetrieval(hf.ColPaliConfig(vlm_config=_paligemma(), embedding_dim=8)),
        partial(_after_image, 16),
    ),
    "Gemma 3 with images": Model(8, _gemma3, partial(_after_image, 4)),
    "LLaVA": Model(8, _llava, partial(_after_image, 16)),
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
    "PatchTSMixer": Model(
        6,
        partial(
            of_transformers,
            "patchtsmixer",
            context_length=24,
            patch_length=4,
            patch_stride=4,
            num_input_channels=2,
            d_model=8,
            num_layers=2,
            mode="mix_channel",
        ),
        values("past_values", 24, 2),
    ),
}
