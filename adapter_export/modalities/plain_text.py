"""Texts, tokenized by the base's tokenizer."""

from __future__ import annotations

from adapter_export.modalities.modality import Modality


class TextModality(Modality):
    """Texts and pairs of texts."""

    name = "text"
    inputs = ("text", "pair")
    word = "text"
    extra = "text"


MODALITY = TextModality()
