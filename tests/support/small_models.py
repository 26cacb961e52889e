"""Small models of transformers with random weights, and their programs, each traced once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from adapter_export.torch_backend.base import torch_base

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "Albert": {"embedding_size": 16},
    "DistilBert": {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64},
    "Electra": {"embedding_size": 16},
    "GPT2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40}
    | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    "Llama": {"num_key_value_heads": 2},
    "ModernBert": dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    "Roberta": {"pad_token_id": 1},
    "ViT": {"image_size": 32, "patch_size": 8},
}


def small(name: str, head: str = "Model", **options: Any) -> PreTrainedModel:
    """A model of one layer of width 32, `BertModel` for `Bert`; its weights have standard deviation 0.2."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | _OPTIONS.get(name, {}) | options)
    model: PreTrainedModel = getattr(transformers, f"{name}{head}")(config)
    return model.eval()


_programs: dict[str, Any] = {}


@contextmanager
def traced_once() -> Iterator[None]:
    """Trace models of one class, configuration and weights once in a process, which takes most of the time of a test.

    The program has a copy of the weights, so that a test may change its own.
    """
    capture = torch_base.capture

    def known(module: torch.nn.Module, *given: Any) -> Any:
        hooks = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
        if hooks or not isinstance(module, PreTrainedModel):
            return capture(module, *given)
        key = _content(module, [one for one in given if one])
        if key not in _programs:
            _programs[key] = capture(deepcopy(module), *given)
        return _programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_base, "capture", known)
        yield


_SAYS_NOTHING = ("_name_or_path", "architectures", "transformers_version", "id2label", "label2id")
"""Fields of a configuration that say where a model comes from, and what its classes are called."""


def _content(module: PreTrainedModel, given: Any) -> str:
    shapes = pytree.tree_map_only(torch.Tensor, lambda tensor: (tensor.dtype, tensor.shape), given)
    config = {name: value for name, value in module.config.to_dict().items() if name not in _SAYS_NOTHING}
    digest = hashlib.sha256(f"{type(module)} {sorted(config.items())} {shapes}".encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
