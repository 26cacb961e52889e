"""Transformers models with an adapter loaded by PEFT. Importing this module needs peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from peft import PeftModel
from torch import nn

from adapter_export.errors import AdapterError
from adapter_export.safe_io.parsers import parsing
from adapter_export.torch_backend.base.huggingface_folder import changed_folder, quiet_transformers
from adapter_export.torch_backend.base.log_capture import captured_logs
from adapter_export.torch_backend.base.torch_base import TorchBase


def peft_folder(
    folder: Path, base: TorchBase, adapter: Path, head: tuple[Sequence[str], int] | None
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function that runs a Hugging Face folder with a PEFT folder; see `changed_folder` for the rest."""

    def load(model: nn.Module) -> object:  # PEFT modifies the model in place
        return PeftModel.from_pretrained(model, str(adapter))

    return changed_folder(folder, base, load, head)


@dataclass(frozen=True)
class LoadedKeys:
    """Result of PEFT's loader for an adapter.

    Attributes:
        model_class: class of the model, as `AutoPeftModel` chooses it.
        missing: tensors that PEFT expected; the adapter keeps their initial values.
        unexpected: tensors of the file that PEFT ignored.
    """

    model_class: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


_MOST_PARAMETERS = 10**9
"""Maximum size of a model that is made in memory, 4 GB."""


def loaded_keys(folder: Path, adapter: Path, *, in_memory: bool) -> LoadedKeys:
    """Load an adapter with PEFT into a model of a Hugging Face folder, without the weights of the model.

    Args:
        folder: the folder, whose config is read.
        adapter: the adapter's folder.
        in_memory: make the model in memory if an initialization computes with its weights. The config of a broken
            adapter may state matrices of any size.

    Raises:
        AdapterError: PEFT or transformers refuses.
    """

    def refusal(reason: str) -> AdapterError:
        return AdapterError("is refused by PEFT", where=adapter, found=reason)

    with captured_logs(), quiet_transformers(), parsing(refusal):
        config: Any = peft.PeftConfig.from_pretrained(str(adapter))
        of_base = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        model = _made(_model_class(config, of_base), of_base, "meta")
        small = sum(parameter.numel() for parameter in model.parameters()) <= _MOST_PARAMETERS
        try:
            return _load(model, config, adapter, on_meta=True)
        except (NotImplementedError, RuntimeError) as error:
            mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            if mismatches:
                raise refusal(mismatches[0]) from error
            if not in_memory or not small:
                raise
        return _load(_made(type(model), of_base, "cpu"), config, adapter, on_meta=False)


def _made(model_class: Any, of_base: Any, device: str) -> Any:
    make = getattr(model_class, "from_config", model_class) if "Auto" in model_class.__name__ else model_class
    with torch.device(device):
        return make(of_base)


def _load(model: Any, config: Any, adapter: Path, *, on_meta: bool) -> LoadedKeys:
    name = type(model).__name__
    wrapped: Any = peft.get_peft_model(model, config, low_cpu_mem_usage=on_meta)
    result = wrapped.load_adapter(str(adapter), "default", low_cpu_mem_usage=on_meta)
    if config.is_prompt_learning:  # its vectors are no parameters of the model, and are loaded apart
        return LoadedKeys(name, (), ())
    return LoadedKeys(name, tuple(result.missing_keys), tuple(result.unexpected_keys))


def _model_class(config: Any, of_base: Any) -> Any:
    """Return the class that `AutoPeftModel` opens: by the task, or by the name that `auto_mapping` records."""
    wrapper = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type)
    for auto in vars(peft.auto).values():
        if isinstance(auto, type) and wrapper is not None and getattr(auto, "_target_peft_class", None) is wrapper:
            return getattr(auto, "_target_class", None) or transformers.AutoModel
    mapping = config.auto_mapping if isinstance(config.auto_mapping, dict) else {}
    named: Any = getattr(transformers, str(mapping.get("base_model_class")), None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named if isinstance(of_base, getattr(named, "config_class", ())) else transformers.AutoModel
    return transformers.AutoModel


def named_modules(folder: Path) -> frozenset[str]:
    """Return the module paths of the class that a folder's config names; empty if transformers lacks it.

    Raises:
        AdapterError: transformers cannot make the model.
    """
    with captured_logs(), quiet_transformers(), parsing(lambda reason: AdapterError("has no model", found=reason)):
        config: Any = transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        named: Any = getattr(transformers, str((config.architectures or [None])[0]), None)
        if not isinstance(named, type) or not issubclass(named, transformers.PreTrainedModel):
            return frozenset()
        return frozenset(path for path, _ in _made(named, config, "meta").named_modules())
