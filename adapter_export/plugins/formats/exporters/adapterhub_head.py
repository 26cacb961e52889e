"""Export of prediction heads to AdapterHub: alternating dropout, dense layer and activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.graph.adapter import HEAD
from adapter_export.plugins.formats.exporters.export_format import (
    WITHOUT_HEAD,
    ExportFormat,
    ExportRequest,
    check_activation,
)
from adapter_export.plugins.formats.exporters.recognise import (
    dropout_of,
    ops_of,
    parameters_alike,
    transformers_activation,
)
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_importer import head_form
from adapter_export.plugins.formats.importers.tensor_map import Source, library_tensors

_SCORES = "classification"
"""The library's head for classes, and for numbers, which are classes without names."""


@dataclass(frozen=True)
class SavedHead:
    """A head in the library's format: its config, and its tensors by name in the head."""

    config: Mapping[str, Any]
    tensors: Mapping[Source, np.ndarray]


def saved_head(request: ExportRequest, target: ExportFormat) -> SavedHead | None:
    """Return the head of an adapter, or `None`.

    Raises:
        AdapterError: the library has no equivalent head.
    """
    head = request.adapter.head
    if head is None:
        return None
    kind = None if head.task is None else head.task.kind
    scores = kind is None or (kind.output == "logits" and not (kind.has_labels or kind.has_choices or kind.ranks))
    kinds = (_SCORES,) if kind is None or scores else kind.adapterhub_heads
    if not kinds or (kind is not None and kind.has_choices):
        described = "no task" if head.task is None else f"the task `{head.task.type}`"
        raise target.refusal("it has no such head", where=HEAD, found=described, fix=WITHOUT_HEAD)
    owned, graph = request.adapter.parameters(HEAD), head.graph
    check_activation(target, graph, HEAD)
    activation = transformers_activation(graph)
    count = head.widths.get("classes", 1)
    dense = sum(node.op == "linear" for node in graph.nodes) - 1
    config: dict[str, Any] = {
        "head_type": kinds[0],
        "num_labels": count,
        "layers": dense + 1,
        "activation_function": None if activation == "linear" else activation,
        "dropout_prob": dropout_of(graph) or None,
        "label2id": {label: number for number, label in enumerate(head.labels)} or None,
    }
    if head.output == "logits":  # other heads lack these options
        config |= {"bias": True, "use_pooler": False}
    wanted, recipes = head_form(config, request.base.sites.width)
    names = parameters_alike(graph, wanted.graph)
    if names is not None:
        tensors = library_tensors(recipes, {name: owned[parameter] for name, parameter in names.items()}, head.widths)
        if tensors is not None:
            return SavedHead(config, tensors)
    raise target.refusal(
        "its heads read the first token, or classify every token, through dense layers with one activation",
        where=HEAD,
        found=ops_of(graph),
        fix="train it with `pooling` `first`, or " + WITHOUT_HEAD,
    )
