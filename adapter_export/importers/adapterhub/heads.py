"""Prediction heads of AdapterHub (`heads/base.py`): dropout, dense and activation in turn, on one token or on all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapter_export.errors import AdapterError, FormatError, UsageError, argument, within
from adapter_export.graph.adapter import Head
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds.adapterhub import activation_named
from adapter_export.graph.tasks import Task
from adapter_export.importers.adapterhub.folder import Saved
from adapter_export.importers.take import Taker, as_it_is, transposed, zeros

WITHOUT = f"give {argument('without_head', True)} to import the adapter alone"

_TASKS: Mapping[str, Task] = {
    "classification": "sequence_classification",
    "multilabel_classification": "sequence_classification",
    "image_classification": "sequence_classification",
    "tagging": "token_classification",
    "question_answering": "token_classification",
}
_NOTES = {
    "multilabel_classification": "the head is for several labels at once: take σ of each logit, not their softmax",
    "question_answering": "the head answers questions: its logits per token are those of the answer's start and end",
}
_REFUSED = {
    "multiple_choice": "its logits are those of single choices",
    "dependency_parsing": "it compares pairs of words",
    "masked_lm": "it predicts tokens",
    "causal_lm": "it predicts tokens",
    "seq2seq_lm": "it predicts tokens",
}
_SPANS = ("start", "end")


_MOST_LAYERS = 100


def import_head(saved: Saved, width: int) -> tuple[Head, Taker, tuple[str, ...]]:
    """Make a head of a `head_config.json` and its tensors.

    Args:
        saved: config and tensors.
        width: of the base's final hidden state.

    Returns:
        The head, its weights in a taker, and what a user should know.

    Raises:
        AdapterError: it is of a kind that cannot be expressed; the message names it.
        FormatError: the config is incomplete, or its labels do not fit.
        TensorError: tensors are missing, left over or misshapen; all of them are listed.
    """
    with within(saved.path):
        config = _config(saved)
        task, labels, numbers = _classes(config)
        try:
            head = make_head(task, width=width, labels=labels, numbers=numbers, options=_options(config, task))
        except UsageError as error:
            raise AdapterError(error.what, found=error.found, expected=error.expected, fix=WITHOUT) from error
    keys, others = _split(saved, str(saved.name))
    taker = Taker({full: saved.tensors[full] for full in keys.values()}, saved.weights)
    step = 3 if config.get("activation_function") else 2  # dropouts and activations are numbered, too
    layers = [*(f"dense_{number}" for number in range(1, config["layers"])), "classifier"]
    recipes = {}
    for number, layer in enumerate(layers):
        library = f"{1 + step * number}"
        for role, recipe in (("weight", transposed), ("bias", as_it_is)):
            name = f"{layer}.{role}"
            recipes[name] = recipe(f"{library}.{role}", head.graph.parameters[name])
    if config.get("bias", True) is False:
        recipes["classifier.bias"] = zeros("classes")
    taker.take_head(head, recipes, keys)
    taker.check()
    notes = [_NOTES[config["head_type"]]] if config["head_type"] in _NOTES else []
    notes += taker.notes()
    if others:
        names = ", ".join(others)
        notes.append(f"the file also holds {names}: the library saves heads by the beginnings of their names")
    return head, taker, tuple(notes)


def _config(saved: Saved) -> Mapping[str, Any]:
    config = saved.document.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("layers"), int):
        raise AdapterError(
            "is the head of a model that has only one, and no config of its own",
            found=f"`model_class`: `{saved.document.get('model_class')}`",
            expected="a head that was added to an `AutoAdapterModel`",
            fix=f"{WITHOUT}, or convert it with the library's `AutoAdapterModel`",
        )
    kind, layers, dropout = str(config.get("head_type")), config["layers"], config.get("dropout_prob") or 0.0
    if kind not in _TASKS:
        raise AdapterError(
            "a kind of head that cannot be expressed",
            found=f"`{kind}`: {_REFUSED.get(kind, 'it is not known')}",
            fix=WITHOUT,
        )
    if config.get("use_pooler"):
        raise AdapterError(
            "the head reads the base's own pooler, whose weights are not in the file",
            found="`use_pooler`: true",
            fix=WITHOUT,
        )
    if not 1 <= layers <= _MOST_LAYERS:
        raise FormatError("has no number of layers", found=f"`layers`: {layers}", expected=f"1 to {_MOST_LAYERS}")
    if not isinstance(dropout, int | float) or not math.isfinite(dropout):
        raise FormatError("has no rate of dropout", found=f"`dropout_prob`: `{dropout}`", expected="a number")
    return config


def _classes(config: Mapping[str, Any]) -> tuple[Task, tuple[str, ...], int]:
    """The task, the labels in the order of the logits, and how many numbers there are."""
    numbers = config.get("num_labels")
    if not isinstance(numbers, int) or isinstance(numbers, bool) or numbers < 1:
        raise FormatError("has no number of classes", found=f"`num_labels`: {numbers}", expected="at least 1")
    task = _TASKS[config["head_type"]]
    if config["head_type"] == "question_answering" and numbers == len(_SPANS):
        return task, _SPANS, numbers
    if task == "sequence_classification" and numbers == 1:
        return "regression", (), 1
    return task, _labels(config.get("label2id"), numbers), numbers


def _labels(label2id: object, numbers: int) -> tuple[str, ...]:
    if label2id is None:
        return tuple(f"LABEL_{number}" for number in range(numbers))
    if not isinstance(label2id, dict) or sorted(map(str, label2id.values())) != sorted(map(str, range(numbers))):
        raise FormatError(
            "labels and classes differ",
            found=f"`label2id`: {label2id}",
            expected=f"a name for each of 0 to {numbers - 1}",
        )
    return tuple(sorted(label2id, key=lambda label: int(label2id[label])))


def _options(config: Mapping[str, Any], task: Task) -> HeadOptions:
    activation = config.get("activation_function")
    return HeadOptions(
        pooling="mean" if task == "token_classification" else "first",
        dense=config["layers"] - 1,
        activation="identity" if not activation else activation_named(str(activation)),
        dropout=float(config.get("dropout_prob") or 0.0),
    )


def _split(saved: Saved, name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The names of the head's own tensors, and those of other heads."""
    keys: dict[str, str] = {}
    others: dict[str, None] = {}
    for full in saved.tensors:
        owner, _, tensor = full.removeprefix("heads.").partition(".")
        if full.startswith("heads.") and owner != name and owner.startswith(name):
            others[f"`{owner}`"] = None
        else:
            keys[tensor if owner == name else full] = full
    return keys, tuple(others)
