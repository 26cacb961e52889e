"""Import of modules fully saved by PEFT as a prediction head.

PEFT's folders do not contain the computation of a head, and tensors do not show it: heads of equal shapes differ in
their activation (`tanh` in RoBERTa, `gelu` in ELECTRA), and a single linear layer reads the pooled first token in BERT
and the bare one in ViT. A table lists known heads by the name of the base in its model, the prefix of the adapter's
module paths. Other heads need the user's description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapter_export.errors import AdapterError, TensorError, UsageError, argument, quoted
from adapter_export.format.model_config import class_type
from adapter_export.graph.adapter import Head
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.tasks import PROBLEM_TYPES, TASK_TYPES, ProblemType, Task
from adapter_export.importers.peft.methods import Change
from adapter_export.importers.peft.peft_folder import Sorted
from adapter_export.importers.peft.peft_options import Options
from adapter_export.importers.tensor_map import Recipe, TensorMap


@dataclass(frozen=True)
class KnownHead:
    """A head: `classes(f(dense(pool(hidden))))`, or `classes(pool(hidden))`, by the paths of its layers.

    `pooling` is one of `POOLINGS`; `dense` is in the head or the base; without `classes`, the head has one layer.
    """

    pooling: str
    dense: str | None = None
    activation: str = "tanh"
    classes: str | None = None


RECIPES: Mapping[str, KnownHead] = {
    "bert": KnownHead("first", "bert.pooler.dense", "tanh", "classifier"),
    "albert": KnownHead("first", "albert.pooler", "tanh", "classifier"),
    **dict.fromkeys(  # `roberta` is also XLM-RoBERTa and CamemBERT
        ("roberta", "longformer", "mpnet", "esm"), KnownHead("first", "classifier.dense", "tanh", "classifier.out_proj")
    ),
    "electra": KnownHead("first", "classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": KnownHead("first", "pre_classifier", "relu", "classifier"),
    **dict.fromkeys(("vit", "deit"), KnownHead("first", classes="classifier")),
}
"""Sequence and image classification heads of transformers 5, from `modeling_<name>.py`."""


LAST_TOKEN = "score"
"""Module of decoders that classify texts by their last token, from `modeling_layers.py` of transformers 5."""

TOKENS = "tokens"
"""Pooling of a head without pooling: one result per token."""

_TASKS: Mapping[str, ProblemType] = {kind.peft_type: name for name, kind in TASK_TYPES.items() if kind.peft_type}
"""Task type of a head, by PEFT's name of the task.

PEFT does not distinguish single-label, multi-label and regression heads.
"""

_OF_A_TEXT = tuple(
    name for name in PROBLEM_TYPES if (one := TASK_TYPES[name]).output == "logits" and not one.has_choices
)
"""Possible task types of a `SEQ_CLS` head."""

_UNKNOWN = (
    "the number of labels per text is unknown, so the adapter returns logits without answers: "
    f"pass {argument('task', 'single_label')} or {argument('task', 'multi_label')}"
)
_UNKNOWN_TOKENS = (
    "the task of the token head is unknown, so the adapter returns logits without answers: pass "
    f"{argument('task', 'token')} or {argument('task', 'span')}"
)
_GUESSED = (
    "the number of labels per text is unknown: assuming one (`single_label`), as classes have "
    f"names; {argument('task', 'multi_label')} overrides it"
)

ChangeAt = Callable[[str, tuple[int, ...]], Change | None]
"""Returns a layer's change by its path and weight shape [out, in]; `None` if its tensors do not fit."""

BaseTensor = Callable[[str], np.ndarray | None]
"""Returns a tensor of the base by its name in the adapter's model, such as `bert.pooler.dense.weight`."""


@dataclass(frozen=True)
class HeadChoice:
    """The user's description of a head; `None` uses the table.

    `pooling` is one of `POOLINGS` or `tokens`; `activation` follows the head's dense layer; `labels` are in the order
    of the logits; `task` is the task type. `known_labels` are the labels of the base's config, used if their number
    matches, and `known_problem` is its task type.
    """

    pooling: str | None = None
    activation: str | None = None
    labels: tuple[str, ...] | None = None
    known_labels: tuple[str, ...] = ()
    leave_out: bool = False
    task: ProblemType | None = None
    known_problem: ProblemType | None = None


