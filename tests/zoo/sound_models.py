"""Models of speech and sound."""

from __future__ import annotations

from functools import partial

import torch
import transformers as hf
from recipes import CONVOLUTIONS, SIZES, TWO_STACKS, WORDS, Model, of_transformers, part_of, sound, values, words
from torch import nn
from transformers.models.moonshine_streaming.configuration_moonshine_streaming import MoonshineStreamingEncoderConfig
from transformers.models.moonshine_streaming.modeling_moonshine_streaming import MoonshineStreamingEncoder


def _moonshine() -> nn.Module:
    windows = {"sliding_windows": [[4, 0], [4, 2]], "num_key_value_heads": 2, "head_dim": 8}
    return MoonshineStreamingEncoder(MoonshineStreamingEncoderConfig(**SIZES, **windows))


def _speecht5() -> nn.Module:
    config = hf.SpeechT5Config(
        **{name: value for name, value in TWO_STACKS.items() if name != "d_model"},
        **CONVOLUTIONS,
        hidden_size=16,
        vocab_size=50,
        pad_token_id=0,
        num_mel_bins=8,
        speech_decoder_prenet_units=8,
        speaker_embedding_dim=6,
        max_text_positions=40,
        max_speech_positions=40,
        encoder_max_relative_position=8,
        use_cache=False,
    )
    return hf.SpeechT5ForSpeechToText(config)


SPEECH = {"num_mel_bins": 8, "max_source_positions": 10, **TWO_STACKS, **WORDS, "decoder_start_token_id": 1}

SOUNDS = {
    "Wav2Vec2": sound(4, "wav2vec2"),
    "HuBERT": sound(4, "hubert"),
    "WavLM": sound(4, "wavlm"),
    "SEW-D": sound(4, "sew-d", squeeze_factor=2, max_position_embeddings=40, position_buckets=8),
    "UniSpeech": sound(4, "unispeech"),
    "UniSpeech-SAT": sound(4, "unispeech-sat"),
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
    "SpeechT5": Model(
        10, _speecht5, lambda: {"input_values": torch.randn(2, 100), "decoder_input_ids": torch.randint(3, 50, (2, 5))}
    ),
    "Moonshine": Model(
        10,
        partial(
            of_transformers,
            "moonshine",
            hidden_size=16,
            intermediate_size=32,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            vocab_size=50,
            max_position_embeddings=40,
            pad_token_id=0,
        ),
        lambda: {"input_values": torch.randn(2, 2000), "decoder_input_ids": torch.randint(3, 50, (2, 5))},
    ),
    "VITS": Model(
        4,
        partial(
            of_transformers,
            "vits",
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            flow_size=16,
            vocab_size=50,
            spectrogram_bins=9,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            duration_predictor_filter_channels=8,
            prior_encoder_num_flows=2,
            prior_encoder_num_wavenet_layers=1,
            posterior_encoder_num_wavenet_layers=1,
        ),
        words,
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
