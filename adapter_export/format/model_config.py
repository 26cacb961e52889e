"""Head class, labels and task of a model, from the `config.json` of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from adapter_export.errors import InputError
from adapter_export.format.generation import GenerationRecord
from adapter_export.format.records import Count
from adapter_export.graph.tasks import TASK_TYPES, ProblemType, Task
from adapter_export.safe_io.documents import read_json
from adapter_export.words import visible


@dataclass(frozen=True)
class Generation(GenerationRecord):
    """Settings for text generation that are not part of a model's graph.

    Attributes:
        begin: id of the token that starts a text, if any.
        tokenizer_config: text of `tokenizer_config.json`, if any.
    """

    begin: Count | None = None
    tokenizer_config: str | None = None

    def record(self) -> GenerationRecord:
        """Return the record for a bundle."""
        return GenerationRecord(**{field.name: getattr(self, field.name) for field in fields(GenerationRecord)})


ADAPTER_CONFIG = "adapter_config.json"
"""Configuration file of PEFT and AdapterHub adapters."""

CLASS_TYPES: Mapping[str, ProblemType] = {end: name for name, kind in TASK_TYPES.items() for end in kind.model_classes}
"""Task type of a transformers head, by the suffix of the model's class name."""

_PROBLEM_TYPES: Mapping[str, ProblemType] = {
    kind.config_name: name for name, kind in TASK_TYPES.items() if kind.config_name
}
"""Task types by `problem_type`."""

_CROSS_ENCODER = "sbert_ce_default_activation_function"


def class_type(name: str) -> ProblemType | None:
    """Return the task type of a class such as `BertForTokenClassification`, or `None` if unknown."""
    return next((kind for end, kind in CLASS_TYPES.items() if name.endswith(end)), None)


def known_labels(config: Path) -> tuple[str, ...]:
    """Return the values of `id2label` in a `config.json`, in class order."""
    return labels_of(read_json(config) if config.is_file() else {})


def known_problem(config: Path) -> ProblemType | None:
    """Return the `problem_type` of a `config.json`, or `None` if absent."""
    document = read_json(config) if config.is_file() else {}
    named = document.get("problem_type") if isinstance(document, dict) else None
    return _PROBLEM_TYPES.get(named) if isinstance(named, str) else None


def padding_id(config: Path) -> int | None:
    """Return the `pad_token_id` of a `config.json`, or `None` if absent."""
    document = read_json(config) if config.is_file() else {}
    padding = document.get("pad_token_id") if isinstance(document, dict) else None
    return padding if isinstance(padding, int) else None


def labels_of(config: object) -> tuple[str, ...]:
    """Return the values of `id2label` in class order; empty unless every class has a distinct name."""
    names = _names_of(config)
    return names if len(set(names)) == len(names) else ()


def _names_of(config: object) -> tuple[str, ...]:
    """Return the values of `id2label` in class order; empty unless every class has a name."""
    names = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return ()
    in_order = sorted((int(index), name) for index, name in names.items() if index.isdecimal())
    complete = [index for index, _ in in_order] == list(range(len(names)))
    return tuple(name for _, name in in_order) if complete else ()


def head_task(config: Mapping[str, Any], name: str, width: int) -> tuple[Task | None, Sequence[str]]:
    """Return the task of a head of class `name` with `width` outputs, and notes on gaps in the config.

    The task is `None` if the config does not determine it: the head then returns logits without answers.
    """
    kind = class_type(name)
    if kind is not None and TASK_TYPES[kind].pairs == "required":
        return Task(kind, input="pair"), ()
    names, notes = _names_of(config), list[str]()
    labels = tuple(name if names.index(name) == index else f"{name} ({index})" for index, name in enumerate(names))
    problem = config.get("problem_type")
    if kind == "single_label":
        activation = _cross_encoder(config)
        if activation is not None and width == 1:
            return Task("ranking", activation=score_activation(config), input="pair"), ()
        kind = _PROBLEM_TYPES.get(problem) if isinstance(problem, str) else "regression" if width == 1 else kind
    if kind == "regression":
        return Task("regression"), ()
    if kind is None:
        reason = f"its problem type is `{str(problem)[:60]}`, which is unknown"
        return None, (f"{reason}: it returns logits without answers",)
    if len(labels) != width:
        return None, (f"`config.json` does not name its {width} classes: it returns logits without answers",)
    if kind == "single_label" and problem is None:
        notes.append("`config.json` has labels but no `problem_type`: assuming one label per text (`single_label`)")
    again = [(name, label) for name, label in zip(names, labels, strict=True) if name != label]
    if again:
        name, label = again[0]
        more = f", and {len(again) - 1} more like it" if len(again) > 1 else ""
        notes.append(f"two classes are named `{name}` in `config.json`: the second becomes `{label}`{more}")
    return Task(kind, labels), notes


def score_activation(config: Mapping[str, Any]) -> Literal["sigmoid", "identity"]:
    """Return the activation of a cross-encoder's scores: the sigmoid unless `config.json` sets another."""
    named = _cross_encoder(config)
    return "sigmoid" if named is None or "sigmoid" in named.casefold() else "identity"


def _cross_encoder(config: Mapping[str, Any]) -> str | None:
    """Return the activation of a sentence-transformers cross-encoder, or `None` for other models."""
    record = config.get("sentence_transformers")
    activation = record.get("activation_fn") if isinstance(record, dict) else config.get(_CROSS_ENCODER)
    return activation if isinstance(activation, str) else None


def named_base(folder: Path) -> str | None:
    """Return the base model named in the configuration of a PEFT or AdapterHub adapter, if any."""
    try:
        document: Any = read_json(folder / ADAPTER_CONFIG)
    except InputError:
        return None
    known = document if isinstance(document, dict) else {}
    base = known.get("base_model_name_or_path") or known.get("model_name")
    return visible(base[:200]) if isinstance(base, str) and base else None
