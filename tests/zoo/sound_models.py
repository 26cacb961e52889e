"""Models of speech and sound."""

from __future__ import annotations

from functools import partial

import torch
from recipes import SIZES, TWO_STACKS, WORDS, Model, of_transformers, part_of, sound, values
from torch import nn
from transformers.models.moonshine_streaming.configuration_moonshine_streaming import MoonshineStreamingEncoderConfig
from transformers.models.moonshine_streaming.modeling_moonshine_streaming import MoonshineStreamingEncoder


def _moonshine() -> nn.Module:
    windows = {"sliding_windows": [[4, 0], [4, 2]], "num_key_value_heads": 2, "head_dim": 8}
    return MoonshineStreamingEncoder(MoonshineStreamingEncoderConfig(**SIZES, **windows))


ENCODER = {name: value for name, value in TWO_STACKS.items() if name.startswith(("encoder", "d_model"))}
SPEECH = {"num_mel_bins": 8, "max_source_positions": 10, **TWO_STACKS, **WORDS, "decoder_start_token_id": 1}

SOUNDS = {
    "Wav2Vec2": sound(4, "wav2vec2"),
    "HuBERT": sound(4, "hubert"),
    "WavLM": sound(4, "wavlm"),
    "SEW": sound(4, "sew", squeeze_factor=2),
    "Data2Vec audio": sound(4, "data2vec-audio", conv_pos_kernel_size=3, num_conv_pos_embeddings=2),
    "Wav2Vec2-Conformer": sound(8, "wav2vec2-conformer", conv_depthwise_kernel_size=3),
    "Wav2Vec2-BERT": Model(
        8,
        partial(
            of_transformers,
            "wav2vec2-bert",
            **SIZES,
            feature_projection_input_dim=12,
            conv_depthwise_kernel_size=3,
            apply_spec_augment=False,
        ),
        values("input_features", 11, 12),
        {"input_features": {0: "batch", 1: "frames"}},
    ),
    "Audio spectrogram transformer": Model(
        4,
        partial(
            of_transformers,
            "audio-spectrogram-transformer",
            **SIZES,
            patch_size=4,
            max_length=24,
            num_mel_bins=8,
            frequency_stride=4,
            time_stride=4,
        ),
        values("input_values", 24, 8),
    ),
    "Whisper": Model(
        10,
        partial(of_transformers, "whisper", **SPEECH, max_target_positions=40),
        lambda: {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.randint(3, 50, (2, 5))},
    ),
    "Whisper encoder": Model(
        4, partial(part_of, "whisper", "encoder", **SPEECH, max_target_positions=40), values("input_features", 8, 20)
    ),
    "Speech2Text": Model(
        10,
        partial(
            of_transformers,
            "speech_to_text",
            **{**SPEECH, "max_source_positions": 40},
            max_target_positions=40,
            input_feat_per_channel=8,
            conv_channels=16,
        ),
        lambda: {"input_features": torch.randn(2, 24, 8), "decoder_input_ids": torch.randint(3, 50, (2, 5))},
    ),
    "Moonshine streaming encoder": Model(4, _moonshine, values("input_values", 480), lengths=("samples=480",)),
    "Parakeet encoder": Model(
        8,
        partial(
            of_transformers,
            "parakeet_encoder",
            **SIZES,
            num_mel_bins=8,
            subsampling_factor=4,
            subsampling_conv_channels=4,
            conv_kernel_size=3,
        ),
        values("input_features", 24, 8),
    ),
}
