"""Import of an AdapterHub folder, one adapter or a setup, with its prediction head.

Heads follow `heads/base.py`: alternating dropout, dense layer and activation, on one token or all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter_export.bases.base_view import BaseView, ImportRequest, ReadPickle
from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, FormatError, UsageError, within
from adapter_export.graph.adapter import Adapter, Head
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds.bottleneck_config import BottleneckConfig
from adapter_export.graph.ops import activation_named
from adapter_export.graph.tasks import TASK_TYPES, ProblemType, Task
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_config import LoraConfig, check_base, read_config
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import (
    HEAD_CONFIG,
    Saved,
    Setup,
    choose,
    folder_name,
    is_setup,
    names_of,
    read_adapter_folder,
    read_saved,
    read_setup,
)
from adapter_export.plugins.formats.importers.adapterhub.compositions import compile_setup
from adapter_export.plugins.formats.importers.adapterhub.methods import (
    import_bottleneck,
    import_low_rank,
    without_unused_inverse,
)
from adapter_export.plugins.formats.importers.tensor_map import (
    Imported,
    Recipes,
    TensorMap,
    as_it_is,
    transposed,
    zeros,
)
from adapter_export.words import argument, quoted

_NAMES: dict[tuple[object, ...], str] = {
    # parallel, norm before, norm after, attention, ffn, Kronecker products, learned factors
    (False, True, True, False, True, False, False): "seq_bn",
    (False, False, True, True, True, False, False): "double_seq_bn",
    (True, False, True, False, True, False, False): "par_bn",
    (True, False, True, False, True, False, "learned"): "scaled_par_bn",
    (False, True, False, False, True, False, "channel"): "adapter_plus",
    (False, False, True, True, True, True, False): "compacter",
    (False, True, True, False, True, True, False): "compacter++",
}
"""AdapterHub's config names by fields; saved configs do not contain the class name."""


def import_adapterhub(folder: Path, base: BaseView, request: ImportRequest, *, with_head: bool = True) -> Imported:
    """Import an adapter saved by AdapterHub's library, or a composition saved as a setup.

    Args:
        folder: one adapter, several, or a setup.
        base: the base; `layer_at` is required for DoRA.
        request: options of the import.
        with_head: whether to import the prediction head.

    Raises:
        UsageError: there are several adapters without a selection, or a composition cannot be imported as a whole.
        FileError, FormatError, VersionError, TensorError: a file cannot be read or violates its format.
        MissingExtraError: the tensors are pickled, and torch is not installed.
        AdapterError: the adapter does not fit the base, or cannot be expressed.
    """
    path = choose(folder, request.member)
    if is_setup(path) and path == folder:
        body = _import_setup(path, base, request, with_head=with_head)
    else:
        body = _import_one(path, base, request, with_head=with_head)
    head, weights, notes = _import_head(body.head, base.sites.width)
    record = {"imported_from": {"library": "adapters", **body.record}}
    adapter = replace(body.adapter, weights={**body.adapter.weights, **weights}, head=head, training=record)
    return Imported(adapter, (*body.notes, *notes, *body.left_out))


@dataclass(frozen=True)
class _Body:
    """An imported adapter with its head not yet converted.

    Attributes:
        adapter: the adapter without its head.
        head: the saved head, if it is to be imported.
        notes: notes on the adapter.
        left_out: notes on heads that are not imported.
        record: the configs of the library, for the training record.
    """

    adapter: Adapter
    head: Saved | None
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    record: Mapping[str, Any]


def _import_setup(path: Path, base: BaseView, request: ImportRequest, *, with_head: bool) -> _Body:
    """Import a composition; the caller imports the head."""
    setup = read_setup(path, request.read_pickle)
    for member in setup.members.values():
        with within(member.folder.adapter.path):
            check_base(member.config, member.folder.interface, base, by_number=request.by_number)
    with within(path):
        compiled, notes = compile_setup(setup, base, request)
    saved = _setup_head(setup, request.read_pickle) if with_head else None
    members = {name: member.folder for name, member in setup.members.items()}
    others = [name for name, member in members.items() if member.head is not None and member.head is not saved]
    left_out = (f"the heads of {quoted(others)} were left out",) if others else ()
    configs = {name: dict(member.adapter.document["config"]) for name, member in members.items()}
    return _Body(compiled, saved, notes, left_out, {"setup": dict(setup.document), "members": configs})


