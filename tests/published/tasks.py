"""Tasks of a published model: its adapter in PEFT's format, and the answer of transformers with that adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from configurations import Kind, Published
from safetensors.numpy import save_file
from shrink import STD
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import adapter_export as ae
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.task_names import ProblemType

RANK, ALPHA = 4, 8
LABELS = ("a", "b", "c")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        classes: transformers' classes with its head, by kind of model. Default: the class of the model's folder.
        peft: PEFT's name of it.
        labels: number of results of its head; 0 without a head.
        problem: the package's name of it.
        with_cache: whether the base is captured as it generates.
        result: the answer from the output of the class.
    """

    classes: Mapping[Kind, Any] = field(default_factory=dict)
    peft: str | None = None
    labels: int = 0
    problem: ProblemType | None = None
    with_cache: bool = False
    result: Callable[[Any], Tensor] = lambda output: output.logits


def _span(output: Any) -> Tensor:
    return torch.stack([output.start_logits, output.end_logits], -1)


_SEQUENCES = hf.AutoModelForSequenceClassification
_TOKENS, _SPANS = hf.AutoModelForTokenClassification, hf.AutoModelForQuestionAnswering
_OF_TEXTS: Mapping[Kind, Any] = {"encoder": _SEQUENCES, "decoder": _SEQUENCES}

TASKS: Mapping[str, Task] = {
    "features": Task(result=lambda output: output[0]),
    "causal_lm": Task(peft="CAUSAL_LM", with_cache=True),
    "single_label": Task(
        {
            **_OF_TEXTS,
            "image": hf.AutoModelForImageClassification,
            "audio": hf.AutoModelForAudioClassification,
        },
        "SEQ_CLS",
        len(LABELS),
        "single_label",
    ),
    "token": Task({"encoder": _TOKENS, "decoder": _TOKENS}, "TOKEN_CLS", len(LABELS), "token"),
    "span": Task({"encoder": _SPANS, "decoder": _SPANS}, "QUESTION_ANS", 2, "span", result=_span),
    "embedding": Task(problem="embedding"),
    "ranking": Task({**_OF_TEXTS, "reranker": _SEQUENCES}, "SEQ_CLS", 1, "ranking"),
}
OF_KINDS: Mapping[Kind, tuple[str, ...]] = {
    "encoder": ("features", "single_label", "token", "span", "embedding", "ranking"),
    "reranker": ("features", "ranking"),
    "decoder": ("features", "causal_lm", "single_label", "token", "span", "embedding", "ranking"),
    "seq2seq": ("features", "causal_lm"),
    "image": ("features", "single_label", "embedding"),
    "audio": ("features", "single_label", "embedding"),
}


def tasks_of(model: Published) -> tuple[str, ...]:
    """Return the tasks for which transformers has a class of this model, and those that need none."""
    config = type(hf.AutoConfig.for_model(model.type))
    return tuple(
        name
        for name in OF_KINDS[model.kind]
        if name not in model.without
        and (not TASKS[name].classes or config in TASKS[name].classes[model.kind]._model_mapping)
    )


