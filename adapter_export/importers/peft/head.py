"""The modules that PEFT saved as a whole, as a prediction head.

What the heads of transformers compute is in no folder of PEFT, and no tensor shows it: heads of the same shapes differ
in their activation (`tanh` in RoBERTa, `gelu` in ELECTRA), and a lone linear layer reads the pooled first token in BERT
and the bare one in ViT. So there is a table, by the name of the base inside such a model, which stands before every
module path of the adapter. Heads outside the table are read when the user says what they do.
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

    `pooling` is one of `POOLINGS`; `dense` lies in the head or in the base; without `classes`, the one layer is meant.
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
"""Heads for one class per text or image, as transformers 5 has them, in `modeling_<name>.py`."""


LAST_TOKEN = "score"
"""The one module of decoders that classify texts by their last token, in `modeling_layers.py` of transformers 5."""

TOKENS = "tokens"
"""The pooling of a head that pools nothing: one result for each token."""

_TASKS: Mapping[str, ProblemType] = {kind.peft_type: name for name, kind in TASK_TYPES.items() if kind.peft_type}
"""Task type of a head, by PEFT's name of the task.

A head for one label of a text may be one for several, or for numbers: all are saved alike.
"""

_OF_A_TEXT = tuple(
    name for name in PROBLEM_TYPES if (one := TASK_TYPES[name]).output == "logits" and not one.has_choices
)
"""Task types that a head saved by PEFT for `SEQ_CLS` may have."""

_UNKNOWN = (
    "nothing says whether one label applies to a text or several do, so the adapter gives logits and no answers: "
    f"say it with {argument('task', 'single_label')} or {argument('task', 'multi_label')}"
)
_UNKNOWN_TOKENS = (
    "nothing says what the head says of tokens, so the adapter gives logits and no answers: say it with "
    f"{argument('task', 'token')} or {argument('task', 'span')}"
)
_GUESSED = (
    "nothing says whether one label applies to a text or several do: taken as one (`single_label`), as classes have "
    f"names; {argument('task', 'multi_label')} says otherwise"
)

ChangeAt = Callable[[str, tuple[int, ...]], Change | None]
"""The change of a layer, by its path and the shape [out, in] of its weight; `None` if its tensors do not fit."""

BaseTensor = Callable[[str], np.ndarray | None]
"""A tensor of the base by the name that it has in the adapter's model, such as `bert.pooler.dense.weight`."""


