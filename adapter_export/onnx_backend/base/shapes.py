"""Shapes that a graph does not record and ONNX cannot infer: read off two runs of the graph itself.

ONNX knows nothing of the shapes of ONNX Runtime's own operators (domain com.microsoft), and cannot follow lengths that
a graph computes. A run knows all of them. Axes that have one length in both runs are of that length; every named axis
of the inputs has another length in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.axes import names
from adapter_export.format.manifest import InputRecord
from adapter_export.numerics.sample_inputs import InputCase, input_cases
from adapter_export.onnx_backend.session import open_session
from adapter_export.onnx_backend.view.flow import has_shapes, is_known, with_inferred_shapes
from adapter_export.runtime.graphs import run_session

_FIRST_LENGTHS = (2, 5)
"""Of the first named axis and of the second; the others follow."""


def complete_shapes(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> None:
    """Record in a model what shapes can be known of its values.

    Args:
        model: the model.
        folder: where its external data lie.
        inputs: its inputs.
    """
    if has_shapes(model.graph):
        return
    inferred = {value.name: value for value in _values(with_inferred_shapes(model))}
    for value in _values(model):
        if value.name in inferred:
            value.shape = value.shape or inferred[value.name].shape
            value.type = value.type or inferred[value.name].type
    if not has_shapes(model.graph):
        unknown = [value for value in _values(model) if not is_known(value.shape)]
        for value, one, other in _observed(model, unknown, folder, inputs):
            value.shape = _common_shape(value, one, other)
            value.type = value.type or ir.TensorType(ir.DataType.from_numpy(one.dtype))


def correct_shapes(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> bool:
    """Replace the recorded shapes that have another number of axes than two runs show; whether there were any.

    What fuses operators leaves the shape of a value that had the name before. The arguments are those of
    `complete_shapes`.
    """
    recorded = [value for value in _values(model) if value.shape is not None]
    wrong = [
        (value, one, other)
        for value, one, other in _observed(model, recorded, folder, inputs)
        if len(value.shape or ()) != one.ndim == other.ndim
    ]
    for value, one, other in wrong:
        value.shape = _common_shape(value, one, other)
    return bool(wrong)


def small_cases(inputs: Sequence[InputRecord]) -> list[InputCase]:
    """Two cases of small inputs; no named axis has the same length in both."""
    named = list(dict.fromkeys(name for record in inputs for axis in record.axes for name in names(axis)))
    first, second = _FIRST_LENGTHS
    lengths = [first, *range(second, 2 * len(named) + second, 2)]
    shapes = [{name: length + more for name, length in zip(named, lengths, strict=False)} for more in (0, 1)]
    return input_cases(inputs, seed=0, shapes=shapes)[:2]


def _values(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs if value.name]


def _observed(
    model: ir.Model, values: Sequence[ir.Value], folder: Path, inputs: Sequence[InputRecord]
) -> Iterator[tuple[ir.Value, np.ndarray, np.ndarray]]:
    """Some values of a model with their arrays in two runs; none if the model cannot be run."""
    shown = model.clone()
    wanted = {value.name for value in values} - {value.name for value in shown.graph.outputs}
    for value in [value for value in _values(shown) if value.name in wanted]:
        value.shape = None  # a recorded one that is wrong is an error of ONNX Runtime
        shown.graph.outputs.append(value)
    try:
        session = open_session(shown, folder, optimize=False)
        runs = [run_session(session, case.arrays) for case in small_cases(inputs)]
    except (BaseModelError, RequestError):  # whoever asks for a shape says what is missing
        return
    for value in values:
        one, other = (run.get(value.name or "") for run in runs)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):  # sequences and optional values have no shape
            yield value, one, other


def _common_shape(value: ir.Value, one: np.ndarray, other: np.ndarray) -> ir.Shape | None:
    """Return the shape that two runs have in common; an axis that varies keeps the name that it has."""
    if one.ndim != other.ndim:
        return value.shape
    known = value.shape if value.shape is not None and len(value.shape) == one.ndim else [None] * one.ndim
    return ir.Shape([a if a == b else before for a, b, before in zip(one.shape, other.shape, known, strict=True)])
