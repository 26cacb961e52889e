"""Import of modules fully saved by PEFT as a prediction head.

PEFT's folders do not contain the computation of a head, and tensors do not show it: heads of equal shapes differ in
their activation (`tanh` in RoBERTa, `gelu` in ELECTRA), and a single linear layer reads the pooled first token in BERT
and the bare one in ViT. The base's configuration determines it: the head is that of the base's own architecture in
transformers, with all its layers, even if the user describes another.

A base without a configuration, such as an ONNX graph, shows nothing. A table lists heads whose computation no
configuration changes, by the name of the base in its model, the prefix of the adapter's module paths. Other heads of
transformers are refused there. Heads of other models need the user's description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from adapter_export.bases.base_view import ArchitectureHead, HeadOf
from adapter_export.errors import AdapterError, TensorError, UsageError, within
from adapter_export.format.model_config import class_type
from adapter_export.graph.adapter import Head
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.ops import ACTIVATIONS, POOLINGS
from adapter_export.graph.tasks import CLASSES, PROBLEM_TYPES, TASK_TYPES, ProblemType, Task
from adapter_export.plugins.formats.importers.head_accounting import head_tensors
from adapter_export.plugins.formats.importers.peft.methods import Change
from adapter_export.plugins.formats.importers.peft.peft_folder import Sorted
from adapter_export.plugins.formats.importers.peft.peft_options import Options
from adapter_export.plugins.formats.importers.tensor_map import Recipe, TensorMap
from adapter_export.words import argument, quoted


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
"""Sequence and image classification heads of transformers 5, from `modeling_<name>.py`; their token classifiers and
span heads are single linear layers.
"""


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
    "pass " + argument("task", "single_label") + " or " + argument("task", "multi_label")
)
_UNKNOWN_TOKENS = (
    "the task of the token head is unknown, so the adapter returns logits without answers: pass "
    + argument("task", "token")
    + " or "
    + argument("task", "span")
)
_DESCRIBED = (
    "the head belongs to a model of another library than transformers: its pooling and activation are those described, "
    "and were compared with nothing"
)
_GUESSED = (
    "the number of labels per text is unknown: assuming one (`single_label`), as classes have "
    "names; " + argument("task", "multi_label") + " overrides it"
)

ChangeAt = Callable[[str, tuple[int, ...]], Change | None]
"""Returns a layer's change by its path and weight shape [out, in]; `None` if its tensors do not fit."""

BaseTensor = Callable[[str], np.ndarray | None]
"""Returns a tensor of the base by its name in the adapter's model, such as `bert.pooler.dense.weight`."""