@dataclass(frozen=True)
class HeadChoice:
    """The user's facts about the head; for `None`, the recipe decides.

    `pooling` is one of `POOLINGS` or `tokens`, `activation` that of the head's dense layer; `labels` are in the order
    of the logits, `task` is what the head answers. `known_labels` are those of the base's config, used where their
    number fits, and `known_problem` is what it says of them.
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
    """A linear layer as torch has it: `weight` [out, in], `bias` [out]."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class MadeHead:
    """A head, if there is one, whose weights have been taken.

    `used` are the paths of modules outside the base's sites that went into it, `notes` what was decided on the way.
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
    """The head that the saved modules are, if there are any; `width` is that of the final hidden state.

    `changes` gives what the adapter does to a layer of the base that the head reads.

    Raises:
        AdapterError: modules were saved that are no head, or a head whose way to read the hidden state is not known.
        UsageError: the user says something of a head, and there is none, or labels of another number.
        TensorError: tensors have shapes that do not go together.
    """
    in_base = [path for path in found.saved if base(f"{path}.weight") is not None]
    if choice.leave_out or not found.saved:
        if choice.labels or choice.pooling or choice.activation or choice.task:
            raise UsageError("something is said of a head, and the adapter has or shall have none", where=where)
        _refuse(in_base, where)
        if not found.saved:
            return MadeHead()
        # what is not in the base was a head, and so was the layer of the base that it read
        read = [recipe.dense for recipe in RECIPES.values() if recipe.dense is not None]
        names = quoted(found.saved)
        return MadeHead(used=frozenset([*found.saved, *read]), notes=(f"the head was left out: {names}",))
    saved = _saved_type(options, choice, in_base, where)
    tokens = not TASK_TYPES[saved].pools if saved is not None else choice.pooling == TOKENS
    recipe = KnownHead(TOKENS) if tokens else _recipe(found, mapped, choice, where)
    return _Maker(found, mapped, changes, base, width, where).make(saved, recipe, choice)


def _saved_type(options: Options, choice: HeadChoice, in_base: Sequence[str], where: object) -> ProblemType | None:
    """Return the task that the user, PEFT's config or the model's class gives the head.

    `single_label` is `SEQ_CLS` unless the user sets it; `None` if only the user's `pooling` shows that it is a head.
    """
    saved = _TASKS.get(options.task_type or "") or class_type(options.model_class or "")
    named = options.task_type or options.model_class
    if saved is None and choice.pooling is None and choice.task is None:
        _refuse(in_base, where)
        raise AdapterError(
            "has modules that were trained as a whole, and nothing says that they are a head",
            where=where,
            found=f"{quoted(options.saved)} and the task `{options.task_type}`",
            expected="the task `SEQ_CLS`, `TOKEN_CLS` or `QUESTION_ANS`",
            fix=f"say what it reads with {argument('pooling', 'first')}, `mean`, `last` or `tokens`, if it is a head",
        )
    of_a_text = {saved, choice.task} <= {*_OF_A_TEXT}
    if choice.task is not None and saved not in (None, choice.task) and not of_a_text:
        found = f"{argument('task', choice.task)}, and PEFT saved `{named}`"
        raise UsageError("the head answers another question", where=where, found=found)
    wanted = choice.task or saved
    if wanted is not None and choice.pooling is not None and TASK_TYPES[wanted].pools == (choice.pooling == TOKENS):
        found = f"{argument('pooling', choice.pooling)} of a head for `{wanted}`"
        raise UsageError("the head does not read that", where=where, found=found)
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
            "has a head, and nothing says what it reads",
            where=where,
            found=f"a model whose base is called `{family}`",
            expected=f"one of {quoted(RECIPES)}, or a head called `{LAST_TOKEN}`",
            fix=f"say it with {argument('pooling', 'first')}, `mean` or `last`, or leave the head out with "
            f"{argument('without_head', True)}",
        )
    if len(found.saved) == 1:
        return KnownHead(choice.pooling)
    if len(found.saved) == 2 and choice.activation is not None:
        first, last = _in_order(found.saved, mapped, where)
        return KnownHead(choice.pooling, first, choice.activation, last)
    raise UsageError(
        "the head has a dense layer, and nothing says what stands behind it"
        if len(found.saved) == 2
        else "the head has too many layers",
        where=where,
        found=quoted(found.saved),
        fix=f"give {argument('activation')}" if len(found.saved) == 2 else None,
    )


def _in_order(saved: Mapping[str, Mapping[str, str]], mapped: TensorMap, where: object) -> tuple[str, str]:
    """The dense layer and the last one: the shapes show it where they are not square."""
    one, other = saved
    shapes = {path: mapped.tensors[keys["weight"]].shape if "weight" in keys else () for path, keys in saved.items()}
    fits = [
        (first, last) for first, last in ((one, other), (other, one)) if shapes[first][:1] == shapes[last][-1:] != ()
    ]
    if len(fits) != 1:
        raise UsageError("the order of the head's layers cannot be told", where=where, found=f"`{one}` and `{other}`")
    return fits[0]


class _Maker:
    """Puts the layers of a recipe together."""

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
                    "the layers of the head do not go together",
                    where=self._where,
                    found=f"a layer {list(layer.weight.shape)} with the bias {list(layer.bias.shape)}",
                    expected=f"one that reads {read} features",
                    fix="give the base that the adapter was trained on",
                )
            read = len(layer.weight)
        count = len(classes.bias)
        if choice.labels is not None and len(choice.labels) != count:
            raise UsageError(
                "labels of another number than classes", where=self._where, found=len(choice.labels), expected=count
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
        """A layer of the head, or one of the base that the head reads, with what the adapter does to it."""
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
        """A layer of the base, with the adapter's update inside."""
        weight, bias = self._base(f"{path}.weight"), self._base(f"{path}.bias")
        if weight is None or weight.ndim != 2:
            raise AdapterError(
                "has a head that reads a layer which neither the adapter nor the base has",
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
    """Return the task of a head, `None` if it is not known, and notes on it.

    Raises:
        AdapterError: it gives another number of them than its problem type has.
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
        raise AdapterError(f"a head for `{problem}` gives another number", found=count, expected=wanted)
    if kind.has_labels and not named:
        named = _default_labels(count)
        notes.append(
            f"PEFT saves no names of classes: they are called {', '.join(named)}; {argument('labels')} names them"
        )
    return Task(problem, named if kind.has_labels else (), input=kind.pair_input), tuple(notes)


def _default_labels(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(count))


def _refuse(paths: Sequence[str], where: object) -> None:
    """Refuse what was trained as a whole and is no layer of a head."""
    if paths:
        raise AdapterError(
            "has modules that were trained as a whole and cannot be expressed",
            where=where,
            found=quoted(paths),
            expected="the layers of a prediction head",
            fix="train it without them in `modules_to_save`",
        )
