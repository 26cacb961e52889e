"""What the tokenizer and the processor of a Hugging Face folder make for its model; needs transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch import Tensor

from adapter_export.errors import BaseModelError, InputError
from adapter_export.reading.documents import read_json
from adapter_export.reading.parsers import parsing
from adapter_export.text import Pair, Tokenizer
from adapter_export.torch_backend.base.inputs import SAMPLES, Prepared

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_SIZES = ((70, 90), (110, 60))
"""Height and width of two images; what does not differ between them, the processor makes equal."""

_SECONDS = (0.25, 0.4)
"""The length of two sounds."""

_TYPES, _PAIR_TOKENS = "token_type_ids", 64


def prepared_by(folder: Path) -> Prepared:
    """What its tokenizer and its processor make; nothing is known of a folder without them."""
    values: dict[str, tuple[Tensor, Mapping[int, str]]] = {}
    if any((folder / name).is_file() for name in _PROCESSOR_FILES):
        noise = np.random.default_rng(0)
        images = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]
        values = _made(folder, transformers.AutoImageProcessor, lambda own, n: own(images[n], return_tensors="pt"))
        values = values or _made(folder, transformers.AutoFeatureExtractor, _heard)
    return Prepared(_typed(folder), values)


def _typed(folder: Path) -> bool | None:
    """Whether its tokenizer tells the texts of a pair apart: by its settings, by its class, by what it makes of one."""
    with suppress(InputError):
        config = read_json(folder / "tokenizer_config.json")
        config = config if isinstance(config, dict) else {}
        names = config.get("model_input_names")
        kind = getattr(transformers, str(config.get("tokenizer_class")), None)
        if not isinstance(names, list) and str(getattr(kind, "__module__", "")).startswith("transformers.models."):
            names = kind.model_input_names  # type: ignore[union-attr]
        if isinstance(names, list):
            return _TYPES in names
    with suppress(InputError):
        made = Tokenizer.from_folder(folder, _PAIR_TOKENS).batch([Pair("a", "b")], [_TYPES])
        return bool(made[_TYPES].any())
    return None


def _heard(own: Any, number: int) -> Mapping[str, Any]:
    noise = np.random.default_rng(number).standard_normal(int(own.sampling_rate * _SECONDS[number]))
    return own(noise.astype(np.float32), sampling_rate=own.sampling_rate, return_tensors="pt")  # type: ignore[no-any-return]


def _made(
    folder: Path, auto: Any, call: Callable[[Any, int], Mapping[str, Any]]
) -> dict[str, tuple[Tensor, Mapping[int, str]]]:
    """The tensors that its processor makes of the first of two inputs; axes that differ in the second are dynamic.

    Empty where transformers has no such processor for the folder, or it wants something else.
    """
    try:
        with parsing(partial(BaseModelError, where=folder)):
            own = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            first, second = (call(own, number) for number in range(2))
    except BaseModelError:
        return {}
    names: dict[tuple[int, int], str] = {}
    found: dict[str, tuple[Tensor, Mapping[int, str]]] = {}
    for name, tensor in first.items():
        other = second.get(name)
        if not isinstance(tensor, Tensor) or not isinstance(other, Tensor) or tensor.dim() != other.dim():
            continue
        axes = {0: "batch"}
        for place in range(1, tensor.dim()):
            lengths = tensor.shape[place], other.shape[place]
            if lengths[0] != lengths[1]:
                axes[place] = names.setdefault(lengths, _axis(tensor, place))
        found[name] = tensor, axes
    return found


def _axis(tensor: Tensor, place: int) -> str:
    if tensor.dim() > 3:
        return {1: "width", 2: "height"}.get(tensor.dim() - place, f"axis_{place}")
    return SAMPLES if tensor.dim() == 2 else "frames"
