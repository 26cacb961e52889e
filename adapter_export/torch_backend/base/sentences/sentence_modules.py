"""Modules of sentence-transformers after a model: one vector of a text, a vector of each token, or a sparse vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM

from adapter_export.errors import BaseModelError, within
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.ops import POOLINGS
from adapter_export.safe_io.documents import read_json
from adapter_export.torch_backend.torch_lowering import pooling_operator
from adapter_export.words import quoted

TEXT_VALUE, TOKEN_VALUE = "sentence_embedding", "token_embeddings"
"""Values that modules read and write."""

_POOLINGS = {name: pooling for pooling, row in POOLINGS.items() for name in row.also_called}
"""Poolings of the head language, by their names in sentence-transformers."""

_FLAG = "pooling_mode_"
_FLAGS = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
_FLAGS |= {"weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken"}

_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Mish", "ReLU6")
"""Classes of `torch.nn` without arguments that may follow a dense layer."""

_LOGARITHMS = {"relu": 1, "log1p_relu": 2}
"""Activations of `SpladePooling`, with the logarithms that follow."""


Module = tuple[str, Path]
"""Class of a module, and its folder."""


class Normalize(nn.Module):
    """Scale vectors to length 1."""

    def forward(self, vector: Tensor) -> Tensor:
        """Divide by the length."""
        return F.normalize(vector, p=2.0, dim=-1)


class SentenceModules(nn.Module):
    """Modules after a model: the result from what the model returns and the mask.

    Attributes:
        model_class: class of transformers that opens the model.
        reads: the model's output that the modules read.
        task_type: type of the task.
    """

    model_class: Any = AutoModel
    reads = "last_hidden_state"
    task_type = "embedding"
    layers: nn.Sequential

    def task_facts(self) -> Mapping[str, Any]:
        """Return facts of the task."""
        return {"normalised": bool(self.layers) and isinstance(self.layers[-1], Normalize)}


class Sentence(SentenceModules):
    """One vector of a text: a pooling and layers, [batch, width]."""

    def __init__(self, pooling: str, layers: list[nn.Module]) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool with the operator of that name, then apply the layers."""
        return self.layers(pooling_operator(self.pooling)(hidden, mask))  # type: ignore[no-any-return]

    def task_facts(self) -> Mapping[str, Any]:
        """Return facts of the task."""
        return {**super().task_facts(), "pooling": self.pooling}


class TokenLayers(SentenceModules):
    """A vector of each token: layers, [batch, tokens, width]."""

    task_type = "multi_vector"

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 — padding is cut off later
        """Apply the layers to each token."""
        return self.layers(hidden)  # type: ignore[no-any-return]


