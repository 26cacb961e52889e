"""Models of transformers with an adapter that PEFT loads. Importing this module needs peft."""

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
    """Return what runs a Hugging Face folder with a folder of PEFT; arguments and errors as of `changed_folder`."""

    def load(model: nn.Module) -> object:  # PEFT puts its layers into the model itself
        return PeftModel.from_pretrained(model, str(adapter))

    return changed_folder(folder, base, load, head)