class Reference:
    """The model of a folder in transformers, with the class of a task and a LoRA that is applied by hand.

    Args:
        folder: the model's folder.
        model: its description.
        name: the task.
    """

    def __init__(self, folder: Path, model: Published, name: str) -> None:
        torch.manual_seed(len(name))
        self.task, self._model, self._folder = TASKS[name], model, folder
        self.module = self._opened()
        self._randomize_head()
        self._lora = {path: self._factors(path) for path in self._paths()}
        if not self._lora:
            raise ValueError(f"{type(self.module).__name__} has no layers named {model.lora}")

    def _opened(self) -> Any:
        kind, labels = self._model.kind, {"num_labels": self.task.labels} if self.task.labels else {}
        if self.task.classes:
            module = self.task.classes[kind].from_pretrained(self._folder, **labels).eval()
            # classes of one model differ in the name of their body, under which its weights may not be found
            module.base_model.load_state_dict(self._body().state_dict(), strict=False)
            return module
        if self.task.with_cache:
            generating = hf.AutoModelForSeq2SeqLM if kind == "seq2seq" else hf.AutoModelForCausalLM
            return generating.from_pretrained(self._folder).eval()
        return self._body()

    def _body(self) -> Any:
        """The bare model."""
        if self._model.type == "whisper":  # its encoder has no class of its own
            whole = hf.AutoModelForAudioClassification.from_pretrained(self._folder).eval()
            return whole.encoder if self.task.problem == "embedding" else whole
        return hf.AutoModel.from_pretrained(self._folder).eval()

    def _head_tensors(self) -> dict[str, nn.Parameter]:
        """The parameters behind the bare model."""
        body = f"{self.module.base_model_prefix}."
        known = self.task.labels > 0
        return {name: each for name, each in self.module.named_parameters() if known and not name.startswith(body)}

    def _randomize_head(self) -> None:
        with torch.no_grad():
            for parameter in self._head_tensors().values():
                parameter.normal_(0, STD)

    def _paths(self) -> list[str]:
        """Linear layers of the bare model with the names that the LoRA changes."""
        head = {name.rpartition(".")[0] for name in self._head_tensors()}
        return [
            path
            for path, part in self.module.named_modules()
            if isinstance(part, nn.Linear | Conv1D) and path.rpartition(".")[2] in self._model.lora and path not in head
        ]

    def _factors(self, path: str) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank]."""
        wide, narrow = _sizes(self.module.get_submodule(path))
        return torch.randn(RANK, narrow) * STD, torch.randn(wide, RANK) * STD

    def save_peft(self, folder: Path) -> None:
        """Write the adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`."""
        head = self._head_tensors()
        tensors = {f"base_model.model.{name}": each.detach().numpy() for name, each in head.items()}
        for path, (first, second) in self._lora.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = first.numpy()
            tensors[f"base_model.model.{path}.lora_B.weight"] = second.numpy()
        config = {
            "bias": "none",
            "fan_in_fan_out": any(isinstance(part, Conv1D) for part in self.module.modules()),
            "lora_alpha": ALPHA,
            "modules_to_save": sorted({name.split(".")[0] for name in head}) or None,
            "peft_type": "LORA",
            "r": RANK,
            "target_modules": list(self._model.lora),
            "task_type": self.task.peft,
        }
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        save_file(tensors, folder / "adapter_model.safetensors")

    def apply_lora(self) -> None:
        """Add the LoRA to the weights: W + alpha / rank · B A."""
        with torch.no_grad():
            for path, (first, second) in self._lora.items():
                part = self.module.get_submodule(path)
                change = ALPHA / RANK * second @ first
                part.weight.add_(change.T if isinstance(part, Conv1D) else change)

    def answer(self, inputs: Arrays) -> np.ndarray:
        """Compute the task's result of each row for arrays by name.

        Each row is a call of its own: without a padding token, classifiers of transformers take one at a time.
        """
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items() if "past_key" not in name}
        with torch.no_grad():
            outputs = [self.module(**dict(zip(tensors, row, strict=True))) for row in _rows(tensors)]
            if self.task.problem == "embedding":
                return torch.cat([_embedding(output[0], self._model) for output in outputs]).numpy()
            return torch.cat([self.task.result(output) for output in outputs]).numpy()


def _rows(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(1) for tensor in tensors.values()), strict=True)


def _sizes(part: nn.Module) -> tuple[int, int]:
    """Return the outputs and the inputs of a linear layer."""
    shape = tuple(part.weight.shape)
    return shape[::-1] if isinstance(part, Conv1D) else shape


def _embedding(hidden: Tensor, model: Published) -> Tensor:
    """Pool [batch, tokens, width] of texts without padding."""
    pooled = {"mean": hidden.mean(1), "first": hidden[:, 0], "last": hidden[:, -1]}[model.pooling]
    return nn.functional.normalize(pooled, dim=-1) if model.normalise else pooled


def imported(reference: Reference, folder: Path, base: ae.Base, model: Published, name: str) -> Adapter:
    """Import the adapter of a reference from PEFT's files; embeddings are packed, as PEFT has none."""
    task = TASKS[name]
    reference.save_peft(folder)
    options: dict[str, Any] = {}
    if task.labels:
        options = {"task": task.problem, "labels": LABELS if task.problem in ("single_label", "token") else None}
        options |= model.head if task.peft == "SEQ_CLS" else {}
    adapter = ae.import_peft(folder, base, name=name, **options)
    if name != "embedding":
        return adapter
    return ae.pack(
        dict(adapter.weights),
        base,
        kind="lora",
        name=name,
        alpha=ALPHA,
        task="embedding",
        pooling=model.pooling,
        l2_normalise=model.normalise,
    )