class Splade(SentenceModules):
    """A weight of each vocabulary entry, [batch, vocabulary] (Formal et al. 2021, §3).

    `times` is how often the logarithm is taken: twice by models of OpenSearch.
    """

    model_class = AutoModelForMaskedLM
    reads = "logits"
    task_type = "sparse_embedding"

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Take the maximum over the tokens of the mask, then the logarithm, which does not change their order."""
        weights = pooling_operator("max")(logits, mask)
        for _ in range(self.times):
            weights = torch.log1p(F.relu(weights))
        return weights

    def task_facts(self) -> Mapping[str, Any]:
        """Return facts of the task."""
        return {"pooling": "max"}


def read_sentence(modules: Sequence[Module]) -> tuple[Sentence, bool]:
    """Return the modules as one, and whether prompts are pooled, too."""
    if not modules or modules[0][0] != "Pooling":
        raise BaseModelError("has an unknown pooling", found=f"`{modules[0][0]}`" if modules else "no pooling")
    config = read_config(modules[0][1] / "config.json")
    found = config.get("pooling_mode") or [name for flag, name in _FLAGS.items() if config.get(f"{_FLAG}{flag}")]
    modes = [found] if isinstance(found, str) else list(found) or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        named = " and ".join(f"`{mode}`" for mode in modes)
        raise BaseModelError("has a pooling that heads do not support", found=named, expected=quoted(_POOLINGS))
    layers = [layer for name, place in modules[1:] for layer in _layers(name, place, TEXT_VALUE)]
    return Sentence(_POOLINGS[modes[0]], layers), config.get("include_prompt") is not False


def read_token_layers(modules: Sequence[Module], *, pins_inputs: bool = True) -> TokenLayers:
    """Return the layers of a model with a vector for each token; unless `pins_inputs`, configs may omit what they read.

    Raises:
        BaseModelError: there is a module that heads do not support.
    """
    default = TEXT_VALUE if pins_inputs else TOKEN_VALUE
    layers = [(name, place) for name, place in modules if name != "MultiVectorMask"]
    return TokenLayers([layer for each in layers for layer in _layers(*each, TOKEN_VALUE, default)])


def read_splade(place: Path) -> Splade:
    """Return the module of a `SpladePooling`.

    Raises:
        BaseModelError: it sums over tokens, or has an unknown activation.
    """
    config = read_config(place / "config.json")
    pooling, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if pooling != "max" or activation not in _LOGARITHMS:
        found = f"`{pooling}` of `{activation}`"[:100]
        expected = f"`max` of {quoted(_LOGARITHMS)}"
        raise BaseModelError("has a pooling that heads do not support", where=place, found=found, expected=expected)
    return Splade(_LOGARITHMS[activation])


def read_config(path: Path) -> Mapping[str, Any]:
    """Return a JSON object; empty if the file is missing."""
    document = read_json(path) if path.is_file() else {}
    return document if isinstance(document, dict) else {}


def _layers(name: str, folder: Path, value: str, default: str = TEXT_VALUE) -> list[nn.Module]:
    """Return the layers of a module that reads and writes `value`; `default` is what it reads if its config is silent.

    Raises:
        BaseModelError: it reads another value, or heads do not support it.
    """
    config = read_config(folder / "config.json")
    read = config.get("module_input_name") or default
    others = [each for each in (read, config.get("module_output_name") or read) if each != value]
    if others or config.get("use_residual"):
        raise BaseModelError("has a module that does not read the preceding one", where=folder, found=f"`{others}`")
    if name == "Normalize":
        return [Normalize()]
    if name == "Dropout":
        return [nn.Dropout(float(config.get("dropout", 0)))]
    if name == "Dense":
        return [_loaded(nn.Linear, "linear", folder), _activation(config, folder)]
    if name == "LayerNorm":
        return [_loaded(nn.LayerNorm, "norm", folder)]
    raise BaseModelError("has a module that heads do not support", where=folder, found=f"`{name}`")


def _activation(config: Mapping[str, Any], folder: Path) -> nn.Module:
    given = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = given.rpartition(".")[2]
    if name not in _ACTIVATIONS or not given.startswith("torch.nn."):
        raise BaseModelError("has an activation that heads do not support", where=folder, found=f"`{given}`"[:100])
    return getattr(nn, name)()  # type: ignore[no-any-return]


def _loaded(kind: type[nn.Linear] | type[nn.LayerNorm], name: str, folder: Path) -> nn.Module:
    """Return a layer with the weights of its file, in float32."""
    path = folder / "model.safetensors"
    with within(folder):
        if not path.is_file():
            raise BaseModelError("has no weights in a safe format", found="no `model.safetensors`")
        tensors = {key: torch.from_numpy(array).float() for key, array in read_tensors(path, widen=True).items()}
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        rank = 2 if kind is nn.Linear else 1
        if weight is None or weight.dim() != rank or len(tensors) != (1 if bias is None else 2):
            raise BaseModelError("has weights that do not match its class", found=", ".join(tensors))
        width = weight.shape[0]
        layer: nn.Module = nn.LayerNorm(width, bias=bias is not None)
        if kind is nn.Linear:
            layer = nn.Linear(weight.shape[1], width, bias=bias is not None)
        try:
            layer.load_state_dict({key.removeprefix(f"{name}."): value for key, value in tensors.items()})
        except RuntimeError as error:
            raise BaseModelError("has weights whose shapes do not match its class", found=str(error)[:200]) from error
    return layer
