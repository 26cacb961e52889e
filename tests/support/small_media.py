"""A small ViT with its processor, as its maker would save it; images and audio."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("circle", "square", "line")


def make_vit_folder(folder: Path) -> Path:
    """A Hugging Face folder: 2 layers of width 16, images of 16 × 16, a head of three labels."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="single_label_classification",
    )
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    size, mean, std = {"height": 16, "width": 16}, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    ViTImageProcessorPil(size=size, image_mean=mean, image_std=std).save_pretrained(folder)
    return folder


def png(pixels: np.ndarray) -> bytes:
    """An image as PNG, uint8 [height, width, 3] or [height, width]."""
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def wav(samples: np.ndarray, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """Encode samples from -1 to 1 as WAV with the given bytes per sample, channels interleaved."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i4")
        if width == 1:
            writer.writeframes((whole + 128).astype("u1").tobytes())
        else:
            writer.writeframes(whole.view("u1").reshape(-1, 4)[:, :width].tobytes())
    return file.getvalue()