def _import_one(path: Path, base: BaseView, request: ImportRequest, *, with_head: bool) -> _Body:
    """Import an adapter of one or more methods; the caller imports the head."""
    read = read_adapter_folder(path, request.read_pickle)
    document = read.adapter.document
    with within(read.adapter.path):
        config = read_config(document)
        check_base(config, read.interface, base, by_number=request.by_number)
    names, notes = names_of(read.adapter.tensors, config.name), config.notes
    mapped = TensorMap(read.adapter.tensors, f"`{read.adapter.weights.name}`")
    with within(path):
        for method in config.methods:
            if isinstance(method, LoraConfig):
                kind: str = method.kind
                notes += import_low_rank(method, names, mapped, base, by_number=request.by_number)
            else:
                method, more = without_unused_inverse(method, document, names)
                kind = _kind_of(method)
                notes += import_bottleneck(method, names, mapped, base.sites, kind, by_number=request.by_number) + more
        kind = kind if len(config.methods) == 1 else "union"
        mapped.check()
    adapter = Adapter(request.name, kind, base.fingerprint, mapped.graphs, mapped.placements, mapped.weights)
    saved = read.head if with_head else None
    left_out = () if read.head is saved else ("its head was left out",)
    recorded = ("model_name", "model_class", "model_type", "version")
    modules = {container: list(paths) for container, paths in names.modules.items()}
    record = {"name": config.name, "config": dict(document["config"]), "modules": modules}
    record |= {key: document[key] for key in recorded if document.get(key)}
    return _Body(adapter, saved, (*notes, *mapped.notes()), left_out, record)


def _kind_of(method: BottleneckConfig) -> str:
    """Return AdapterHub's name of a bottleneck config, or `bottleneck`."""
    learned = method.scaling if isinstance(method.scaling, str) else False
    acts = method.original_ln_before, method.original_ln_after, method.mh_adapter, method.output_adapter
    return _NAMES.get((method.is_parallel, *acts, method.phm_layer, learned), "bottleneck")


def _setup_head(setup: Setup, read_pickle: ReadPickle | None) -> Saved | None:
    """Return the setup's head, or else that of a stack's last adapter (`parse_heads_from_composition`)."""
    if isinstance(setup.head, str) or setup.head is True:
        folder = setup.path if setup.head is True else setup.path / folder_name(setup.head)
        return read_saved(folder / HEAD_CONFIG, read_pickle)
    if setup.head:
        raise AdapterError("was saved with several heads", where=setup.path, found=f"`{setup.head}`", fix=_WITHOUT)
    last = setup.block.children[-1]
    return setup.members[last].folder.head if setup.block.kind == "Stack" and isinstance(last, str) else None


# Prediction heads.

_WITHOUT = "pass " + argument("without_head", True) + " to import the adapter without its head"

_TASKS: Mapping[str, ProblemType] = {head: name for name, kind in TASK_TYPES.items() for head in kind.adapterhub_heads}
_REFUSED = {
    "dependency_parsing": "it compares pairs of words",
    "masked_lm": "it predicts tokens",
    "causal_lm": "it predicts tokens",
    "seq2seq_lm": "it predicts tokens",
}
_MOST_LAYERS = 100


def _import_head(saved: Saved | None, width: int) -> tuple[Head | None, Weights, tuple[str, ...]]:
    """Return the head of a `head_config.json` and its tensors, if any, its weights, and notes."""
    if saved is None:
        return None, {}, ()
    with within(saved.path):
        head, recipes = head_form(_config(saved), width)
    name, keys, others = str(saved.document.get("name")), dict[str, str](), dict[str, None]()
    for full in saved.tensors:
        owner, _, tensor = full.removeprefix("heads.").partition(".")
        if full.startswith("heads.") and owner != name and owner.startswith(name):
            others[f"`{owner}`"] = None
        else:
            keys[tensor if owner == name else full] = full
    mapped = TensorMap({full: saved.tensors[full] for full in keys.values()}, saved.weights)
    mapped.take_head(head, recipes, keys)
    mapped.check()
    notes = [*mapped.notes()]
    if others:
        notes.append(f"the file also contains {', '.join(others)}: the library selects heads to save by name prefix")
    return head, mapped.weights, tuple(notes)


