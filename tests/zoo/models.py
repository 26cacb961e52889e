"""Tiny models of more than 220 architectures, by family."""

from __future__ import annotations

from image_models import IMAGES
from mixed_models import MORE
from recipes import Model
from sound_models import SOUNDS
from text_models import DECODERS, STACKS, TEXTS
from written_models import WRITTEN

MODELS: dict[str, dict[str, Model]] = {
    "Encoders of text": TEXTS,
    "Decoders": DECODERS,
    "Encoders with decoders": STACKS,
    "Images and video": IMAGES,
    "Speech and sound": SOUNDS,
    "Images with text, time series": MORE,
    "Modules written by hand": WRITTEN,
}