@dataclass(frozen=True)
class HeadChoice:
    """The user's description of a head; `None` uses the base's architecture.

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


@dataclass(frozen=True)
class HeadBase:
    """The base of a head, with names of the adapter's model.

    Attributes:
        tensor: returns a tensor of the base.
        change: returns the adapter's change of a layer that the head reads.
        head_of: returns the head of the base's architecture.
        width: width of the final hidden state.
    """

    tensor: BaseTensor
    change: ChangeAt
    head_of: HeadOf
    width: int


def take_head(
    sorted_keys: Sorted, mapped: TensorMap, base: HeadBase, options: Options, choice: HeadChoice, where: object
) -> MadeHead:
    """Import the saved modules as a head, if any.

    Raises:
        AdapterError: saved modules are not a head, the base has no such head, the values of layers in the head are
            unknown, or transformers computes something else.
        UsageError: a head is described but missing, or differs from the description.
        TensorError: tensor shapes are inconsistent.
    """
    in_base = [path for path in sorted_keys.saved if base.tensor(f"{path}.weight") is not None]
    if choice.leave_out or not sorted_keys.saved:
        if choice.labels or choice.pooling or choice.activation or choice.task:
            raise UsageError("a head is described, but the adapter has none, or it is excluded", where=where)
        _refuse(in_base, where)
        if not sorted_keys.saved:
            return MadeHead(notes=_no_head(options))
        # modules missing in the base belong to the head, and so do base layers that it reads
        read = [recipe.dense for recipe in RECIPES.values() if recipe.dense is not None]
        names = quoted(sorted_keys.saved)
        return MadeHead(used=frozenset([*sorted_keys.saved, *read]), notes=(f"the head was ignored: {names}",))
    saved = _saved_type(options, choice, in_base, where)
    tokens = not TASK_TYPES[saved].pools if saved is not None else choice.pooling == TOKENS
    maker = _Maker(sorted_keys, mapped, base, options, where)
    is_foreign = options.is_of_another_library
    if not is_foreign or options.model_class is None:
        kind: ProblemType = saved or ("token" if tokens else "single_label")
        endings = TASK_TYPES[kind].model_classes or TASK_TYPES["single_label"].model_classes
        with within(where):
            architecture = base.head_of(endings, options.model_class, maker.saved_shapes())
        if architecture is not None:
            return maker.make_of(architecture, saved, choice, tokens=tokens)
    described = is_foreign and choice.pooling is not None
    recipe = _recipe(sorted_keys, mapped, choice, where, tokens=tokens, described=described)
    made_head = maker.make(saved, recipe, choice)
    return replace(made_head, notes=(*made_head.notes, _DESCRIBED)) if described else made_head


def _no_head(options: Options) -> tuple[str, ...]:
    """Return a note on a head that PEFT did not save."""
    if options.task_type not in _TASKS:
        return ()
    return (
        f"the task is `{options.task_type}`, but the file has no head: the adapter changes only hidden states. PEFT "
        "saves a head under another name than `classifier` and `score` only if `modules_to_save` has it",
    )


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
            fix="if it is a head, describe its input with "
            + argument("pooling", "first")
            + ", `mean`, `last` or `tokens`",
        )
    of_a_text = {saved, choice.task} <= {*_OF_A_TEXT}
    if choice.task is not None and saved not in (None, choice.task) and not of_a_text:
        conflict = argument("task", choice.task) + f", and PEFT saved `{named}`"
        raise UsageError("the task does not match the head", where=where, found=conflict)
    wanted = choice.task or saved
    if wanted is not None and choice.pooling is not None and TASK_TYPES[wanted].pools == (choice.pooling == TOKENS):
        conflict = argument("pooling", choice.pooling) + f" of a head for `{wanted}`"
        raise UsageError("the pooling does not match the head", where=where, found=conflict)
    return wanted


def _recipe(
    sorted_keys: Sorted, mapped: TensorMap, choice: HeadChoice, where: object, *, tokens: bool, described: bool
) -> KnownHead:
    """Return the head of a base without a configuration: that of the table, or the one described by the user."""
    if described:
        return KnownHead(TOKENS) if tokens else _described(sorted_keys, mapped, choice, where)
    family = sorted_keys.changed[0].split(".")[0]
    generic = [*sorted_keys.saved] == [LAST_TOKEN]
    known = RECIPES.get(family) or (KnownHead("last") if generic else None)
    if known is None:
        raise AdapterError(
            "has a head whose computation the base does not show",
            where=where,
            found=f"a base without a configuration of transformers, and a model with a base named `{family}`",
            expected=f"a base with a configuration, one of {quoted(RECIPES)}, or a head named `{LAST_TOKEN}`",
            fix="pass the folder of the model that it was trained on, or an archive that `ae.capture` makes of it; or "
            "exclude the head with " + argument("without_head", True),
        )
    if tokens:
        return KnownHead(TOKENS)
    _check_described(choice, known.pooling, known.activation if known.dense else None, f"`{family}`", where)
    return known


def _check_described(choice: HeadChoice, pooling: str, activation: str | None, name: str, where: object) -> None:
    """Reject a description that differs from the head."""
    pairs = [("pooling", choice.pooling, pooling), ("activation", choice.activation, activation)]
    for option, wanted, known in pairs:
        if wanted is not None and wanted != known:
            raise UsageError(
                f"the {option} does not match the head of {name}",
                where=where,
                found=argument(option, wanted),
                expected="none" if known is None else f"`{known}`",
                fix="remove " + argument(option) + ": the head is known",
            )


def _described(sorted_keys: Sorted, mapped: TensorMap, choice: HeadChoice, where: object) -> KnownHead:
    """Return the head of another model than those of transformers, as described by the user."""
    assert choice.pooling is not None, "the head is described"
    if len(sorted_keys.saved) == 1:
        return KnownHead(choice.pooling)
    if len(sorted_keys.saved) == 2 and choice.activation is not None:
        first, last = _in_order(sorted_keys.saved, mapped, where)
        return KnownHead(choice.pooling, first, choice.activation, last)
    raise UsageError(
        "the activation after the head's dense layer is unknown"
        if len(sorted_keys.saved) == 2
        else "the head has too many layers",
        where=where,
        found=quoted(sorted_keys.saved),
        fix="pass " + argument("activation") if len(sorted_keys.saved) == 2 else None,
    )


def _in_order(saved: Mapping[str, Mapping[str, str]], mapped: TensorMap, where: object) -> tuple[str, str]:
    """Return the dense layer and the last one, determined by shapes unless they are square."""
    first_path, other = saved
    shapes = {path: mapped.tensors[keys["weight"]].shape if "weight" in keys else () for path, keys in saved.items()}
    fits = [
        (first, last)
        for first, last in ((first_path, other), (other, first_path))
        if shapes[first][:1] == shapes[last][-1:] != ()
    ]
    if len(fits) != 1:
        raise UsageError(
            "the order of the head's layers is ambiguous", where=where, found=f"`{first_path}` and `{other}`"
        )
    return fits[0]


class _Maker:
    """Builds a head from a recipe."""

    def __init__(self, sorted_keys: Sorted, mapped: TensorMap, base: HeadBase, options: Options, where: object) -> None:
        self._sorted_keys, self._mapped, self._base = sorted_keys, mapped, base
        self._options, self._where = options, where
        self._used: set[str] = set()

    def _saved(self) -> dict[str, np.ndarray]:
        """Return the fully trained tensors by name in the adapter's model."""
        return {
            f"{path}.{role}": self._mapped.tensors[key]
            for path, roles in self._sorted_keys.saved.items()
            for role, key in roles.items()
        }

    def saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the fully trained tensors by name in the adapter's model."""
        return {name: tensor.shape for name, tensor in self._saved().items()}

    def make_of(
        self, architecture: ArchitectureHead, saved: ProblemType | None, choice: HeadChoice, *, tokens: bool
    ) -> MadeHead:
        """Make the head of the base's architecture with the adapter's tensors."""
        ops = [node.op for node in architecture.graph.nodes]
        pooling = next((name for name, row in POOLINGS.items() if row.name in ops), TOKENS)
        activations = [op for op in ops if op in ACTIVATIONS]
        activation = choice.activation if choice.activation in activations else next(iter(activations), None)
        _check_described(choice, pooling, activation, f"`{architecture.name}`", self._where)
        tensors = head_tensors(architecture, self._saved(), partial(self._value, architecture), self._where)
        self._used |= {name.rpartition(".")[0] for name in tensors}
        tensors |= self._changed(tensors)
        with within(self._where):
            weights = architecture.weights(tensors)
        count = int(architecture.widths.get(CLASSES) or 0)
        _check_labels(choice, count, self._where)
        task, notes = _task(saved, count, choice, tokens=tokens)
        head = Head(architecture.graph, architecture.widths, task)
        self._mapped.take_head(
            head, {name: Recipe((), weights[name].copy) for name in architecture.graph.parameters}, {}
        )
        return MadeHead(head, frozenset(self._used), notes)

    def _value(self, architecture: ArchitectureHead, name: str) -> np.ndarray | None:
        """Return a tensor of the head that was not fully trained."""
        path, _, role = name.rpartition(".")
        if role == "bias" and path in self._sorted_keys.biases:
            return self._mapped.tensors[self._sorted_keys.biases[path]]
        return self._base.tensor(name) if name.startswith(f"{architecture.prefix}.") else architecture.stored.get(name)

    def _changed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the tensors of layers of the head that the adapter changes, after the change."""
        changed = dict[str, np.ndarray]()
        for path in self._sorted_keys.adapted:
            weight, bias = (tensors.get(f"{path}.{role}") for role in ("weight", "bias"))
            if weight is None or path in self._sorted_keys.saved:  # PEFT targets no module that it saves
                continue
            none = np.zeros(len(weight))
            layer = self._after(path, weight.astype(np.float64), none if bias is None else bias.astype(np.float64))
            changed[f"{path}.weight"] = layer.weight
            if bias is not None:
                changed[f"{path}.bias"] = layer.bias
            elif layer.bias.any():
                raise AdapterError("adds a bias to a layer of the head without one", where=f"`{path}`")
        return changed

    def make(self, saved: ProblemType | None, recipe: KnownHead, choice: HeadChoice) -> MadeHead:
        dense = None if recipe.dense is None else self._layer(recipe.dense)
        classes = self._layer(recipe.classes or next(iter(self._sorted_keys.saved)))
        _refuse([path for path in self._sorted_keys.saved if path not in self._used], self._where)
        layers = {"dense_1": dense, "classifier": classes} if dense else {"classifier": classes}
        read = self._base.width
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
        _check_labels(choice, count, self._where)
        task, notes = _task(saved, count, choice, tokens=recipe.pooling == TOKENS)
        shown = Task("token", _default_labels(count)) if recipe.pooling == TOKENS else Task("regression")
        head = make_head(
            task or shown,
            width=self._base.width,
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
        if path not in self._sorted_keys.saved:
            return self._of_base(path)
        saved = self._read(self._sorted_keys.saved[path])
        weight = saved.get("weight", np.zeros(0))
        if weight.ndim != 2:
            _refuse([path], self._where)
        return Layer(weight, saved.get("bias", np.zeros(len(weight), np.float32)))

    def _read(self, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
        return {role: self._mapped.tensors[key] for role, key in keys.items()}

    def _of_base(self, path: str) -> Layer:
        """Return a layer of the base with the adapter's change."""
        weight, bias = self._base.tensor(f"{path}.weight"), self._base.tensor(f"{path}.bias")
        if weight is None or weight.ndim != 2:
            raise AdapterError(
                "has a head that reads a layer missing in adapter and base",
                where=self._where,
                found=f"no `{path}.weight`",
                fix="capture the base with that layer, or save it with the adapter (`modules_to_save` in PEFT)",
            )
        if path in self._sorted_keys.biases:
            bias = self._mapped.tensors[self._sorted_keys.biases[path]]
        weight, bias = weight.astype(np.float64), np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        return self._after(path, weight, bias)

    def _after(self, path: str, weight: np.ndarray, bias: np.ndarray) -> Layer:
        """Return a layer after the adapter's change."""
        adapted = self._sorted_keys.adapted.get(path, {})
        if "ia3_l" in adapted:
            vector = self._mapped.tensors[adapted["ia3_l"]].astype(np.float64)
            scales_input = self._options.scales_input(path)
            if scales_input is None:  # a row for an input, a column for an output
                scales_input = vector.shape == (1, weight.shape[1])
            return Layer(weight * vector, bias if scales_input else bias * vector[:, 0])
        change = self._base.change(path, weight.shape) if adapted else None
        return Layer(*(change or Change()).applied(weight, bias))


def _check_labels(choice: HeadChoice, count: int, where: object) -> None:
    if choice.labels is not None and len(choice.labels) != count:
        raise UsageError(
            "the number of labels differs from the number of classes",
            where=where,
            found=len(choice.labels),
            expected=count,
        )


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
        notes.append(
            f"PEFT does not save class names: they become {', '.join(named)}; " + argument("labels") + " sets them"
        )
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
