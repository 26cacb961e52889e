"""Folders of sentence-transformers: a model, followed by modules that turn its hidden state into a vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.errors import BaseModelError, InputError, within
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.ops import POOLINGS
from adapter_export.graph.tasks import Task
from adapter_export.safe_io.documents import read_json
from adapter_export.torch_backend.base.reranker import Reranker
from adapter_export.torch_backend.torch_lowering import pooling_operator
from adapter_export.words import quoted

MODULES_FILE = "modules.json"

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

_INPUT, _LOGITS = "sentence_embedding", "causal_logits"


class Sentence(nn.Module):
    """The modules after the model: [batch, width] from the hidden state and the mask."""

    def __init__(self, pooling: str, layers: list[nn.Module]) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool with the operator of that name, then apply the layers."""
        return self.layers(pooling_operator(self.pooling)(hidden, mask))  # type: ignore[no-any-return]


class Normalize(nn.Module):
    """Scale vectors to length 1."""

    def forward(self, vector: Tensor) -> Tensor:
        """Divide by the length."""
        return F.normalize(vector, p=2.0, dim=-1)


@dataclass(frozen=True)
class SentenceFolder:
    """A folder of sentence-transformers.

    Attributes:
        model: folder of the model, the same folder or one inside it.
        sentence: the modules after the model; `None` if they cannot be expressed, for the `reason`.
        reranker: computes a score from the model's logits, for a cross-encoder that is a language model.
        max_tokens: maximum length of its texts, if recorded.
        prefix: default prefix of each text.
        prompts: names of other prompts, which callers add themselves.
    """

    model: Path
    sentence: Sentence | None = None
    reranker: Reranker | None = None
    reason: str = ""
    max_tokens: int | None = None
    prefix: str = ""
    prompts: tuple[str, ...] = ()

    @property
    def chat_settings(self) -> Mapping[str, Any]:
        """Arguments that sentence-transformers passes to a chat template, except its own."""
        found = _text_config(self.model).get("processing_kwargs")
        given = found.get("chat_template") if isinstance(found, dict) else None
        known = given if isinstance(given, dict) else {}
        return {name: value for name, value in known.items() if name != "restore_suffix"}

    def task(self) -> tuple[Task, tuple[str, ...]]:
        """Return the task of its vectors, and notes."""
        assert self.sentence is not None
        normalised = bool(self.sentence.layers) and isinstance(self.sentence.layers[-1], Normalize)
        notes: tuple[str, ...] = ()
        if self.prompts:
            named = quoted(self.prompts)
            notes = (f"texts get no prompt; prepend the prompts {named} yourself",)
        task = Task(
            "embedding",
            max_tokens=self.max_tokens,
            pooling=self.sentence.pooling,
            normalised=normalised,
            prefix=self.prefix,
        )
        return task, notes


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """Read the modules of a folder of sentence-transformers; return `None` for any other folder.

    Raises:
        BaseModelError: it has no transformers model.
        InputError: `modules.json` cannot be read.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return None
    modules = [_module(entry, folder) for entry in _list(read_json(path))]
    if not modules or modules[0][0] != "Transformer":
        raise BaseModelError(
            "is a sentence-transformers model that does not start with a transformer",
            where=path,
            found=f"`{modules[0][0]}`" if modules else "no modules",
            expected="`Transformer`",
        )
    model = modules[0][1]
    try:
        if [name for name, _ in modules] == ["Transformer", "LogitScore"]:
            reranker = _reranker(modules[1][1], model)
            return SentenceFolder(model, reranker=reranker, max_tokens=_max_tokens(model))
        sentence = _sentence(modules[1:])
        prefix, prompts = _prompts(folder)
        if _text_config(model).get("do_lower_case"):
            raise BaseModelError("lowercases texts before the tokenizer sees them", found="`do_lower_case`")
        if not sentence[1] and any((prefix, *prompts)):
            raise BaseModelError("excludes the tokens of a prompt from pooling", found="`include_prompt` false")
    except InputError as error:
        return SentenceFolder(model, reason=error.message.rstrip("."))
    return SentenceFolder(model, sentence[0], max_tokens=_max_tokens(model), prefix=prefix, prompts=prompts)


def _list(document: object) -> list[Any]:
    return document if isinstance(document, list) else []


def _config(path: Path) -> Mapping[str, Any]:
    document = read_json(path) if path.is_file() else {}
    return document if isinstance(document, dict) else {}


def _module(entry: object, folder: Path) -> tuple[str, Path]:
    """Return the class of a module and its folder, which is inside the model's."""
    if isinstance(entry, dict) and isinstance(entry.get("type"), str) and isinstance(entry.get("path"), str):
        place = folder / entry["path"]
        if place.resolve().is_relative_to(folder.resolve()):
            return entry["type"].rpartition(".")[2] if entry["type"].startswith("sentence_transformers.") else "", place
    raise BaseModelError("has a module that cannot be read", where=folder / MODULES_FILE, found=f"`{entry}`"[:200])


def _sentence(modules: list[tuple[str, Path]]) -> tuple[Sentence, bool]:
    """Return the modules as one, and whether prompts are pooled, too."""
    if not modules or modules[0][0] != "Pooling":
        raise BaseModelError("has an unknown pooling", found=f"`{modules[0][0]}`" if modules else "no pooling")
    config = _config(modules[0][1] / "config.json")
    found = config.get("pooling_mode") or [name for flag, name in _FLAGS.items() if config.get(f"{_FLAG}{flag}")]
    modes = [found] if isinstance(found, str) else list(found) or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        named = " and ".join(f"`{mode}`" for mode in modes)
        raise BaseModelError("has a pooling that heads do not support", found=named, expected=quoted(_POOLINGS))
    layers = [layer for name, place in modules[1:] for layer in _layers(name, place)]
    return Sentence(_POOLINGS[modes[0]], layers), config.get("include_prompt") is not False


def _reranker(place: Path, model: Path) -> Reranker:
    """Read a `LogitScore`."""
    config = _config(place / "config.json")
    positive, negative = config.get("true_token_id"), config.get("false_token_id")
    good = isinstance(positive, int) and isinstance(negative, int | None)
    if not good or config.get("module_input_name", _LOGITS) != _LOGITS:
        raise BaseModelError("has a `LogitScore` that heads do not support", where=place, found=f"`{config}`"[:200])
    modalities = _text_config(model).get("modality_config")
    templated = isinstance(modalities, dict) and "message" in modalities
    return Reranker.of(cast(int, positive), negative, templated=templated)


def _layers(name: str, folder: Path) -> list[nn.Module]:
    config = _config(folder / "config.json")
    others = [config[key] for key in ("module_input_name", "module_output_name") if config.get(key, _INPUT) != _INPUT]
    if any(others) or config.get("use_residual"):
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


def _text_config(model: Path) -> Mapping[str, Any]:
    """Return the text settings of the model; the file name depends on the architecture."""
    return next((_config(path) for path in sorted(model.glob("sentence_*_config.json"))), {})


def _max_tokens(model: Path) -> int | None:
    found = _text_config(model).get("max_seq_length")
    if not isinstance(found, int):
        found = _config(model / "tokenizer_config.json").get("model_max_length")
    return found if isinstance(found, int) and 0 < found < 2**31 else None


def _prompts(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return the default prefix of every text, and the names of the other prompts that are not empty."""
    config = _config(folder / "config_sentence_transformers.json")
    prompts = config.get("prompts") or {}
    texts = {name: text for name, text in prompts.items() if isinstance(text, str) and text}
    default = config.get("default_prompt_name")
    return texts.get(default, ""), tuple(name for name in texts if name != default)
