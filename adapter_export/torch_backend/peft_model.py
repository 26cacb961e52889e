"""Transformers models with an adapter loaded by PEFT. Importing this module needs peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from peft import PeftModel
from torch import nn

from adapter_export.torch_backend.base.huggingface_folder import changed_folder
from adapter_export.torch_backend.base.torch_base import TorchBase


def peft_folder(
    folder: Path, base: TorchBase, adapter: Path, head: tuple[Sequence[str], int] | None
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function that runs a Hugging Face folder with a PEFT folder; see `changed_folder` for the rest."""

    def load(model: nn.Module) -> object:  # PEFT modifies the model in place
        return PeftModel.from_pretrained(model, str(adapter))

    return changed_folder(folder, base, load, head)