def head_form(config: Mapping[str, Any], width: int) -> tuple[Head, Recipes]:
    """Return the head of a checked config on a base of this width, and the recipes for its parameters."""
    task, numbers = _task(config)
    activation = config.get("activation_function")
    try:
        options = HeadOptions(
            pooling="first" if task.kind.pools else "mean",
            dense=config["layers"] - 1,
            activation=activation_named(str(activation)) if activation else "identity",
            dropout=float(config.get("dropout_prob") or 0.0),
        )
        head = make_head(task, width=width, numbers=numbers, options=options)
    except UsageError as error:
        raise AdapterError(error.what, found=error.found, expected=error.expected, fix=_WITHOUT) from error
    step = 3 if activation else 2  # dropouts and activations are numbered, too
    layers = [*(f"dense_{number}" for number in range(1, config["layers"])), "classifier"]
    recipes = {}
    for number, layer in enumerate(layers):
        for role, recipe in (("weight", transposed), ("bias", as_it_is)):
            parameter = f"{layer}.{role}"
            recipes[parameter] = recipe(f"{1 + step * number}.{role}", head.graph.parameters[parameter])
    if config.get("bias", True) is False:
        recipes["classifier.bias"] = zeros("classes")
    return head, recipes


def _config(saved: Saved) -> Mapping[str, Any]:
    config = saved.document.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("layers"), int):
        raise AdapterError(
            "is the head of a single-head model, without its own config",
            found=f"`model_class`: `{saved.document.get('model_class')}`",
            expected="a head that was added to an `AutoAdapterModel`",
            fix=_WITHOUT + ", or convert it with the library's `AutoAdapterModel`",
        )
    kind, layers, dropout = str(config.get("head_type")), config["layers"], config.get("dropout_prob") or 0.0
    if kind not in _TASKS:
        raise AdapterError(
            "a kind of head that cannot be expressed",
            found=f"`{kind}`: {_REFUSED.get(kind, 'unknown')}",
            fix=_WITHOUT,
        )
    if config.get("use_pooler"):
        raise AdapterError(
            "the head reads the base's pooler, whose weights are not in the file",
            found="`use_pooler`: true",
            fix=_WITHOUT,
        )
    if not 1 <= layers <= _MOST_LAYERS:
        raise FormatError("invalid number of layers", found=f"`layers`: {layers}", expected=f"1 to {_MOST_LAYERS}")
    if not isinstance(dropout, int | float) or not math.isfinite(dropout):
        raise FormatError("has an invalid dropout rate", found=f"`dropout_prob`: `{dropout}`", expected="a number")
    return config


def _task(config: Mapping[str, Any]) -> tuple[Task, int]:
    """Return the task, with its labels in the order of the logits, and the number of outputs."""
    problem = _TASKS[config["head_type"]]
    width = TASK_TYPES[problem].width
    if width == 1:  # no `num_labels` in the library: one number for each choice
        return Task(problem, input="pair"), width
    numbers = config.get("num_labels")
    if not isinstance(numbers, int) or isinstance(numbers, bool) or numbers < 1:
        raise FormatError("has an invalid number of classes", found=f"`num_labels`: {numbers}", expected="at least 1")
    if width is not None:
        if numbers != width:
            raise AdapterError(
                "a question answering head without start and end",
                found=f"`num_labels`: {numbers}",
                expected=f"{width}",
                fix=_WITHOUT,
            )
        return Task(problem, input="pair"), numbers
    if problem == "single_label" and numbers == 1:
        return Task("regression"), 1
    names = config.get("label2id")
    if names is None:
        return Task(problem, tuple(f"LABEL_{number}" for number in range(numbers))), numbers
    if not isinstance(names, dict) or sorted(map(str, names.values())) != sorted(map(str, range(numbers))):
        raise FormatError(
            "labels and classes differ", found=f"`label2id`: {names}", expected=f"a name for each of 0 to {numbers - 1}"
        )
    return Task(problem, tuple(sorted(names, key=lambda label: int(names[label])))), numbers
