"""The models of Hugging Face folders as bases in memory, for what needs no archive: half the time of `capture`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoModel

from adapter_export.torch_backend.base.example_inputs import obvious_inputs
from adapter_export.torch_backend.base.log_capture import captured_logs
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of


@cache
def captured(folder: Path, kind: Any = AutoModel) -> TorchBase:
    """The model of a folder, by a class of transformers; a process captures it once."""
    with captured_logs():
        model = kind.from_pretrained(folder).eval()
        model.config.use_cache = False
        found = obvious_inputs(model)
        assert found is not None
        return base_of(model, *found)
