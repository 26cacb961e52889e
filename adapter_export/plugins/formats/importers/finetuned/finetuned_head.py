"""Head of a fine-tuned checkpoint: that of its class in transformers, with all tensors that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, within
from adapter_export.format.model_config import class_type, head_task
from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.tasks import CLASSES, TASK_TYPES
from adapter_export.plugins.formats.importers.head_accounting import head_tensors
from adapter_export.words import argument, quoted

if TYPE_CHECKING:
    from adapter_export.torch_backend.checkpoint_folder import CheckpointFolder


@dataclass(frozen=True)
class FinetunedHead:
    """A head with its parameters.

    Attributes:
        head: the head; `None` without one.
        weights: its parameters.
        read: names in the checkpoint of the tensors that it contains.
        notes: assumptions about its task.
        omitted: names of tensors that were left out.
        library: ends of classes with such a head in transformers, and the number of results; `None` without a head.
    """

    head: Head | None = None
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    read: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()
    library: tuple[Sequence[str], int] | None = None


def captured_head(adapter: Adapter) -> FinetunedHead:
    """Return the head of a captured model, such as the modules of sentence-transformers."""
    assert adapter.head is not None, "a base head is an adapter with a head"
    return FinetunedHead(adapter.head, adapter.parameters(HEAD))


def take_finetuned_head(checkpoint: CheckpointFolder, view: BaseView, extra: Sequence[str]) -> FinetunedHead:
    """Return the head of a checkpoint's class.

    Args:
        checkpoint: the checkpoint.
        view: the base.
        extra: names of tensors that the base does not have.

    Raises:
        AdapterError: the class has a head without a task type, or one that no head graph expresses; or tensors belong
            neither to the base nor to the head.
    """
    if not extra:
        return FinetunedHead()
    kind = class_type(checkpoint.name)
    if kind is None:
        raise AdapterError(
            f"has tensors that the base does not have, and `{checkpoint.name}` has no head that an adapter can carry",
            where=checkpoint.path,
            found=quoted(extra),
            expected="a class for classification, regression, spans or vectors; or a base that has these tensors",
            fix="import it without them: " + argument("without_head", True),
        )
    shapes = checkpoint.shapes()
    with within(checkpoint.path):
        architecture = view.head_of(
            TASK_TYPES[kind].model_classes, checkpoint.name, {name: shapes[name] for name in extra}
        )
        if architecture is None:
            raise AdapterError(
                "has a head whose computation the base does not show",
                found=quoted(extra),
                expected="a base with a configuration of transformers",
                fix="pass the folder of the base, or " + argument("without_head", True),
            )
        tensors = head_tensors(
            architecture, {name: checkpoint.tensor(name) for name in extra}, checkpoint.tensor, checkpoint.path
        )
        weights = architecture.weights(tensors)
    count = int(architecture.widths.get(CLASSES) or 1)
    task, notes = head_task(checkpoint.config, checkpoint.name, count)
    return FinetunedHead(
        Head(architecture.graph, architecture.widths, task),
        weights,
        frozenset(tensors),
        tuple(notes),
        library=(TASK_TYPES[kind].model_classes, count),
    )
