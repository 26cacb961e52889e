"""Shapes that a graph does not record and ONNX cannot infer: read off two runs of the graph itself.

ONNX knows nothing of the shapes of ONNX Runtime's own operators (domain com.microsoft), and cannot follow lengths that
a graph computes. A run knows all of them. Axes that have one length in both runs are of that length; every named axis
of the inputs has another length in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    inferred = {value.name: value for node in with_inferred_shapes(model).graph for value in node.outputs}
    for value in _values(model):
        _take(value, inferred.get(value.name))
    if not has_shapes(model.graph):
        unknown = [value for value in _values(model) if not is_known(value.shape)]
        for value, arrays in _observed(model, unknown, folder, inputs):
            value.shape = _common_shape(value, arrays)
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.from_numpy(arrays[0].dtype))


def correct_shapes(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> bool:
    """Replace the recorded shapes that have another number of axes than two runs show; whether there were any.

    What fuses operators leaves the shape of a value that had the name before.

    Args:
        model: the model.
        folder: where its external data lie.
        inputs: its inputs.
    """
    recorded = [value for value in _values(model) if value.shape is not None]
    wrong = [
        (value, arrays)
        for value, arrays in _observed(model, recorded, folder, inputs)
        if value.shape is not None and len(value.shape) != arrays[0].ndim == arrays[1].ndim
    ]
    for value, arrays in wrong:
        value.shape = _common_shape(value, arrays)
    return bool(wrong)


def _values(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs if value.name]


def _take(value: ir.Value, inferred: ir.Value | None) -> None:
    if inferred is not None:
        value.shape = value.shape or inferred.shape
        value.type = value.type or inferred.type


def _observed(
    model: ir.Model, values: Sequence[ir.Value], folder: Path, inputs: Sequence[InputRecord]
) -> list[tuple[ir.Value, list[np.ndarray]]]:
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
        return []
    there = [value for value in values if value.name in runs[0]]
    return [(value, [run[value.name or ""] for run in runs]) for value in there if _are_arrays(value, runs)]


def _are_arrays(value: ir.Value, runs: Sequence[Mapping[str, object]]) -> bool:
    """Sequences and optional values have no shape."""
    return all(isinstance(run[value.name or ""], np.ndarray) for run in runs)


def small_cases(inputs: Sequence[InputRecord]) -> list[InputCase]:
    """Two cases of small inputs; no named axis has the same length in both."""
    return input_cases(inputs, seed=0, shapes=_lengths(inputs))[:2]


def _lengths(inputs: Sequence[InputRecord]) -> list[dict[str, int]]:
    named = list(dict.fromkeys(name for record in inputs for axis in record.axes for name in names(axis)))
    lengths = [*_FIRST_LENGTHS, *range(_FIRST_LENGTHS[-1] + 2, 2 * len(named) + _FIRST_LENGTHS[-1] + 2, 2)]
    return [{name: length + more for name, length in zip(named, lengths, strict=False)} for more in (0, 1)]


def _common_shape(value: ir.Value, arrays: Sequence[np.ndarray]) -> ir.Shape | None:
    """What two runs have in common; an axis that varies keeps the name that it has."""
    one, other = arrays
    if one.ndim != other.ndim:
        return value.shape
    known = value.shape if value.shape is not None and len(value.shape) == one.ndim else [None] * one.ndim
    return ir.Shape([a if a == b else before for a, b, before in zip(one.shape, other.shape, known, strict=True)])
