"""Export of prediction heads to PEFT: fully saved modules of transformers' models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adapter_export.bases.base_view import ArchitectureHead
from adapter_export.errors import UsageError
from adapter_export.graph.adapter import HEAD, Head
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.tasks import TASK_TYPES, Task
from adapter_export.plugins.formats.exporters.export_format import WITHOUT_HEAD, ExportFormat, ExportRequest, LoadsAs
from adapter_export.plugins.formats.exporters.recognise import at_inference, ops_of, parameters_alike
from adapter_export.plugins.formats.importers.match import Renaming
from adapter_export.plugins.formats.importers.peft.head import LAST_TOKEN, RECIPES, TOKENS, HeadChoice, KnownHead
from adapter_export.words import argument

_SPANS = "QUESTION_ANS"
_CAUSAL = "CAUSAL_LM"
_SPAN_LAYER = "qa_outputs"
"""The layer of every `…ForQuestionAnswering` of transformers."""


@dataclass(frozen=True)
class SavedHead:
    """A head in PEFT's format, and the names of the base's modules in its model.

    Attributes:
        renaming: maps paths in PEFT's model to paths in the base: a model with a head contains the base.
        task_type: PEFT's name of the task.
        saved: names in `modules_to_save`.
        tensors: tensors by name in PEFT's model.
        choice: facts missing in the folder, for reading it back.
        loads_as: the model that loads it; `None` if unknown.
    """

    renaming: Renaming = field(default_factory=Renaming)
    task_type: str | None = None
    saved: Sequence[str] = ()
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    choice: HeadChoice = field(default_factory=HeadChoice)
    loads_as: LoadsAs | None = None

    def path(self, path: str) -> str:
        """Return the path in PEFT's model for a module of the base."""
        return self.renaming.back(path) or path


def saved_head(request: ExportRequest, target: ExportFormat) -> SavedHead:
    """Return the head of an adapter; without one, only module names.

    Raises:
        AdapterError: transformers has no equivalent head, or the name of the base in its model is unknown.
    """
    head, renaming = request.adapter.head, _renaming(request)
    if head is None:
        task_type = request.imported.get("config", {}).get("task_type")
        causal = task_type if task_type == _CAUSAL else None
        bare = renaming is None or renaming == Renaming()
        return SavedHead(renaming or Renaming(), causal, loads_as=LoadsAs() if bare else None)
    name, family = _task_type(head), _family(request, renaming)
    if name is None:
        described = "no task" if head.task is None else f"the task `{head.task.type}`"
        raise target.refusal("it has no such head", where=HEAD, found=described, fix=WITHOUT_HEAD)
    architecture = request.base.head_of(_classes(name), None, {})
    if architecture is not None:
        if request.prefix not in (None, architecture.prefix):
            expected = f"`{architecture.prefix}`, as in `{architecture.name}`"
            raise UsageError("the prefix does not match the model", found=f"`{request.prefix}`", expected=expected)
        family = architecture.prefix
    if family is None:
        raise target.refusal(
            "the name of the base inside a model with a head is unknown",
            where=HEAD,
            found=f"the architecture `{request.base.model_type}`",
            fix="pass the name as " + argument("prefix") + ", such as `model`; or " + WITHOUT_HEAD,
        )
    layers = (
        _known_layers(request, target, name, family)
        if architecture is None
        else _architecture_layers(request, target, architecture)
    )
    if renaming is None:
        inside = any((site.path or "").startswith(f"{family}.") for site in request.base.sites)
        renaming = Renaming() if inside else Renaming(drop=family)
    trained = {path: tensors for path, tensors in layers.items() if not _is_of_base(request, renaming(path), tensors)}
    return SavedHead(
        renaming,
        name,
        tuple(dict.fromkeys(_saved_name(path, family) for path in trained)),
        {f"{path}.{role}": tensor for path, tensors in trained.items() for role, tensor in tensors.items()},
        HeadChoice(labels=head.labels or None, task=None if head.task is None else head.task.type),
        LoadsAs(_classes(name), len(next(reversed(layers.values()))["weight"])),
    )