@dataclass(frozen=True)
class Layer:
    """A linear layer in torch's layout: `weight` [out, in], `bias` [out]."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class MadeHead:
    """An imported head, if any, with its weights.

    `used` are paths of modules outside of sites that the head contains; `notes` explain decisions.
    """

    head: Head | None = None
    used: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def take_head(
    found: Sorted,
    mapped: TensorMap,
    changes: ChangeAt,
    base: BaseTensor,
    width: int,
    options: Options,
    choice: HeadChoice,
    where: object,
) -> MadeHead:
    """Import the saved modules as a head, if any; `width` is the width of the final hidden state.

    `changes` returns the adapter's change of a base layer that the head reads.

    Raises:
        AdapterError: saved modules are not a head, or its pooling is unknown.
        UsageError: a head is described but missing, or the number of labels is wrong.
        TensorError: tensor shapes are inconsistent.
    """
    in_base = [path for path in found.saved if base(f"{path}.weight") is not None]
    if choice.leave_out or not found.saved:
        if choice.labels or choice.pooling or choice.activation or choice.task:
            raise UsageError("a head is described, but the adapter has none, or it is excluded", where=where)
        _refuse(in_base, where)
        if not found.saved:
            return MadeHead()
        # modules missing in the base belong to the head, and so do base layers that it reads
        read = [recipe.dense for recipe in RECIPES.values() if recipe.dense is not None]
        names = quoted(found.saved)
        return MadeHead(used=frozenset([*found.saved, *read]), notes=(f"the head was ignored: {names}",))
    saved = _saved_type(options, choice, in_base, where)
    tokens = not TASK_TYPES[saved].pools if saved is not None else choice.pooling == TOKENS
    recipe = KnownHead(TOKENS) if tokens else _recipe(found, mapped, choice, where)
    return _Maker(found, mapped, changes, base, width, where).make(saved, recipe, choice)


def _saved_type(options: Options, choice: HeadChoice, in_base: Sequence[str], where: object) -> ProblemType | None:
    """Return the head's task from the user, PEFT's config or the model's class.

    `single_label` represents `SEQ_CLS` unless the user sets it; `None` if only the user's `pooling` identifies a head.
    """
    saved = _TASKS.get(options.task_type or "") or class_type(options.model_class or "")
    named = options.task_type or options.model_class
    if saved is None and choice.pooling is None and choice.task is None:
        _refuse(in_base, where)
        raise AdapterError(
            "has fully trained modules that are not identified as a head",
            where=where,
            found=f"{quoted(options.saved)} and the task `{options.task_type}`",
            expected="the task `SEQ_CLS`, `TOKEN_CLS` or `QUESTION_ANS`",
            fix=f"if it is a head, describe its input with {argument('pooling', 'first')}, `mean`, `last` or `tokens`",
        )
    of_a_text = {saved, choice.task} <= {*_OF_A_TEXT}
    if choice.task is not None and saved not in (None, choice.task) and not of_a_text:
        found = f"{argument('task', choice.task)}, and PEFT saved `{named}`"
        raise UsageError("the task does not match the head", where=where, found=found)
    wanted = choice.task or saved
    if wanted is not None and choice.pooling is not None and TASK_TYPES[wanted].pools == (choice.pooling == TOKENS):
        found = f"{argument('pooling', choice.pooling)} of a head for `{wanted}`"
        raise UsageError("the pooling does not match the head", where=where, found=found)
    return wanted


def _recipe(found: Sorted, mapped: TensorMap, choice: HeadChoice, where: object) -> KnownHead:
    family = next(iter(found.adapted)).split(".")[0]
    known = RECIPES.get(family)
    if known is not None and choice.pooling is None:
        return replace(known, activation=choice.activation or known.activation)
    if choice.pooling is None and [*found.saved] == [LAST_TOKEN]:
        return KnownHead("last")
    if choice.pooling is None:
        raise AdapterError(
            "has a head with unknown pooling",
            where=where,
            found=f"a model with a base named `{family}`",
            expected=f"one of {quoted(RECIPES)}, or a head named `{LAST_TOKEN}`",
            fix=f"pass {argument('pooling', 'first')}, `mean` or `last`, or exclude the head with "
            f"{argument('without_head', True)}",
        )
    if len(found.saved) == 1:
        return KnownHead(choice.pooling)
    if len(found.saved) == 2 and choice.activation is not None:
        first, last = _in_order(found.saved, mapped, where)
        return KnownHead(choice.pooling, first, choice.activation, last)
    raise UsageError(
        "the activation after the head's dense layer is unknown"
        if len(found.saved) == 2
        else "the head has too many layers",
        where=where,
        found=quoted(found.saved),
        fix=f"pass {argument('activation')}" if len(found.saved) == 2 else None,
    )


def _in_order(saved: Mapping[str, Mapping[str, str]], mapped: TensorMap, where: object) -> tuple[str, str]:
    """Return the dense layer and the last one, determined by shapes unless they are square."""
    one, other = saved
    shapes = {path: mapped.tensors[keys["weight"]].shape if "weight" in keys else () for path, keys in saved.items()}
    fits = [
        (first, last) for first, last in ((one, other), (other, one)) if shapes[first][:1] == shapes[last][-1:] != ()
    ]
    if len(fits) != 1:
        raise UsageError("the order of the head's layers is ambiguous", where=where, found=f"`{one}` and `{other}`")
    return fits[0]


class _Maker:
    """Builds a head from a recipe."""

    def __init__(
        self, found: Sorted, mapped: TensorMap, changes: ChangeAt, base: BaseTensor, width: int, where: object
    ) -> None:
        self._found, self._mapped, self._changes = found, mapped, changes
        self._base, self._width, self._where = base, width, where
        self._used: set[str] = set()

    def make(self, saved: ProblemType | None, recipe: KnownHead, choice: HeadChoice) -> MadeHead:
        dense = None if recipe.dense is None else self._layer(recipe.dense)
        classes = self._layer(recipe.classes or next(iter(self._found.saved)))
        _refuse([path for path in self._found.saved if path not in self._used], self._where)
        layers = {"dense_1": dense, "classifier": classes} if dense else {"classifier": classes}
        read = self._width
        for layer in layers.values():
            if layer.weight.shape[1] != read or layer.bias.shape != (len(layer.weight),):
                raise TensorError(
                    "the layers of the head are inconsistent",
                    where=self._where,
                    found=f"a layer {list(layer.weight.shape)} with the bias {list(layer.bias.shape)}",
                    expected=f"one that reads {read} features",
                    fix="pass the base that the adapter was trained on",
                )
            read = len(layer.weight)
        count = len(classes.bias)
        if choice.labels is not None and len(choice.labels) != count:
            raise UsageError(
                "the number of labels differs from the number of classes",
                where=self._where,
                found=len(choice.labels),
                expected=count,
            )
        task, notes = _task(saved, count, choice, tokens=recipe.pooling == TOKENS)
        shown = Task("token", _default_labels(count)) if recipe.pooling == TOKENS else Task("regression")
        head = make_head(
            task or shown,
            width=self._width,
            numbers=count,
            hidden=None if dense is None else len(dense.bias),
            options=HeadOptions(
                pooling="first" if recipe.pooling == TOKENS else recipe.pooling,
                dense=int(dense is not None),
                activation=recipe.activation,
            ),
        )
        head = replace(head, task=task)
        recipes = {}
        for name, layer in layers.items():
            recipes[f"{name}.weight"] = Recipe((), layer.weight.transpose)
            recipes[f"{name}.bias"] = Recipe((), layer.bias.copy)
        self._mapped.take_head(head, recipes, {})
        return MadeHead(head, frozenset(self._used), notes)

    def _layer(self, path: str) -> Layer:
        """Return a layer of the head, or a base layer that the head reads, with the adapter's change."""
        self._used.add(path)
        if path not in self._found.saved:
            return self._of_base(path)
        saved = self._read(self._found.saved[path])
        weight = saved.get("weight", np.zeros(0))
        if weight.ndim != 2:
            _refuse([path], self._where)
        return Layer(weight, saved.get("bias", np.zeros(len(weight), np.float32)))

    def _read(self, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
        return {role: self._mapped.tensors[key] for role, key in keys.items()}

    def _of_base(self, path: str) -> Layer:
        """Return a layer of the base with the adapter's change."""
        weight, bias = self._base(f"{path}.weight"), self._base(f"{path}.bias")
        if weight is None or weight.ndim != 2:
            raise AdapterError(
                "has a head that reads a layer missing in adapter and base",
                where=self._where,
                found=f"no `{path}.weight`",
                fix="capture the base with that layer, or save it with the adapter (`modules_to_save` in PEFT)",
            )
        if path in self._found.biases:
            bias = self._mapped.tensors[self._found.biases[path]]
        weight, bias = weight.astype(np.float64), np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        adapted = self._found.adapted.get(path, {})
        if "ia3_l" in adapted:
            vector = self._mapped.tensors[adapted["ia3_l"]].astype(np.float64)
            return Layer(weight * vector, bias if vector.shape[0] == 1 else bias * vector[:, 0])
        change = self._changes(path, weight.shape) if adapted else None
        return Layer(*(change or Change()).applied(weight, bias))


def _task(
    saved: ProblemType | None, count: int, choice: HeadChoice, *, tokens: bool
) -> tuple[Task | None, tuple[str, ...]]:
    """Return the task of a head, or `None` if unknown, and notes.

    Raises:
        AdapterError: the number of outputs does not match the task type.
    """
    fits = len(choice.known_labels) == count
    named = choice.labels or (choice.known_labels if fits else ())
    problem, notes = choice.task or saved, list[str]()
    if tokens and problem is None:
        problem = "token" if named else None
        notes += [] if named else [_UNKNOWN_TOKENS]
    elif not tokens and choice.task is None and saved in (None, "single_label"):
        known = choice.known_problem if fits or not choice.known_labels else None
        problem = known or ("regression" if count == 1 else "single_label" if named else None)
        notes += [] if known or count == 1 else [_GUESSED if named else _UNKNOWN]
    if problem is None:
        return None, tuple(notes)
    kind = TASK_TYPES[problem]
    wanted = kind.width or count
    if count != wanted:
        raise AdapterError(f"a head for `{problem}` has a wrong number of outputs", found=count, expected=wanted)
    if kind.has_labels and not named:
        named = _default_labels(count)
        notes.append(f"PEFT does not save class names: they become {', '.join(named)}; {argument('labels')} sets them")
    return Task(problem, named if kind.has_labels else (), input=kind.pair_input), tuple(notes)


def _default_labels(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(count))


def _refuse(paths: Sequence[str], where: object) -> None:
    """Reject fully trained modules that are not layers of a head."""
    if paths:
        raise AdapterError(
            "has fully trained modules that cannot be expressed",
            where=where,
            found=quoted(paths),
            expected="the layers of a prediction head",
            fix="train it without them in `modules_to_save`",
        )