def _architecture_layers(
    request: ExportRequest, target: ExportFormat, architecture: ArchitectureHead
) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of each module of the head of the base's architecture, by path.

    Raises AdapterError if the adapter's head is another function.
    """
    head, owned = request.adapter.head, request.adapter.parameters(HEAD)
    assert head is not None, "only heads are exported"
    graph = _without_zero_biases(head.graph, architecture.graph, owned)
    names = parameters_alike(graph, architecture.graph)
    constants = [name for name in architecture.graph.parameters if name not in architecture.sources]
    if names is None or constants:
        raise target.refusal(
            f"the head of `{architecture.name}` in transformers is `{ops_of(architecture.graph)}`, and the adapter's "
            "head differs",
            where=HEAD,
            found=ops_of(graph),
            fix="train it with that head, or " + WITHOUT_HEAD,
        )
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, (stored, turned) in architecture.sources.items():
        path, _, role = stored.rpartition(".")
        tensor = owned[names[name]]
        layers.setdefault(path, {})[role] = tensor.T if turned else tensor
    return layers


def _without_zero_biases(graph: AdapterGraph, wanted: AdapterGraph, owned: Mapping[str, np.ndarray]) -> AdapterGraph:
    """Return the graph without biases of zeros that linear layers of the wanted graph lack."""
    simplified, expected = (at_inference(each) for each in (graph, wanted))
    lacking = {
        node.parameters["bias"]
        for node, other in zip(simplified.nodes, expected.nodes, strict=False)
        if node.op == other.op == "linear" and "bias" in node.parameters and "bias" not in other.parameters
    }
    dropped = {name for name in lacking if not owned[name].any()}
    nodes = tuple(
        replace(node, parameters={role: name for role, name in node.parameters.items() if name not in dropped})
        for node in simplified.nodes
    )
    parameters = {name: shape for name, shape in simplified.parameters.items() if name not in dropped}
    return replace(simplified, nodes=nodes, parameters=parameters)


def _known_layers(
    request: ExportRequest, target: ExportFormat, name: str, family: str
) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of each module of a head, for a base that does not show its architecture.

    Raises AdapterError if the head of this architecture is unknown, or the adapter's head is another function.
    """
    head = request.adapter.head
    assert head is not None, "only heads are exported"
    saved = request.imported.get("modules", {}).get("saved")
    if family not in RECIPES and not saved:
        raise target.refusal(
            "the head of its architecture is unknown",
            where=HEAD,
            found=f"a model with a base named `{family}`, and a base without a configuration of transformers",
            fix="pass the model as " + argument("base", words="MODEL") + "; or " + WITHOUT_HEAD,
        )
    known = KnownHead(TOKENS, classes=_token_layer(request, name, family))
    if head.output == "logits":
        known = RECIPES.get(family, KnownHead("last", classes=LAST_TOKEN))
    layers = _layers(head, known, request.adapter.parameters(HEAD))
    if layers is None:
        formula = (
            f"`classes({known.activation}(dense({known.pooling})))`" if known.dense else f"`classes({known.pooling})`"
        )
        raise target.refusal(
            f"the head of `{family}` in transformers is {formula}, and the adapter's head differs",
            where=HEAD,
            found=ops_of(head.graph),
            fix="train it with that head, or " + WITHOUT_HEAD,
        )
    if known.pooling == "last" and layers[LAST_TOKEN].pop("bias").any():
        raise target.refusal(
            "the head of a decoder has no bias in transformers", where=HEAD, found="a bias", fix=WITHOUT_HEAD
        )
    return layers


def _classes(name: str) -> tuple[str, ...]:
    """Return the suffixes of transformers' class names for a task type of PEFT."""
    return next(kind.model_classes for kind in TASK_TYPES.values() if kind.peft_type == name)


def _renaming(request: ExportRequest) -> Renaming | None:
    """Return the renaming of the passed prefix, or of the import, or `None`."""
    recorded = request.imported.get("modules")
    if request.prefix is not None:
        inside = any((site.path or "").startswith(f"{request.prefix}.") for site in request.base.sites)
        return Renaming() if inside else Renaming(drop=request.prefix)
    if not isinstance(recorded, Mapping):
        return None
    return Renaming(str(recorded.get("drop", "")), str(recorded.get("add", "")))


def _task_type(head: Head) -> str | None:
    """Return PEFT's name of the task; heads with one result per text share it."""
    if head.task is None:
        return {"logits": "SEQ_CLS", "token_logits": "TOKEN_CLS"}.get(head.output)
    kind = head.task.kind
    return kind.peft_type or ("SEQ_CLS" if kind.output == "logits" and not kind.has_choices else None)


def _family(request: ExportRequest, renaming: Renaming | None) -> str | None:
    """Return the name of the base in a model with a head: the prefix of module paths, or the architecture.

    `xlm-roberta` becomes `roberta`.
    """
    paths = [site.path for site in request.base.sites if site.path is not None]
    begins = [(renaming.back(path) or path).split(".")[0] for path in paths[:1]] if renaming is not None else []
    if request.prefix or (renaming is not None and renaming != Renaming()):
        return request.prefix or begins[0]
    begins = [path.split(".")[0] for path in paths[:1]]
    architecture = (request.base.model_type or "").replace("_", "-")
    return next((name for name in RECIPES if name in begins or architecture.split("-")[-1:] == [name]), None)


def _token_layer(request: ExportRequest, task_type: str, family: str | None) -> str:
    """Return the name of the token classification layer: the imported one, or else that of transformers' models."""
    if task_type == _SPANS:
        return _SPAN_LAYER
    saved = request.imported.get("modules", {}).get("saved")
    if isinstance(saved, list) and len(saved) == 1 and isinstance(saved[0], str):
        return saved[0]
    return "classifier" if family in RECIPES else "score"


def _layers(head: Head, known: KnownHead, owned: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]] | None:
    """Return weight [out, in] and bias [out] of each layer by path; `None` if the head is not equivalent."""
    pooling = "first" if known.pooling == TOKENS else known.pooling
    options = HeadOptions(pooling, int(known.dense is not None), known.activation)
    task = head.task or Task("token", ("a",)) if known.pooling == TOKENS else head.task or Task("regression")
    names = parameters_alike(head.graph, make_head(task, width=1, options=options).graph)
    if names is None:
        return None
    paths = {"dense_1": known.dense, "classifier": known.classes}
    return {
        path: {"weight": owned[names[f"{layer}.weight"]].T, "bias": owned[names[f"{layer}.bias"]]}
        for layer, path in paths.items()
        if path is not None
    }


def _is_of_base(request: ExportRequest, path: str | None, tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether a layer of the head is an unchanged layer of the base."""
    base_tensors = {role: None if path is None else request.base.tensor(f"{path}.{role}") for role in tensors}
    return all(tensor is not None and np.array_equal(tensor, tensors[role]) for role, tensor in base_tensors.items())


def _saved_name(path: str, family: str) -> str:
    """Return the module to save: the whole head, or the layer of the base that it reads."""
    inside = path.removeprefix(f"{family}.")
    return inside if inside != path else path.split(".")[0]
